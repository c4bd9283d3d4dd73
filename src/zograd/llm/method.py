"""The method of a run: from the menu, with the defaults for language models and what other settings add to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from zograd import methods
from zograd.core.run import Method
from zograd.core.slots import PerColumn, PerLeaf, PerRow
from zograd.estimators import Estimator, FromBlocks
from zograd.laws import Memory, NullSpace, RankOne
from zograd.learning_rate import AutoRate
from zograd.llm import loading
from zograd.llm.loading.polar import SPACE
from zograd.llm.schedule import shaped
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.methods import MENU
from zograd.methods.defaults import FULL, LORA, POLAR, SCALES, TOKENS, Onto, Shape, language_model
from zograd.rules import SGD, Balanced, BalancedNorms
from zograd.runs.errors import RunError
from zograd.spaces import Euclidean, PositiveOrthant


def build_method(s: TrainSettings, model: nn.Module | None = None) -> Method[Any]:
    """The method that the settings ask for, with the defaults of `zograd.methods.defaults` for lr and mu.

    model: the one to train, whose width and depth set the default learning rate of methods that look at blocks; None
        where the rate does not matter.

    Raises SettingsError for an unknown method or setting, and for a method that needs a setting without a default.
    """
    settings = dict(s.method_settings)
    entry = methods.describe(s.method)
    if entry["required"]:
        raise SettingsError(
            f"method {s.method!r} needs {', '.join(entry['required'])}, which language models have no default for; "
            f"use it from Python, or choose another of {', '.join(methods.names(blocks=True))}"
        )
    lr = settings.pop("lr", None) if s.lr is None else s.lr
    mu = settings.pop("mu", None) if s.mu is None else s.mu
    onto = onto_of(s)
    looks_at_blocks = MENU[s.method].needs == "blocks"
    size = shape_of(model, s.layers) if looks_at_blocks and model is not None else None
    default = language_model(s.method, onto, size)
    lr = default.get("lr") if lr is None else lr
    mu = default.get("mu") if mu is None else mu
    if mu is not None:
        settings["mu"] = float(mu)
    if s.weight_decay:
        settings["weight_decay"] = s.weight_decay
    if lr is not None:
        shape = "constant" if s.seconds is not None or not s.steps else s.lr_schedule  # or `llm/clock.py` shapes it
        schedule = shaped(shape, 1.0 if lr == "auto" else float(lr), s.steps, s.warmup, s.lr_end)
        settings["lr"] = AutoRate(shape=schedule) if lr == "auto" else schedule
    try:
        method = methods.make(s.method, **settings)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r}: {e}") from e
    if s.balance:
        return balanced(s, method)
    if s.protect is not None:
        return protected(s, method)
    if s.train == "polar":
        return on_manifolds(s, method)
    if onto is not SCALES:
        return method
    try:
        return replace(method, space=PositiveOrthant())
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r} does not work on positive scales: {e}") from e


def check_given_once(s: TrainSettings) -> None:
    """Raise SettingsError where --set and an option of its own give one setting two values.

    For runs that begin: earlier releases took the value of the option, and their runs are continued and replayed so.
    """
    for name in ("lr", "mu", "weight_decay"):
        of_option, of_set = getattr(s, name), s.method_settings.get(name)
        if of_option and of_set is not None and of_option != of_set:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} {of_option} and --set {name}={of_set} give one setting two values; leave one of them out"
            )


def balanced(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method with its rule in `Balanced`, or in `BalancedNorms` where it keeps moments.

    Raises SettingsError where there are no pairs of factors to balance, or where the moments are of another kind.
    """
    if s.train != "lora":
        raise SettingsError(f"--balance is for --train lora, and here is --train {s.train}; leave it out")
    if s.lora_init == "activations":
        raise SettingsError("--balance scales both factors, and --lora-init activations fixes A: leave one of them out")
    wrap = BalancedNorms if method.rule.slots else Balanced
    try:
        return replace(method, rule=wrap(method.rule))
    except TypeError as e:
        raise SettingsError(f"--balance does not go with --method {s.method}: {e}") from e


