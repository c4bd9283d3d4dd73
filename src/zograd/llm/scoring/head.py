"""Logits of a language model from its last hidden states: from rows of its output matrix, or by its own forward.

Most models compute W h + b, some with a cap (Gemma 2); then only the wanted rows of W are read. Others scale the
result, transform h first, or have adapters on W. One forward of the model shows which is the case (`observe`). For the
other models, the model's own forward runs on from the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.lens.parameters import WatchedParameter, lenses
from zograd.llm.loading import ModelError, vocabulary

OWN = 1 << 24
"""Number of logits of the model's own forward in memory at a time (64 MiB of float32)."""
FEW = (5, 3, 7, 4, 6)
"""Tokens for the test forward of a model if there is no example."""


@dataclass(frozen=True)
class LogitsPath:
    """How a model computes logits: `stem` ends with the hidden states; plain: logits are W h + b, up to a cap."""

    stem: nn.Module
    plain: bool


@dataclass(frozen=True)
class Observed:
    """Hidden states after the same tokens with two sets of later ones, and the logits after the first, [vocabulary]."""

    states: tuple[Tensor, Tensor]
    logits: Tensor


_paths: WeakKeyDictionary[nn.Module, LogitsPath] = WeakKeyDictionary()


def backbone_of(base: Any) -> Any:
    """The part of a transformers model that ends with the hidden states. Raises ModelError if there is none."""
    if not hasattr(base, base.base_model_prefix):
        raise ModelError(f"{type(base).__name__} has no separate part that ends with the hidden states")
    return getattr(base, base.base_model_prefix)


def nearly_equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether |a - b| <= tolerance |b|; true if one of them is not finite."""
    a, b = a.float(), b.float()
    return not bool((a - b).norm() > tolerance * b.norm())


def rounding(dtype: torch.dtype) -> float:
    """Relative difference below which two computations of the same logits count as equal."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.02


# ---- how a model computes logits -------------------------------------------------------------------------------------


@torch.no_grad()
def observe(base: Any, ids: list[int], device: torch.device) -> Observed:
    """Run one forward of the model and remember how it computes its logits. Cost: that forward, of two rows of tokens.

    Raises ModelError if the model's own forward, started at the hidden states, does not give its logits.
    """
    same = (len(ids) + 1) // 2
    other = ids[:same] + [token - 1 if token else 1 for token in ids[same:]]
    called: list[nn.Module] = []
    outputs: list[Any] = []

    def enter(module: nn.Module, _: Any) -> None:
        called.append(module)

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        if module is called[0]:  # the outermost module that the forward calls first
            outputs.append(output)

    with ExitStack() as stack:
        for module in base.modules():
            if module is not base:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        own: Tensor = base(input_ids=torch.tensor([ids, other], device=device), use_cache=False).logits
    hidden, logits = outputs[0][0], own[0, -1].float()
    _paths[base] = LogitsPath(called[0], _plain(base, hidden[0, -1:], logits))
    if not _paths[base].plain and not nearly_equal(own_logits(base, hidden[0, -1:])[0], logits, rounding(base.dtype)):
        raise ModelError(
            f"the logits of {type(base).__name__} do not follow from its hidden states alone, so zograd cannot score "
            f"label words or completions with it; train it through zograd.ZOOptimizer with a loss of your own"
        )
    one, two = hidden[:, :same]
    return Observed((one, two), logits)


def _plain(base: Any, hidden: Tensor, logits: Tensor) -> bool:
    """Whether W h + b gives the model's logits."""
    if not readable(base):
        return False
    try:
        found = rows_logits(base, hidden)[0]
    except RuntimeError:  # the head does not fit these states: another layer stands between
        return False
    return found.shape == logits.shape and nearly_equal(found, logits, rounding(base.dtype))


def readable(base: Any) -> bool:
    """Whether the head is a linear layer whose rows can be read, without adapters or wrappers."""
    head = base.get_output_embeddings()
    if hasattr(head, "lookup"):
        return True
    return type(head) is nn.Linear and type(head.weight) in (nn.Parameter, WatchedParameter)


