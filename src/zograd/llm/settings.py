"""The settings of a fine-tuning run: what the command line, a YAML or TOML file and `run.json` hold."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from zograd.errors import UsageError
from zograd.hub import parse_label_words
from zograd.llm.schedule import checked


class SettingsError(UsageError):
    """A setting that is unknown, of the wrong type or out of range; the message names it."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+",
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2 and of Python: 1e-8 is one, 1:30 is text, 012 is twelve."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # stubs take it for an object's
        first: [(tag, pattern) for tag, pattern in found if tag not in _NUMBERS]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def integer(self, node: Any) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0) if text[:2] in ("0x", "0o", "0b") else int(text)


for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)


def read_value(text: str) -> Any:
    """A value as a config and `--set` hold it. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # it is a SafeLoader


def setting(
    default: Any,
    help: str,
    group: str,
    *,
    unset: str | None = None,
    form: str | None = None,
    factory: Callable[[], Any] | None = None,
    **limits: Any,
) -> Any:
    """A field of `TrainSettings` with all that the command line says of it.

    help: what it sets. group: the panel of `zograd train --help` that it stands in. unset: what holds where the default
    is None. form: how a value is written, where its type does not tell. factory: makes a default that is mutable.
    """
    shown = {"group": group, "unset": unset, "form": form}
    start: dict[str, Any] = {"default": default} if factory is None else {"default_factory": factory}
    return Field(**start, description=help, json_schema_extra={k: v for k, v in shown.items() if v}, **limits)


NO_END = 10**9
"""The number of steps of a run that ends on the clock."""

MODEL, DATA, METHOD, TRAINED = "Model", "Data", "Method", "What is trained"
CHECKS, MACHINE = "Evaluation and saving", "Machine"


class TrainSettings(BaseModel):
    """Keys are those of `zograd train`, with underscores; each is described here and nowhere else."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = setting("smollm2-135m", "Alias, folder, .gguf file, or hub name.", MODEL)
    quantized: bool = setting(False, "Keep the matrices of a .gguf packed; --train scales trains their scales.", MODEL)
    quantize: Literal["nf4", "int8-bnb", "int8-torchao", "int4-torchao", "hqq4"] | None = setting(
        None, "Quantize a dense model first.", MODEL
    )
    classes: int | None = setting(
        None,
        "Classes of a new head, for an encoder that has none.",
        MODEL,
        unset="those of the task",
        ge=2,
    )
    task: str = setting(
        "trec",
        "A task or TASK:DATA of `zograd tasks`, a file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder, hf:NAME.",
        DATA,
    )
    method: str = setting(
        "auto",
        "Name of a method, see `zograd methods`. auto: `residual` on the last 4 blocks, 100 steps of 32 examples.",
        METHOD,
    )
    method_settings: dict[str, Any] = setting(
        None,
        "A setting of the method, for example --set n=8. Repeatable.",
        METHOD,
        form="key=value",
        factory=dict,
        alias="set",
    )
    steps: int = setting(1000, "Steps in all; 100 where auto takes residual or backprop.", METHOD, ge=0)
    seconds: float | None = setting(
        None, "End after so many seconds of training; the schedule follows the time.", METHOD, unset="by --steps", gt=0
    )
    budget: Literal["small", "medium", "large"] | None = setting(
        None,
        "In place of --steps: 1, 4 or 16 times the default, with 1,000, 4,000 or all training examples.",
        METHOD,
        unset="small",
    )
    batch_size: int = setting(16, "Examples per step; 32 where auto takes residual or backprop.", METHOD, ge=1)
    lr: Annotated[float, Field(ge=0)] | Literal["auto"] | None = setting(
        None, "Learning rate; auto measures it.", METHOD, unset="by the method, the part, and the width of the model"
    )
    mu: float | None = setting(
        None,
        "Perturbation radius; 2^-7 also for polar and scales, 2^-3 for prompt and prefix.",
        METHOD,
        unset="the method's; 2^-7 for lora",
        gt=0,
    )
    lr_schedule: str = setting(
        "constant",
        "How the learning rate changes over the run: constant, linear, cosine, table:1,0.5,0 with shares of --lr, or "
        "refined:RUN, from the gradient norms of an earlier run; cosine where auto takes residual or backprop.",
        METHOD,
        form="constant|linear|cosine|refined:RUN",
    )
    lr_end: float = setting(
        0.0,
        "Learning rate at the end of a linear or cosine schedule, as a fraction of --lr; 0.05 where auto takes "
        "residual or backprop.",
        METHOD,
        ge=0,
        le=1,
    )
    warmup: int = setting(
        0,
        "Steps over which the learning rate rises to --lr; with gradients from blocks 10, at most a tenth of all.",
        METHOD,
        ge=0,
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay; biases and norms are left out.", METHOD, ge=0)
    seed: int = setting(0, "Fixes directions, batches, rounding and adapters.", METHOD, ge=0, lt=2**63)
    train: str = setting(
        "full",
        "full, lora, polar, prefix, prompt, scales, scales:PATTERN, or a pattern (regular expression) of names.",
        TRAINED,
    )
    tokens: int = setting(10, "Virtual tokens of --train prefix and --train prompt.", TRAINED, ge=1)
    layers: int | None = setting(
        None, "Only this many of the last blocks; 4 where auto takes residual.", TRAINED, unset="all", ge=1
    )
    lora_r: int = setting(8, "Rank of LoRA and PoLAR adapters.", TRAINED, ge=1)
    lora_alpha: float = setting(16.0, "Scale of adapters: their output is multiplied by alpha / r.", TRAINED, gt=0)
    lora_init: Literal["default", "activations"] = setting(
        "default",
        "A of LoRA adapters. default: drawn, and trained. activations: the leading directions of what enters each "
        "layer, fixed; B alone is trained.",
        TRAINED,
    )
    lora_targets: list[str] | None = setting(
        None,
        "Modules that get LoRA or PoLAR adapters.",
        TRAINED,
        form="name,...",
        unset="those that peft takes for the architecture, else all linear layers of the blocks",
    )
    balance: bool = setting(
        False, "Keep the two factors of each LoRA adapter in balance (RefLoRA); their product does not change.", TRAINED
    )
    protect: str | None = setting(
        None,
        "File of zograd protect: train the remembered weights in the null space of what they have read.",
        TRAINED,
        form="FILE",
        unset="off",
    )
    rounding: Literal["stochastic", "split", "nearest"] = setting(
        "stochastic", "How 16-bit weights are updated.", TRAINED
    )
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16.", MODEL)
    device: str = setting("cpu", "cpu, cuda, cuda:1, ...", MACHINE)
    offload: Literal["disk", "cpu"] | None = setting(
        None,
        "disk: keep the weights on the disk, for models larger than the RAM. cpu: keep them in RAM, for models larger "
        "than the memory of --device.",
        MACHINE,
    )
    threads: int | None = setting(None, "CPU threads.", MACHINE, unset="all that the process may use", ge=1)
    shards: int | None = setting(
        None,
        "Parts in which a batch is evaluated; with torchrun, its processes share them.",
        MACHINE,
        unset="one per process",
        ge=1,
    )
    parallel: Literal["data", "directions", "both"] = setting("data", "What the processes of torchrun share.", MACHINE)
    timeout: float = setting(300.0, "Seconds to wait for another process.", MACHINE, gt=0)
    together: int | None = setting(
        None, "Points evaluated in one forward pass.", MACHINE, unset="as many as pay, by the tokens of the batch", ge=1
    )
    cache_prefix: bool = setting(True, "Compute frozen blocks below the trained ones once per example.", MACHINE)
    compile: bool | Literal["auto"] = setting(
        False, "Compile the blocks with torch.compile; auto measures at the start whether that pays.", MACHINE
    )
    train_examples: int | None = setting(1000, "Training examples used; none: all.", DATA, ge=1)
    eval_examples: int | None = setting(500, "Held-out examples used; none: all.", DATA, ge=1)
    eval_split: Literal["validation", "test"] = setting("validation", "Split that is held out.", DATA)
    draw: Literal["stratified", "random", "first"] = setting(
        "stratified", "Which examples of a file are used: of each class its share, any, or the first ones.", DATA
    )
    eval_file: str | None = setting(
        None, "File of the validation split; then --task is for training alone.", DATA, unset="a tenth of --task"
    )
    test_file: str | None = setting(None, "File of the test split.", DATA, unset="a tenth of --task")
    records: Literal["auto", "classification", "choice", "completion", "chat", "instruction", "text"] = setting(
        "auto", "For files: what a record is; auto tells by the columns.", DATA
    )
    completion_column: str | None = setting(
        None,
        "For files: the column that is learned as what follows the prompt, or the one with the choices.",
        DATA,
        unset="completion, or choices",
    )
    max_length: int | None = setting(None, "Most tokens of an example.", DATA, unset="what the model takes", ge=2)
    truncate: Literal["left", "middle", "right"] | None = setting(
        None,
        "Where the longest columns of an example that is too long are cut; its template and its words stay.",
        DATA,
        unset="right with --max-length, else it is refused",
    )
    chat_template: bool = setting(
        True, "Write conversations and instructions with the tokenizer's chat template, where it has one.", DATA
    )
    eos: bool = setting(
        True, "A plain completion ends with the tokenizer's end of sequence, so the model learns where to stop.", DATA
    )
    metric: str | None = setting(
        None,
        "What is reported: accuracy, balanced-accuracy, macro-f1, f1, mcc, loss, perplexity, or module:function; of "
        "completions also exact-match, f1, bleu, chrf, rouge-l or word-accuracy of what the model writes.",
        CHECKS,
        unset="accuracy, or loss",
    )
    objective: str = setting(
        "loss",
        "What training lowers: loss; accuracy, exact-match, f1, bleu, chrf, rouge-l or word-accuracy (what they lack "
        "of 1); a reward "
        "module:function; or a judge of answers prefers:module:function.",
        METHOD,
    )
    answer_temperature: float = setting(
        0.0, "Temperature at which answers of an objective are drawn; 0: the most likely ones.", METHOD, ge=0
    )
    answer_tokens: int = setting(32, "Most tokens of an answer that an objective or a metric looks at.", METHOD, ge=1)
    baseline: bool = setting(True, "Evaluate the model before the first step.", CHECKS)
    eval_every: int = setting(0, "Steps between evaluations; 0: only at the end.", CHECKS, ge=0)
    save_every: int | None = setting(
        None,
        "Steps between writes of the state of methods that keep one.",
        CHECKS,
        unset="500; each minute for methods whose tape cannot give the weights back",
        ge=1,
    )
    max_failures: int = setting(10, "Failed steps in a row after which the run stops.", CHECKS, ge=1)
    prompt_template: str | None = setting(
        None, 'Prompt with columns in braces, for example "{text} It was".', DATA, unset="the task's"
    )
    label_words: dict[str, str | list[str]] | list[str | list[str]] | None = setting(
        None,
        'The word that stands for each label, for example "0= terrible,1= great", or several: "0= bad| awful,1= good".',
        DATA,
        unset="the task's",
        form="label=word,...",
    )
    text_column: str | None = setting(None, "For files: the column that {text} stands for.", DATA, unset="text")
    label_column: str | None = setting(
        None, "For files: the column of the label, or of the right choice.", DATA, unset="label"
    )

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """`q_proj,v_proj` is the list of both."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("method_settings", mode="before")
    @classmethod
    def _numbers_in_quotes(cls, value: Any) -> Any:
        """A number in quotes is the number: no setting of a method is a text that looks like one."""
        if not isinstance(value, Mapping):
            return value
        read = {name: read_value(v) if isinstance(v, str) else v for name, v in value.items()}
        for name, number in read.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"expected a finite number for {name}")
        return read

    @field_validator("label_words", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        """Labels and words that a config holds as numbers are meant as text: {0: bad, 1: good}, and labels true, false.

        A word that is a truth value was yes or no, on or off, and nothing tells which. One text is read as
        `parse_label_words` reads it.
        """
        if isinstance(value, str):
            return parse_label_words(value)
        words = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ())
        words = [w for word in words for w in (word if isinstance(word, list) else [word])]
        if any(isinstance(word, bool) for word in words):
            raise ValueError("in YAML yes, no, on, off, true and false are truth values; write such a word in quotes")
        if isinstance(value, Mapping):
            return {_as_text(label): _texts(word) for label, word in value.items()}
        return [_texts(word) for word in value] if isinstance(value, list) else value

    @field_validator("*", mode="before")  # the last one of this mode, so the first to see a value
    @classmethod
    def _none_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """The text "none" is None: neither TOML nor a command line has another way to take a limit away."""
        return None if isinstance(value, str) and value == "none" and takes_none(str(info.field_name)) else value

    @field_validator("lr_schedule")
    @classmethod
    def _schedule_is_known(cls, value: str) -> str:
        return checked(value)

    @model_validator(mode="after")
    def _clock_fits(self) -> Self:
        if self.seconds is not None and self.lr == "auto" and self.lr_schedule != "constant":
            raise ValueError(
                f"seconds does not go with lr = auto and lr_schedule = {self.lr_schedule}: a rate that is measured "
                f"does not follow the clock; leave lr_schedule out, or give lr a number"
            )
        if self.budget is not None and self.seconds is not None:
            raise ValueError("budget and seconds both say how long to train: choose one")
        return self

    @model_validator(mode="after")
    def _one_quantization(self) -> Self:
        if self.quantized and self.quantize is not None:
            raise ValueError(
                "quantized keeps a .gguf packed, quantize makes a dense model 4 or 8 bits wide: choose one"
            )
        return self

    @model_validator(mode="after")
    def _compile_fits(self) -> Self:
        if self.compile and (self.quantized or self.quantize or self.offload):
            raise ValueError(
                "compile does not go with quantized, quantize or offload: torch.compile cannot speed up what takes the "
                "time there; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> Self:
        if self.offload is None:
            return self
        refused = {
            "quantized": (self.quantized, "the packed blocks of a .gguf cannot be offloaded"),
            "quantize": (self.quantize is not None, "the library keeps its integers in memory"),
            "rounding = split": (self.rounding == "split", "the low halves of split weights are not offloaded"),
            f"device = {self.device}": (
                self.offload == "disk" and self.device != "cpu",
                "only the CPU reads weights from the disk",
            ),
        }
        for name, (given, why) in refused.items():
            if given:
                raise ValueError(f"offload = {self.offload} does not go with {name}: {why}; leave one out")
        return self

    @property
    def encoding(self) -> dict[str, Any]:
        """How examples become tokens, and how long answers are, as arguments of `Scorer`."""
        side = "right" if self.truncate is None and self.max_length is not None else self.truncate
        return {
            "max_length": self.max_length, "truncate": side, "chat": self.chat_template, "eos": self.eos,
            "answer_tokens": self.answer_tokens,
        }  # fmt: skip

    def stored(self) -> dict[str, Any]:
        """As plain data, to be read back by `parse`."""
        data: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return data


def _as_text(value: Any) -> Any:
    """A scalar as data files write it: `true` for True, `1` for 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _texts(words: Any) -> Any:
    return [_as_text(word) for word in words] if isinstance(words, list) else _as_text(words)


def takes_none(name: str) -> bool:
    """Whether the text "none" stands for None in this setting: it may be None, and no text of its own is "none"."""
    kinds = get_args(TrainSettings.model_fields[name].annotation)
    texts = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return type(None) in kinds and str not in kinds and "none" not in texts


def accepts(name: str) -> str:
    """How a value of a setting is written: "integer", "number|auto", "data|directions|both"."""
    field = TrainSettings.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "form" in extra:
        return str(extra["form"])
    words = {int: "integer", float: "number", str: "text", bool: "on|off"}
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    found: list[str] = []
    for kind in kinds:
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        found += map(str, get_args(plain)) if get_origin(plain) is Literal else [words[plain]] if plain in words else []
    return "|".join(found)


_LIMITS = {
    "greater_than_equal": "of at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "of at most {le:g}",
    "less_than": "below {lt:g}",
}


def _expected(name: str, error: Any) -> str:
    """What a setting may be, in words, where pydantic found this error in its value."""
    return _words_for(name, error) + ", or none" * takes_none(name)


def _words_for(name: str, error: Any) -> str:
    if error["type"] in _LIMITS:
        return "a number " + _LIMITS[error["type"]].format(**error["ctx"])
    if error["type"] == "finite_number":
        return "a finite number"
    articles = {"integer": "an integer", "number": "a number", "text": "a text"}
    words = [articles.get(word, word) for word in accepts(name).split("|")]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def parse(data: dict[str, Any]) -> TrainSettings:
    """Validated settings; SettingsError with one line that names the first mistake."""
    try:
        return TrainSettings.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # settings that do not go together: the message says which
            raise SettingsError(text) from None
        key = str(first["loc"][0])
        known = {field.alias or name: name for name, field in TrainSettings.model_fields.items()}
        if key not in known:
            raise SettingsError(f"there is no setting {key!r}; there are {', '.join(known)}") from None
        if not first["type"].endswith("value_error"):
            text = f"expected {_expected(known[key], first)}"
        given = repr(data[key])
        raise SettingsError(f"{key} = {given if len(given) <= 200 else given[:197] + '...'}: {text}") from None


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys of a .yaml, .yml or .toml file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SettingsError(f"cannot read the config {file}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise SettingsError(f"the config {file} is not UTF-8 text (byte {e.start}); save it as UTF-8") from None
    try:
        data = tomllib.loads(text) if file.suffix.lower() == ".toml" else read_value(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as e:
        raise SettingsError(f"the config {file} does not parse: {str(e).splitlines()[0]}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise SettingsError(f"the config {file} must hold keys and values, but it holds {found}")
    if {"settings", "tape_version"} <= data.keys():
        raise SettingsError(
            f"{file} is the record of a run; copy what it has under 'settings' into a file of its own for --config, or "
            f"continue the run with --resume"
        )
    return data


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """["n=8", "lr=1e-3"] as {"n": 8, "lr": 0.001}; values are read as in a config."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, eq, value = pair.partition("=")
        if not eq or not key:
            raise SettingsError(f"--set {pair!r}: write key=value, for example --set n=8")
        try:
            out[key] = read_value(value)
        except yaml.YAMLError as e:
            raise SettingsError(f"--set {pair!r} does not parse: {str(e).splitlines()[0]}") from None
    return out
