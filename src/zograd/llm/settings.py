"""The settings of a fine-tuning run: what the command line, a YAML or TOML file and `run.json` hold."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zograd.errors import UsageError


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


class TrainSettings(BaseModel):
    """Keys are those of `zograd train`, with underscores."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "smollm2-135m"
    quantized: bool = False
    quantize: Literal["nf4", "int8-bnb", "int8-torchao", "int4-torchao", "hqq4"] | None = None
    task: str = "trec"
    method: str = "zo_sgd"
    method_settings: dict[str, Any] = Field(default_factory=dict, alias="set")
    steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=16, ge=1)
    lr: Annotated[float, Field(ge=0)] | Literal["auto"] | None = None
    mu: float | None = Field(default=None, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_end: float = Field(default=0.0, ge=0, le=1)
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    train: str = "full"
    layers: int | None = Field(default=None, ge=1)
    lora_r: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0)
    lora_targets: list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])
    rounding: Literal["stochastic", "split", "nearest"] = "stochastic"
    dtype: str = "auto"
    device: str = "cpu"
    offload: Literal["disk", "cpu"] | None = None
    threads: int | None = Field(default=None, ge=1)
    shards: int | None = Field(default=None, ge=1)
    parallel: Literal["data", "directions", "both"] = "data"
    timeout: float = Field(default=300.0, gt=0)
    together: int | None = Field(default=None, ge=1)
    cache_prefix: bool = True
    compile: bool | Literal["auto"] = False
    train_examples: int | None = Field(default=1000, ge=1)
    eval_examples: int | None = Field(default=500, ge=1)
    eval_split: Literal["validation", "test"] = "validation"
    draw: Literal["random", "first"] = "random"
    eval_every: int = Field(default=0, ge=0)
    save_every: int = Field(default=500, ge=1)
    max_failures: int = Field(default=10, ge=1)
    prompt_template: str | None = None
    label_words: dict[str, str] | list[str] | None = None
    text_column: str | None = None
    label_column: str | None = None

    @field_validator("method_settings", mode="before")
    @classmethod
    def _numbers_in_quotes(cls, value: Any) -> Any:
        """A number in quotes is the number: no setting of a method is a text that looks like one."""
        if not isinstance(value, Mapping):
            return value
        return {name: read_value(v) if isinstance(v, str) else v for name, v in value.items()}

    @field_validator("label_words", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        """Labels and words that a config holds as numbers are meant as text: {0: bad, 1: good}, and labels true, false.

        A word that is a truth value was yes or no, on or off, and nothing tells which.
        """
        words = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ())
        if any(isinstance(word, bool) for word in words):
            raise ValueError("in YAML yes, no, on, off, true and false are truth values; write such a word in quotes")
        if isinstance(value, Mapping):
            return {_as_text(label): _as_text(word) for label, word in value.items()}
        return [_as_text(word) for word in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_quantization(self) -> Self:
        if self.quantized and self.quantize is not None:
            raise ValueError("quantized keeps a .gguf packed, quantize makes 4 or 8 bits of a dense model: choose one")
        return self

    @model_validator(mode="after")
    def _compile_fits(self) -> Self:
        if self.compile and (self.quantized or self.quantize or self.offload):
            raise ValueError(
                "compile does not go with quantized, quantize or offload: what takes the time there is nothing that "
                "torch.compile sees; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> Self:
        if self.offload is None:
            return self
        refused = {
            "quantized": (self.quantized, "the blocks of a .gguf are no tensors that can be moved on the disk"),
            "quantize": (self.quantize is not None, "a library holds its integers in memory"),
            "rounding = split": (self.rounding == "split", "the low halves of split weights are not offloaded"),
            f"device = {self.device}": (
                self.offload == "disk" and self.device != "cpu",
                "weights on the disk are read by the CPU",
            ),
        }
        for name, (given, why) in refused.items():
            if given:
                raise ValueError(f"offload = {self.offload} does not go with {name}: {why}; leave one out")
        return self

    def stored(self) -> dict[str, Any]:
        """As plain data, to be read back by `parse`."""
        data: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return data


def _as_text(value: Any) -> Any:
    """A scalar as data files write it: `true` for True, `1` for 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def parse(data: dict[str, Any]) -> TrainSettings:
    """Validated settings; SettingsError with one line that names the first mistake."""
    try:
        return TrainSettings.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        if not first["loc"]:  # settings that do not go together: the message says which
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(field.alias or key for key, field in TrainSettings.model_fields.items())
            raise SettingsError(f"there is no setting {name!r}; there are {known}") from None
        raise SettingsError(f"{name} = {first['input']!r}: {first['msg']}") from None


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
        data = tomllib.loads(text) if file.suffix == ".toml" else read_value(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as e:
        raise SettingsError(f"the config {file} does not parse: {str(e).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"the config {file} must hold keys and values, it holds {type(data).__name__}")
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
