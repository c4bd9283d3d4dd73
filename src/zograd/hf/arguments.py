"""`TrainingArguments` of a first-order script: what was set, and what has another meaning without gradients."""

from __future__ import annotations

import copy
from dataclasses import MISSING, fields
from typing import Any

USELESS = {
    "optim": "the method is the optimizer",
    "optim_args": "the method is the optimizer",
    "optim_target_modules": "the method is the optimizer",
    "adam_beta1": "a method has its own settings",
    "adam_beta2": "a method has its own settings",
    "adam_epsilon": "a method has its own settings",
    "max_grad_norm": "there is no gradient to clip",
    "fp16": "its loss scaler is left out, since nothing is propagated back; the autocast is as usual",
    "neftune_noise_alpha": "every forward is in eval mode, where this noise is off",
}
"""Arguments that a first-order script may set, with the reason why they do nothing here, or less."""

OFF = {"gradient_checkpointing": False, "activation_checkpointing": False, "max_grad_norm": 0.0}
"""Switched off without a word: TRL has the first on by default, and the last is on in every script."""


def was_set(args: Any, name: str) -> bool:
    """Whether an argument differs from the default of its class: a value that was set to the default cannot be told."""
    for field in fields(args):
        if field.name == name:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            return bool(getattr(args, name) != default)
    return False


def learning_rate(args: Any) -> float | None:
    """The learning rate that the user set; None where it is the default of the class, which is one for Adam."""
    return float(args.learning_rate) if args is not None and was_set(args, "learning_rate") else None


def useless(args: Any) -> list[str]:
    """A clause for each argument that was set and has no use here: 'max_grad_norm=0.3 (there is no ...)'."""
    if args is None:
        return []
    return [f"{name}={getattr(args, name)!s} ({why})" for name, why in USELESS.items() if was_set(args, name)]


def settled(args: Any) -> Any:
    """A copy of the arguments with everything off that saves or clips gradients; None stays None."""
    if args is None:
        return None
    settled = copy.copy(args)
    switch_off(settled)
    return settled


def switch_off(args: Any) -> None:
    """Switch off, in place, what saves or clips gradients."""
    for name, value in OFF.items():
        if hasattr(args, name):
            setattr(args, name, value)