def logits_path(base: Any) -> LogitsPath:
    """How this model computes its logits. The first call runs `observe`, with the weights as they are."""
    if base not in _paths:
        size, device = vocabulary(base), next(base.parameters()).device
        with torch._C.DisableTorchFunction() if lenses.on or lenses.everywhere else nullcontext():
            observe(base, [token % size for token in FEW], device)
    return _paths[base]


def linear_head(base: Any) -> bool:
    """Whether the logits are W h + b, up to the cap of the configuration."""
    return readable(base) and logits_path(base).plain


# ---- the model's own forward -----------------------------------------------------------------------------------------


class _Known:
    """Stands for the output of a stem: it has the hidden states and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _answering(module: nn.Module, output: object) -> Iterator[None]:
    """Inside, a call of the module returns `output`."""
    before = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def own_logits(base: Any, hidden: Tensor) -> Tensor:
    """float32 [N, vocabulary]: logits of the model's own forward from hidden states [N, d]."""
    ids = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    with _answering(logits_path(base).stem, _Known(hidden[:, None])):
        logits: Tensor = base(input_ids=ids, use_cache=False).logits
    return logits[:, 0].float()


def in_parts(base: Any, hidden: Tensor, copies: int) -> Iterator[Tensor]:
    """Hidden states [N, d] in pieces for `own_logits`: a few rows at a time, the same rows of each copy."""
    size = max(1, OWN // (base.config.get_text_config().vocab_size * copies))
    for part in torch.split(hidden.view(copies, -1, hidden.shape[-1]), size, 1):
        yield part.flatten(0, 1)


# ---- logits ----------------------------------------------------------------------------------------------------------


def logits(base: Any, hidden: Tensor, ids: Tensor | None = None, copies: int = 1) -> Tensor:
    """float32 [N, vocabulary or len(ids)]: logits of hidden states [N, d], which hold `copies` copies of a batch."""
    if linear_head(base):
        return rows_logits(base, hidden, ids, copies)
    own = (own_logits(base, part) for part in in_parts(base, hidden, copies))
    chosen = (some if ids is None else some[:, ids] for some in own)
    found = [some.view(copies, -1, some.shape[-1]) for some in chosen]
    return torch.cat(found, 1).flatten(0, 1)


def rows_logits(base: Any, hidden: Tensor, ids: Tensor | None = None, copies: int = 1) -> Tensor:
    """The same for a linear head, from rows of the output matrix."""
    head = base.get_output_embeddings()
    hidden = fitting(head, hidden)
    if ids is None:
        return capped(base, head(hidden))
    if hasattr(head, "lookup") or copies == 1:
        rows = head.lookup(ids).to(hidden.dtype) if hasattr(head, "lookup") else F.embedding(ids, head.weight)
        found = F.linear(hidden, rows, None if head.bias is None else head.bias[ids])
    else:  # each branch has its own rows
        rows = F.embedding(ids.repeat(copies), head.weight).view(copies, len(ids), -1)
        found = torch.bmm(hidden.view(copies, -1, hidden.shape[-1]), rows.transpose(1, 2))
        if head.bias is not None:
            found = found + head.bias[ids.repeat(copies)].view(copies, 1, -1)
        found = found.flatten(0, 1)
    return capped(base, found)


def fitting(head: Any, hidden: Tensor) -> Tensor:
    """Hidden states in the dtype of the output matrix: in some models the residual stream is float32."""
    return hidden if hasattr(head, "lookup") else hidden.to(head.weight.dtype)


def cap_of(base: Any) -> float | None:
    """The bound c of the configuration on logits, c tanh(logits / c); None without one."""
    cap: float | None = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return cap or None


def capped(base: Any, logits: Tensor) -> Tensor:
    """Logits in float32, with the cap of the configuration."""
    cap, logits = cap_of(base), logits.float()
    return logits if cap is None else torch.tanh(logits / cap) * cap
