"""A language model, a batch of random tokens, and three ways to spend forward passes on it.

Plain forwards and the baseline loop take the loss of transformers (the causal language-model loss on fixed token ids).
A step of zograd takes the same loss from `causal_losses`, its points in one forward where that pays, and makes the move
of the step before in passing. Random ids cost what text costs; the loss itself is of no interest.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from zograd import methods
from zograd.bench.baseline import mezo_step
from zograd.core.run import Method, Run
from zograd.errors import UsageError
from zograd.llm.loading import load
from zograd.llm.method import ride_along
from zograd.llm.scoring.loss import causal_losses
from zograd.llm.scoring.scorer import SATURATED
from zograd.noise import backend, fold
from zograd.oracles import Oracle, batched
from zograd.stores import Store
from zograd.stores.deferred import LIMIT

LR = 1e-9
"""Small enough that the weights stay where they are over a benchmark, and not 0, so that every pass is made."""


class TimedModel:
    """The model with its run.

    law: of directions, in place of the method's. together: points that share a forward (None: as many as make
    `SATURATED` tokens of it).

    forwards(k): k plain forwards of the unmodified model without gradients. step(): one step of the method.
    baseline(): one step of `bench.baseline`. All three finish their work on the device before they return.

    Raises ModelError when the model cannot be loaded, ValueError for a method not on the menu.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int,
        seq_len: int,
        dtype: str,
        method: str,
        device: str,
        seed: int,
        law: str | None = None,
        together: int | None = None,
    ) -> None:
        if batch_size < 1 or seq_len < 2:
            raise UsageError(
                f"a batch of {batch_size} sequences of {seq_len} tokens has no next token to predict; "
                f"use batch_size >= 1 and seq_len >= 2"
            )
        self.device, self.seed = torch.device(device), seed
        self.method = method_named(method, law)
        self.together = together or max(1, SATURATED // (batch_size * seq_len))
        self.model, _ = load(model, dtype=dtype, device=device)
        # Loaded weights may be pages of the file; a private copy makes the memory of all three ways comparable.
        for p in self.model.parameters():
            p.data = p.data.clone()
        generator = torch.Generator().manual_seed(seed)
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.ids = torch.randint(0, vocabulary, (batch_size, seq_len), generator=generator).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self.dim = sum(p.numel() for p in self.parameters.values())
        self.weights_bytes = sum(p.numel() * p.element_size() for p in self.parameters.values())
        self._steps = 0

    @cached_property
    def run(self) -> Run[Any]:
        """Made with the first step, so that its slots are no part of what inference needs."""
        store = Store(self.parameters, space=self.method.space)
        run = Run(store, self.method, self.seed)
        store.deferred.start(store.leaves, merge=ride_along(run.method))  # as in training
        return run

    @cached_property
    def oracle(self) -> Oracle:
        """The points of a step, with the loss of `loss` for each."""
        return batched(lambda copies: causal_losses(self.model, self.ids, copies=copies), self.together)

    def loss(self) -> float:
        model: Any = self.model
        return float(model(input_ids=self.ids, labels=self.ids, use_cache=False).loss)

    @torch.no_grad()
    def forwards(self, k: int) -> None:
        for _ in range(k):
            self.loss()
        self._finish()

    def step(self) -> None:
        with warnings.catch_warnings():  # that such a small lr vanishes in 16 bits is meant
            warnings.filterwarnings("ignore", "this step changed", UserWarning)
            if self.run.step_number % LIMIT == 0:
                self.run.store.make_moves()
            self.run.step(self.oracle)
        self._finish()

    def baseline(self) -> None:
        self._steps += 1
        seed = fold(self.seed, self._steps) % 2**63
        mezo_step(list(self.parameters.values()), self.loss, lr=LR, seed=seed)
        self._finish()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def description(self) -> dict[str, Any]:
        """What was measured on: model size, dtype, noise backend, threads, versions."""
        import transformers

        return {
            "params": self.dim,
            "weights_bytes": self.weights_bytes,
            "batch_size": self.ids.shape[0],
            "seq_len": self.ids.shape[1],
            "dtype": str(next(iter(self.parameters.values())).dtype).removeprefix("torch."),
            "method": self.method.name,
            "law": type(self.method.law).__name__,
            "together": self.together,
            "device": str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "backend": backend(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def method_named(name: str, law: str | None = None) -> Method[Any]:
    """The menu entry with its defaults, a learning rate of almost 0, and a law if one is named.

    Raises ValueError when it has no defaults, or takes no law.
    """
    if needed := methods.describe(name)["required"]:
        raise UsageError(f"{name} needs {', '.join(needed)}, for which there is no default; measure another method")
    return methods.make(name, lr=LR, **({} if law is None else {"law": law}))


@contextmanager
def quiet_machine(threads: int | None) -> Iterator[None]:
    """Inside, torch uses `threads` threads (None: as before); at the end its threads and random state are as before."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    gc.collect()  # a model that an earlier benchmark left behind would count in this one's memory
    before = torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