def on_manifolds(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method where the outer factors of PoLAR adapters keep orthonormal columns.

    Raises SettingsError for a method that does not move so, and for weight decay, which would pull them towards 0.
    """
    if s.weight_decay:
        raise SettingsError(
            "--weight-decay pulls towards 0, where no matrix has orthonormal columns; leave it out, or use --train lora"
        )
    if not isinstance(method.space, Euclidean):
        raise SettingsError(
            f"--train polar does not go with --method {s.method}, which moves in a space of its own "
            f"({type(method.space).__name__}); use another method, or --train lora"
        )
    try:
        return replace(method, space=SPACE)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"--train polar does not go with --method {s.method}: {e}") from e


def protected(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method with directions off what the file of `--protect` remembers.

    Raises SettingsError for a file that does not parse, and methods whose moves would leave the null space.
    """
    if loading.is_scales(s.train) or s.train in (*loading.ADAPTERS, *loading.PARTS):
        raise SettingsError(f"--protect is for the weights that are remembered, and --train {s.train} adds others")
    try:
        return replace(method, law=NullSpace(memory_at("--protect", str(s.protect))))
    except TypeError as e:
        raise SettingsError(f"--protect does not go with --method {s.method}: {e}") from e


def check_protected(meta: Mapping[str, Any], now: str | None, which: str) -> None:
    """Raise RunError where a run was trained with another file of `zograd protect`: its directions were others.

    meta: the run.json, which says nothing of it in earlier releases. which: names the file, as a sentence begins.
    """
    before = meta.get("data", {}).get("protect")
    if before is not None and now != before:
        raise RunError(
            f"{which} another file than the run was trained with (SHA-256 {now}, then {before}): bring that one back"
        )


def memory_at(option: str, path: str | Path) -> Memory:
    """What a file of `zograd protect` remembers. Raises SettingsError with the option where it cannot be read."""
    from safetensors import SafetensorError

    try:
        return Memory.load(path)
    except (OSError, SafetensorError) as e:
        raise SettingsError(f"{option} {path} cannot be read ({str(e)[:80]}); `zograd protect` makes one") from e


def check_forwards(name: str, estimator: Estimator[Any], *, offload: bool, compiled: bool) -> None:
    """Raise SettingsError for a method that looks into forwards which run in another way."""
    refused = {
        "offload": offload and estimator.watches,
        "compile": compiled and (estimator.watches or isinstance(estimator, FromBlocks)),
    }
    if option := next((option for option, given in refused.items() if given), None):
        raise SettingsError(f"--method {name} does not go with --{option} in this release; leave one out")


def check_slots(method: Method[Any], offloaded: bool) -> None:
    """Raise SettingsError for a method with d-sized slots whose trained weights are offloaded: slots are not."""
    large = [name for name, slot in method.slots.items() if not isinstance(slot, PerRow | PerColumn | PerLeaf)]
    if large and offloaded:
        factored = isinstance(method.estimator, FromBlocks)
        instead = "--set moments=factored" if factored else "a method without slots, such as zo_sgd or fzoo"
        raise SettingsError(
            f"method {method.name!r} keeps {', '.join(large)} for every trained weight, and --offload moves weights "
            f"only; choose {instead}, or --train lora"
        )


def rate_of_blocks(s: TrainSettings, shape: Shape) -> float:
    """The default rate of a method on blocks for such a model."""
    return language_model(s.method, onto_of(s), shape)["lr"]


def onto_of(s: TrainSettings) -> Onto:
    """How the menu's numbers change for what is trained."""
    if loading.is_scales(s.train):
        return FULL if s.method in ("hozo", "qzo") else SCALES
    return {"lora": LORA, "polar": POLAR, "prompt": TOKENS, "prefix": TOKENS}.get(s.train, FULL)


def shape_of(model: Any, layers: int | None) -> Shape:
    """The width of a model, and the number of its blocks that are trained."""
    depth = len(loading.blocks(model))
    config = loading.plain_model(model).config.get_text_config()
    width = getattr(config, "hidden_size", None)
    if width is None:  # convolutions: the channels that enter the head
        width = next(p.shape[-1] for p in loading.head_of(model).values() if p.ndim == 2)
    return Shape(width, depth if layers is None else min(layers, depth))


def ride_along(method: Method[Any]) -> bool:
    """Whether each move of a method is along one product of signs (`RankOne`), without slots or weight decay.

    Such moves may be deferred for several steps: forwards add them as further sides of their probes.
    """
    one = type(method.rule) is SGD and method.estimator.n == 1
    return one and isinstance(method.law, RankOne) and not method.slots and not method.weight_decay
