"""A fine-tuning run: resumable to the bit, replayable to the bit, and refused rather than damaged."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from zograd.core.tape import Tape, TapeError
from zograd.llm import loading
from zograd.llm.loop import DivergenceError
from zograd.llm.restore import replay, restore
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError

COMMON: dict[str, Any] = {
    "task": "mr", "steps": 12, "batch_size": 4, "train_examples": 40, "eval_examples": 20, "lr": 1e-3, "mu": 1e-3,
    "dtype": "float32",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"train": "lora", "layers": 2},
    "top blocks": {"layers": 2, "method": "fzoo", "set": {"n": 3}},
    "bf16 stochastic": {"dtype": "bfloat16", "lr": 1e-2},
    "bf16 split": {"dtype": "bfloat16", "rounding": "split"},
    "adam": {"method": "zo_adam", "save_every": 5},
    "momentum": {"method": "mezo_momentum", "save_every": 5, "lr_schedule": "cosine"},
}


def settings(model: Path, **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({**COMMON, "model": str(model), **more})


@pytest.mark.parametrize("quiet", [True, False])
def test_a_metric_with_the_name_of_a_number_of_the_bar_is_shown_beside_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    """That of completions is their loss: the step behind an evaluation raised a TypeError."""
    file = tmp_path / "task.jsonl"
    words = ("great", "bad", "no", "maybe")
    lines = [{"prompt": "It was", "completion": f" very {word}", "split": "train"} for word in words * 10]
    lines += [{**line, "prompt": "It is", "split": "validation"} for line in lines[:4]]
    file.write_text("\n".join(map(json.dumps, lines)))
    s = settings(tiny_model, task=str(file), steps=3, eval_every=1, batch_size=4, baseline=False)
    done = train(s, tmp_path / "run", quiet=quiet)
    assert (done["metric"], done["steps"]) == ("loss", 3)
    logged = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    assert [line["metric"] for line in logged if "metric" in line] == ["loss"] * 3
    assert quiet or "eval_loss=" in capsys.readouterr().err


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopping_and_resuming_changes_nothing(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    """Train 12 steps at once, or 7 and then resume: the same weights, and so does a replay of the tape."""
    s = settings(tiny_model, **VARIANTS[variant])
    whole = train(s, tmp_path / "whole", quiet=True)
    schedule = s.lr_schedule != "constant"
    if schedule:
        cut_tape(tmp_path / "whole", tmp_path / "parts", records=7)
    else:
        train(s.model_copy(update={"steps": 7}), tmp_path / "parts", quiet=True)
    resumed = train(s, tmp_path / "parts", resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["steps"] == 12
    assert resumed["evaluations"] == whole["evaluations"]
    replayed = replay(tmp_path / "parts", None, tmp_path / "weights")
    assert replayed["sha256"] == whole["sha256"]
    assert (tmp_path / "whole" / "state.safetensors").exists() == (variant == "adam")


def test_weight_decay_is_on_matrices_not_on_biases_and_norms(tiny_model: Path, tmp_path: Path) -> None:
    """One step with and without decay differs by the decay alone: matrices are w (1 - lr decay), the rest is w."""
    lr, decay = 1e-2, 0.5
    ends: list[dict[str, torch.Tensor]] = []
    for k, weight_decay in enumerate((0.0, decay)):
        s = settings(tiny_model, steps=1, lr=lr, weight_decay=weight_decay)
        train(s, tmp_path / f"{k}", quiet=True)
        ends.append({n: t.detach().clone() for n, t in restore(tmp_path / f"{k}")[0].trained.items()})
    start = dict(loading.load(str(tiny_model), dtype="float32")[0].named_parameters())
    assert {t.ndim for t in start.values()} == {1, 2}
    for name, w in start.items():
        expected = -lr * decay * w if w.ndim > 1 else torch.zeros_like(w)
        torch.testing.assert_close(ends[1][name] - ends[0][name], expected, rtol=1e-3, atol=1e-7)


def test_biases_are_in_the_group_without_decay() -> None:
    tensors = {"w": torch.ones(2, 3), "bias": torch.ones(3), "gain": torch.ones(2), "scale": torch.ones(())}
    assert loading.decay_groups(tensors) == {"w": 0, "bias": 1, "gain": 1, "scale": 1}


def cut_tape(source: Path, target: Path, records: int) -> None:
    """A copy of a run, as a kill after that many steps would leave it."""
    from zograd.core.tape import TapeWriter

    target.mkdir()
    (target / "run.json").write_text((source / "run.json").read_text())
    tape = Tape(source / "tape.zo")
    with TapeWriter(target / "tape.zo", tape.header) as writer:
        for record in tape.records[:records]:
            writer.append(record)


def test_replayed_weights_load_in_transformers_and_score_the_same(tiny_model: Path, tmp_path: Path) -> None:
    from zograd.llm.evaluate import evaluate

    s = settings(tiny_model, train="lora", lr=0.1)
    result = train(s, tmp_path / "run", quiet=True)
    replay(tmp_path / "run", None, tmp_path / "weights")
    whole = evaluate(str(tmp_path / "weights"), "mr", None, split="validation", examples=20, dtype="float32")
    replayed = evaluate(None, None, tmp_path / "run", split="validation", examples=20)
    assert whole["loss"] == pytest.approx(result["eval_loss_after"], rel=1e-4)
    assert replayed["loss"] == pytest.approx(result["eval_loss_after"], rel=1e-6)  # sums of float32 depend on alignment


def test_replay_to_an_earlier_step_is_a_shorter_run(tiny_model: Path, tmp_path: Path) -> None:
    train(settings(tiny_model), tmp_path / "long", quiet=True)
    short = train(settings(tiny_model, steps=5), tmp_path / "short", quiet=True)
    assert replay(tmp_path / "long", None, tmp_path / "w5", to=5)["sha256"] == short["sha256"]
    with pytest.raises(RunError, match=r"--to 13: the tape of .* has 12 steps"):
        replay(tmp_path / "long", None, tmp_path / "w13", to=13)


def test_another_base_model_is_refused_by_its_first_tensor(
    tiny_model: Path, other_tiny_model: Path, tmp_path: Path
) -> None:
    train(settings(tiny_model, steps=2), tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match=r"not the base model of this run: tensor 'model.embed_tokens.weight'"):
        replay(tmp_path / "run", str(other_tiny_model), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    train(settings(tiny_model, steps=2), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "tape.zo").read_bytes()
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        train(settings(tiny_model, steps=2), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "tape.zo").read_bytes() == before


def test_torn_record_is_dropped_with_a_warning_and_damage_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    whole = train(settings(tiny_model), tmp_path / "run", quiet=True)
    tape = tmp_path / "run" / "tape.zo"
    data = tape.read_bytes()
    tape.write_bytes(data[:-5])
    with pytest.warns(UserWarning, match="the last record is torn"):
        assert train(settings(tiny_model), tmp_path / "run", resume=True, quiet=True)["sha256"] == whole["sha256"]
    assert tape.read_bytes() == data
    flipped = bytearray(data)
    flipped[-40] ^= 1
    tape.write_bytes(flipped)
    with pytest.raises(TapeError, match="fails its checksum"):
        train(settings(tiny_model), tmp_path / "run", resume=True, quiet=True)
    assert tape.read_bytes() == flipped


def test_a_dead_objective_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """Weights of 1e37 make every norm return 0: the loss no longer depends on them."""
    with pytest.raises(DivergenceError, match=r"the loss was 0.693147 at every point of 4 steps in a row"):
        train(settings(tiny_model, lr=1e38, steps=50, max_failures=4), tmp_path / "run", quiet=True)


def test_a_run_that_runs_away_ends_with_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    """Finite losses far above the first one: the run stops with its tape whole, and does not call it a result."""
    with pytest.raises(
        DivergenceError, match=r"the loss has run away: it is \S+ at step \d+, and was 0.\d+ .*lower --lr"
    ):
        train(settings(tiny_model, lr=0.2, steps=40, max_failures=3), tmp_path / "run", quiet=True)
    tape = Tape(tmp_path / "run" / "tape.zo")
    assert 3 <= tape.steps < 40
    assert all(record.loss > 10 * 1.69 for record in tape.records[-3:])
    assert "result" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_a_run_that_diverges_stops_and_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zograd.llm.scoring.scorer import Scorer

    finite = Scorer.copy_losses
    calls = iter(range(1000))

    def losses(self: Scorer, batch: Any, copies: int, most: int = 64) -> torch.Tensor:
        return finite(self, batch, copies) * (1.0 if next(calls) < 8 else math.nan)

    monkeypatch.setattr(Scorer, "copy_losses", losses)
    s = settings(tiny_model, steps=50, max_failures=3)
    with pytest.raises(DivergenceError, match=r"3 steps in a row had a non-finite loss .* lower --lr"):
        train(s, tmp_path / "run", quiet=True)
    records = Tape(tmp_path / "run" / "tape.zo").records
    assert [r.refused for r in records[-3:]] == [True] * 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["refused"]


SCRIPT = """
import sys, warnings
import torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
import json
print("ready", flush=True)
s = TrainSettings.model_validate(json.loads(sys.argv[1]))
print(json.dumps(train(s, sys.argv[2], resume=sys.argv[3] == "resume", quiet=True)), flush=True)
"""


class Child(subprocess.Popen[str]):
    output = ""


def start(s: TrainSettings, out: Path, mode: str) -> Child:
    return Child(
        [sys.executable, "-c", SCRIPT, json.dumps(s.stored()), str(out), mode],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def kill_at(process: Child, tape: Path, size: int, number: int) -> None:
    """Send a signal once the tape has grown to `size` bytes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if tape.exists() and tape.stat().st_size >= size:
            process.send_signal(number)
            break
        time.sleep(0.002)
    process.output, _ = process.communicate(timeout=120)


