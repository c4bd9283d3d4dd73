"""What `zograd train` does where no method is named: the part, the method, and how long."""

from __future__ import annotations

from typing import Any

from zograd.llm.clock import about
from zograd.llm.loading import ADAPTERS, PARTS, is_scales
from zograd.llm.schedule import SHAPES
from zograd.llm.settings import NO_END, SettingsError, TrainSettings
from zograd.methods import MENU

STEPS = TrainSettings.model_fields["steps"].default
BUDGETS: dict[str, tuple[int, int | None]] = {"small": (1, 1000), "medium": (4, 4000), "large": (16, None)}
"""Of each budget: by what the steps are multiplied, and how many training examples are used."""

BLOCKS = 4
"""The last blocks that are trained. Residual feedback sees their gradient: cosines of 0.65 to 1 in a model of 30 blocks
(`benchmarks.cosines`). The states below them are computed once."""


WARMUP = 10
"""Steps over which the rate rises, at most a tenth of all. Adam's first steps move every weight by the whole rate,
whatever its gradient: without a warm-up the loss doubles in them."""


def chosen(s: TrainSettings, world: int = 1) -> tuple[TrainSettings, str]:
    """The settings with a method in place of "auto", and a sentence that says which and why; "" for a named method.

    A named one whose gradients come from blocks moves by Adam, and gets its warm-up.

    `residual` on the last `BLOCKS` blocks of a dense model, or on their adapters in a packed, quantized or offloaded
    one, with 100 steps of 32 examples and a cosine schedule after a warm-up; `backprop` with states that are computed
    again where more blocks are asked for, or a pattern, which may be in all blocks; `zo_sgd` where a setting asks for
    what only evaluations have. Every setting that was given stays. `budget` becomes steps and training examples; with
    `seconds`, no number of steps ends the run, unless one is given.

    Raises SettingsError for a budget beside a number of steps.
    """
    if s.method != "auto":
        new = s.model_copy(update=_length(s, STEPS))
        by_blocks = s.method in MENU and MENU[s.method].needs == "blocks"  # an unknown name is refused later
        return warmed(new) if by_blocks else new, ""
    asks = {
        "a batch is cut into parts": s.shards not in (None, world),
        "the processes share directions": s.parallel != "data",
        "compiled blocks have no derivative here": bool(s.compile),
        "a radius is given": s.mu is not None,
        "points are to share a forward": s.together is not None,
        "the learning rate is to be measured": s.lr == "auto",
        "one of its settings is given": bool(s.method_settings),
        f"the objective {s.objective} has no derivative": s.objective != "loss",
        "virtual tokens stand in front of all blocks": s.train in PARTS,
        "directions are kept off a memory": s.protect is not None,
    }
    if reason := next((reason for reason, holds in asks.items() if holds), ""):
        new = s.model_copy(update={"method": "zo_sgd", **_length(s, STEPS)})
        return new, f"training by zo_sgd, because {reason}"
    narrow = s.quantized or s.quantize is not None or s.offload is not None
    recipe: dict[str, Any] = {"steps": 100, "batch_size": 32, "lr_schedule": "cosine", "lr_end": 0.05}
    recipe |= {"train": "lora"} if narrow else {}
    if s.train in ("full", *ADAPTERS) or is_scales(s.train):  # a pattern says itself where its tensors are
        recipe["layers"] = BLOCKS
    taken = {name: value for name, value in recipe.items() if name not in s.model_fields_set}
    new = s.model_copy(update={"method": "residual", **taken, **_length(s, recipe["steps"])})
    if new.layers is None or new.layers > BLOCKS:
        new = new.model_copy(update={"method": "backprop", "method_settings": {"recompute": True}})
        return warmed(new), (
            f"training {_part(new)} by backprop, {_lasts(new)} of {new.batch_size} examples, because it is their exact "
            f"gradient; most hidden states are computed again to save memory (--method, --train, --layers choose "
            f"others)"
        )
    return warmed(new), (
        f"training {_part(new)} by residual, {_lasts(new)} of {new.batch_size} examples, because it learns more "
        f"from a forward pass than methods that need losses alone (--method, --train, --steps choose others)"
    )


def warmed(s: TrainSettings) -> TrainSettings:
    """With a warm-up, unless one is given, or a table of rates, which has its own."""
    if "warmup" in s.model_fields_set or s.lr_schedule not in SHAPES:
        return s
    return s.model_copy(update={"warmup": min(WARMUP, s.steps // 10)})


def instead(s: TrainSettings, reason: str, *, exact: bool) -> tuple[TrainSettings, str]:
    """The settings in place of those of `chosen` for a model that residual feedback does not fit, and a sentence.

    exact: whether its blocks can be differentiated: then `backprop`, which is exact. Otherwise `zo_sgd` with a measured
    rate.
    """
    if exact:
        new = s.model_copy(update={"method": "backprop", "method_settings": {}})
        return new, (
            f"training {_part(new)} by backprop, their exact gradient, {_lasts(new)} of {new.batch_size} "
            f"examples, because {reason}"
        )
    layers = s.layers if s.train in ADAPTERS else None  # adapters are there already
    rate: dict[str, Any] = {"lr": "auto", "lr_schedule": "constant", "warmup": 0}
    new = s.model_copy(update={"method": "zo_sgd", "method_settings": {}, "layers": layers, **rate})
    return new, f"training {_part(new)} by zo_sgd with a measured rate, {_lasts(new)}, because {reason}"


def for_depth(why: str, s: TrainSettings, depth: int) -> str:
    """The sentence of `chosen` or `instead` for a model of so many blocks: no more than those are its last ones."""
    if s.layers is None or s.layers <= depth:
        return why
    return why.replace(_part(s), _part(s.model_copy(update={"layers": depth})), 1)


def _length(s: TrainSettings, steps: int) -> dict[str, Any]:
    """What `budget` and `seconds` change, of a method that takes so many steps by default.

    Raises SettingsError for a budget beside a number of steps.
    """
    given = s.model_fields_set
    if s.seconds is not None:
        return {} if "steps" in given else {"steps": NO_END}
    if s.budget is None:
        return {}
    if "steps" in given:
        raise SettingsError(f"--budget {s.budget} chooses the steps, and --steps {s.steps} is given: leave one out")
    factor, examples = BUDGETS[s.budget]
    found: dict[str, Any] = {"budget": None, "steps": factor * steps}
    return found if "train_examples" in given else {**found, "train_examples": examples}


def _lasts(s: TrainSettings) -> str:
    return (
        f"{s.steps:,} step{'' if s.steps == 1 else 's'}" if s.steps < NO_END else f"{about(s.seconds or 0.0)} in steps"
    )


def _part(s: TrainSettings) -> str:
    named = {"full": "the weights", "lora": "LoRA adapters", "polar": "PoLAR adapters", "scales": "the scales"}
    what = named.get(s.train, f"{s.train!r}")
    if s.layers is None:
        return what
    return f"{what} of the last {f'{s.layers} blocks' if s.layers > 1 else 'block'}"
