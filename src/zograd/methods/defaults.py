"""What each entry point takes where a setting is not given, in one table.

    entry point                             lr                                          mu
    the menu itself, `ZOOptimizer("name")`  the paper's, for all weights of a           the menu's
                                            language model
    `minimize`, `AskTell` with a name       `TrustRate()` where estimator and rule      "auto"
                                            allow it, with `pairs(dim)` directions a
                                            step; `zo_sgd` with central="auto"
                                            otherwise "auto", or `BLACK_BOX_LR`         the menu's
    `zograd train`, full weights            the menu's                                  the menu's
    `zograd train --train lora`             the menu's times `LORA.lr`                  `LORA.mu`
    `zograd train --train polar`            the menu's times `POLAR.lr`                 `POLAR.mu`
    `zograd train --train prompt`, `prefix` the menu's times `TOKENS.lr`                `TOKENS.mu`
    `zograd train --train scales`           the menu's times `SCALES.lr`                `SCALES.mu`
    `zograd train`, gradients from blocks   `Shape.lr` times `Onto.blocks`              the menu's

`hozo` and `qzo` are made for scales, and keep their own numbers on them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, NamedTuple

from zograd.core.method import Method
from zograd.estimators.blockwise import needs_blocks
from zograd.learning_rate import TrustRate
from zograd.methods.menu import MENU, describe, make

BLACK_BOX_LR = 1e-2
"""For names whose move has a length of its own (signs, ranks, Adam) or whose edge of stability is not known."""


LARGE = 100_000
"""Variables above which memory and moves count: x0 is not copied, the best point not kept, and a step has one pair."""

BUDGET = 15_000
"""Evaluations that `minimize` makes at most where no budget is given: those of SciPy's L-BFGS-B."""


def pairs(dim: int) -> int:
    """Directions a step where the menu has one and the rate is measured.

    Several average the noise of an estimate and of the measured rate. Above `LARGE` numbers, a step that moves
    all of them costs as much as its evaluations, and one pair is as good for each evaluation by central differences.
    """
    return 1 if dim > LARGE else 8 if dim >= 50 else 4


class Onto(NamedTuple):
    """How the menu's numbers change where another part of a model is trained."""

    lr: float
    """Factor on the menu's learning rate."""
    mu: float | None
    """The radius; None: the menu's."""
    blocks: float = 1.0
    """The factor for methods whose gradients come from blocks: Adam's rate for adapters over that for whole weights."""


FULL = Onto(1.0, None)
LORA = Onto(100.0, 2.0**-7, 5.0)
"""MeZO's ratio of the learning rate for LoRA (1e-4) to that for full weights (1e-6); its radius for LoRA is 1e-2."""
POLAR = Onto(100.0, 2.0**-7, 20.0)
"""Those of LoRA, as T starts at 0 where B does; on blocks four times its rate, which ended lower (docs/log.md).

A probe moves a column of X or Y, n numbers of norm 1, by mu sqrt(n)."""
TOKENS = Onto(1e4, 2.0**-3)
"""For virtual tokens: MeZO's ratio of the learning rate for prefixes (1e-2) to that for full weights, near its 1e-1."""
SCALES = Onto(1000.0, 2.0**-7, 10.0)
"""Scales move in relative units, as `hozo` does: its learning rate (1e-3) over that of `zo_sgd` (1e-6)."""


POST_NORM = 0.1
"""Adam's rate where a norm stands behind the sum, over that where blocks add. At the whole rate MiniLM-L6 ends at
chance on `mr`."""


TEXTS = 0.3
"""Adam's rate where all tokens of a text are learned, over that for the label of a text. One seed of the completions of
`benchmarks.defaults` ends at a perplexity of 62.5 with it, at 92.4 with --lr 1e-3 and at 64.2 with --lr 1e-4."""


class Shape(NamedTuple):
    """What Adam's learning rate depends on: the width of a model, how many of its blocks are trained, if they add, and
    whether texts are learned, not labels."""

    width: int
    blocks: int
    adds: bool = True
    texts: bool = False

    @property
    def lr(self) -> float:
        """1.15 / (width sqrt(blocks)) for whole weights and labels.

        Fitted in SmolLM2-135M (width 576) to the best rates of one block (2e-3), four (1e-3) and all 30 (2e-4); the
        width as in Yang et al. 2022 (arXiv 2203.03466): Adam's rate of a matrix falls with its inputs.
        """
        factor = (1.0 if self.adds else POST_NORM) * (TEXTS if self.texts else 1.0)
        return factor * 1.15 / (self.width * math.sqrt(self.blocks))


def black_box(name: str, dim: int, **settings: Any) -> Method[Any]:
    """The method of that name with the defaults of `minimize` and `AskTell`, for dim numbers. ValueError: it has none.

    Directions that are orthogonal are no more than dim; a population has the size that its paper takes in dim.
    settings: in place of the defaults; with an lr among them, mu is the menu's. TypeError: it takes gradients from the
    blocks of a language model.
    """
    line = describe(name)
    if MENU[name].needs == "blocks":
        raise TypeError(needs_blocks(name))
    if missing := [setting for setting in line["required"] if setting not in settings]:
        setting = missing[0]
        rate = ", lr='auto'" if "lr" in line["defaults"] else ""  # the menu's own is for language models
        raise ValueError(
            f"{name} has no default for {setting!r}; pass methods.{name}({setting}=...{rate}) for its name, or in "
            f"minimize options={{{setting!r}: ...}} beside it"
        )
    given: dict[str, Any] = {"n": min(line["defaults"]["n"], dim)} if line["law"] == "Orthogonal" else {}
    given |= MENU[name].sized(dim)
    if "lr" not in line["defaults"] or "lr" in settings:
        return make(name, **(given | settings))
    one = line["estimator"] == "Central" and line["defaults"].get("n") == 1
    several: dict[str, Any] = {"n": pairs(dim)} if one else {}
    if line["defaults"].get("central") is True:
        several["central"] = "auto"
    for tuned in ({"lr": TrustRate(), "mu": "auto"} | several, {"lr": "auto"}):
        with suppress(ValueError):  # the method says so itself where its rate cannot be measured
            made = make(name, **(tuned | given | settings))
            if not made.rule.preconditions:  # Adam's rate is measured on request: that takes points of its own
                return made
    return make(name, **({"lr": BLACK_BOX_LR} | given | settings))


def language_model(name: str, onto: Onto, shape: Shape | None = None) -> dict[str, float]:
    """lr and mu of that name for a part of a language model; only those that the method has.

    shape: of the model, for methods whose gradients come from its blocks. Their lr has two digits, as it is shown.
    """
    menu, of_blocks = describe(name)["defaults"], MENU[name].needs == "blocks"
    if of_blocks and shape is not None:
        return {"lr": float(f"{shape.lr * onto.blocks:.2g}")}
    lr = {"lr": menu["lr"] * (onto.blocks if of_blocks else onto.lr)} if "lr" in menu else {}
    return lr | ({"mu": menu["mu"] if onto.mu is None or of_blocks else onto.mu} if "mu" in menu else {})