@pytest.mark.filterwarnings("ignore:.*last record is torn")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["zo_sgd", "residual"])
def test_killed_three_times_the_run_ends_at_the_same_bits(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """kill -9 at random moments, --resume: final weights bit-identical to an uninterrupted run.

    `residual` takes the steps since its last saved state again.
    """
    more = {"method": method, "mu": None, "lr": 1e-3, "save_every": 7} if method == "residual" else {}
    s = settings(tiny_model, steps=60, **more)
    whole = train(s, tmp_path / "whole", quiet=True)
    size = (tmp_path / "whole" / "tape.zo").stat().st_size
    rng = random.Random(7)
    mode, tape = "new", tmp_path / "killed" / "tape.zo"
    for share in sorted(rng.uniform(0.4, 0.95) for _ in range(3)):
        process = start(s, tmp_path / "killed", mode)
        kill_at(process, tape, int(share * size), signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        mode = "resume"
    last = train(s, tmp_path / "killed", resume=True, quiet=True)
    assert last["sha256"] == whole["sha256"]
    assert tape.read_bytes() == (tmp_path / "whole" / "tape.zo").read_bytes()
    assert replay(tmp_path / "killed", None, tmp_path / "weights")["sha256"] == whole["sha256"]


def test_sigterm_stops_between_steps_with_the_run_intact(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, steps=100_000)
    process = start(s, tmp_path / "run", "new")
    kill_at(process, tmp_path / "run" / "tape.zo", 20_000, signal.SIGTERM)
    assert process.returncode == 0
    summary = json.loads(process.output.splitlines()[-1])
    assert summary["interrupted"]
    tape = Tape(tmp_path / "run" / "tape.zo")
    assert tape.torn == 0
    assert tape.steps == summary["steps"] < 100_000
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == summary["sha256"]


def test_a_full_disk_leaves_the_tape_as_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zograd.core.tape import TapeWriter

    written = TapeWriter._write
    calls = {"n": 0}

    def full(self: TapeWriter, data: bytes) -> None:
        calls["n"] += 1
        if calls["n"] == 6:
            self._file.write(data[:10])  # what a full disk takes
            self._file.truncate(self._file.tell() - 10)
            self._file.seek(0, os.SEEK_END)
            raise OSError(28, "No space left on device", str(self.path))
        written(self, data)

    monkeypatch.setattr(TapeWriter, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        train(settings(tiny_model), tmp_path / "run", quiet=True)
    monkeypatch.undo()
    assert Tape(tmp_path / "run" / "tape.zo").steps == 4
    whole = train(settings(tiny_model), tmp_path / "whole", quiet=True)
    assert train(settings(tiny_model), tmp_path / "run", resume=True, quiet=True)["sha256"] == whole["sha256"]


def test_dev_full_refuses_a_record_cleanly(tmp_path: Path) -> None:
    """A real full device: the write fails as a whole."""
    from zograd.core.tape import TapeWriter

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with TapeWriter(tmp_path / "tape.zo", {}) as writer, open("/dev/full", "wb", buffering=0) as device:
        real, writer._file = writer._file, device
        with pytest.raises(OSError, match="No space left"):
            writer._write(b"x" * 100)
        writer._file = real


def test_tied_weights_are_one_leaf_and_move_once(tiny_model: Path) -> None:
    from zograd.llm import loading
    from zograd.stores import Store

    model, _ = loading.load(str(tiny_model), dtype="float32")
    store = Store(loading.select(model, "full"))
    assert store.dim == sum(p.numel() for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.is_tensor(store.by_id[id(model.lm_head.weight)].tensor)
