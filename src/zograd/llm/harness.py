"""`zograd eval --harness`: tasks of lm-evaluation-harness on a model, or on a model with a run replayed onto it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zograd.hub import TaskError
from zograd.jsons import finite
from zograd.llm.evaluate import load_or_restore
from zograd.llm.loading.errors import first_line
from zograd.llm.restore import check_own_model
from zograd.llm.scoring.kinds import reads_of
from zograd.llm.settings import SettingsError
from zograd.llm.stages import Stages

OPTIONS = ("model", "dtype", "device", "quantized", "quantize", "seed")
"""Settings that go with tasks of the harness, which bring their own data and prompts."""


def harness(
    tasks: Sequence[str],
    model: str | None = None,
    run: Path | None = None,
    *,
    examples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quantized: bool | None = None,
    quantize: str | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """The metrics of lm-evaluation-harness, computed in this process on the model that `zograd replay` would save.

    tasks: names as `lm_eval ls tasks` lists them, groups, patterns such as "arc_*", or .yaml files of one's own.
    model, run, dtype, device, quantized, quantize: see `zograd.llm.evaluate.evaluate`.
    examples: of each task; None: all. seed: of the examples that stand in a prompt; None: 0.

    Result: `rows` of task, metric, filter, value, standard error (None where there is none) and examples; `tasks`,
    `steps` of the run. Cost: what the tasks ask for. Their data comes from the Hugging Face hub unless they name files.

    Raises ImportError where lm-eval is missing; TaskError for a name that it does not know, before the model is loaded,
    and for a task whose data cannot be read.
    """
    stages = Stages(quiet=True) if stages is None else stages
    if run is not None:
        own = {"dtype": dtype, "quantized": quantized, "quantize": quantize}
        check_own_model([name for name, value in own.items() if value is not None])
    with stages.stage("importing lm-eval"):
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as e:
            raise ImportError(f"--harness needs lm-evaluation-harness: pip install 'lm-eval[hf]' ({e})") from e
    files = [name for name in tasks if name.endswith((".yaml", ".yml"))]
    if missing := [name for name in files if not Path(name).is_file()]:
        raise TaskError(f"--harness {missing[0]}: there is no such file")
    folders = sorted({str(Path(name).absolute().parent) for name in files})
    with stages.stage("reading the list of its tasks"):  # thousands of files, unless all that is asked for is ours
        manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    wanted = [_name_in(name) if name in files else name for name in tasks]
    for name in wanted:
        if not manager.match_tasks([name]):
            raise TaskError(f"--harness {name}: lm-eval has no such task; `lm_eval ls tasks` lists what it has")
    module, tokenizer, steps = load_or_restore(
        model, run, stages, dtype=dtype, device=device, quantized=quantized, quantize=quantize
    )
    if (reads := reads_of(module)) != "text":
        raise SettingsError(f"--harness asks in text, and {type(module).__name__} reads {reads}; use --task")
    ends = tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None
    first = {} if ends else {"prefix_token_id": tokenizer.pad_token_id}  # what stands before an empty text
    asked = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=batch_size, **first)
    number = 0 if seed is None else seed
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), number)
    try:
        found = simple_evaluate(
            asked, tasks=manager.match_tasks(wanted), task_manager=manager, limit=examples, log_samples=False, **seeds
        )
    except (OSError, ValueError, KeyError, ConnectionError) as e:  # of data that it cannot fetch or read
        raise TaskError(f"--harness {', '.join(tasks)}: lm-eval could not run it ({first_line(e)[:200]})") from e
    return dict(finite({"tasks": list(tasks), "steps": steps, "rows": rows_of(found)}))


def _name_in(file: str) -> str:
    """The name of the task that a .yaml file defines; it may hold tags of the harness, so no YAML is parsed."""
    for line in Path(file).read_text(encoding="utf-8").split("\n"):
        key, _, value = line.partition(":")
        if key in ("task", "group") and value.strip():
            return value.strip().strip("'\"")
    raise TaskError(f"--harness {file}: the file has no line `task: NAME`")


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of the harness, a row for each task, metric and filter.

    >>> rows_of({"results": {"a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1}}})
    [{'task': 'a', 'metric': 'acc', 'filter': 'none', 'value': 0.5, 'stderr': 0.1, 'examples': None}]
    """
    rows = []
    for task, values in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, comma, how = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{how}")
            rows.append({
                "task": task, "metric": metric, "filter": how, "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None, "examples": count,
            })  # fmt: skip
    return rows


def check_options(given: Mapping[str, Any], **others: Any) -> None:
    """Raise SettingsError for options that tasks of the harness have no use for."""
    kept = (*OPTIONS, "threads")
    names = [name for name in given if name not in kept] + [name for name, value in others.items() if value]
    if names:
        option = f"--{names[0].replace('_', '-')}"
        raise SettingsError(
            f"{option} does not go with --harness, whose tasks bring their data and prompts; leave it out"
        )
