"""Problems with a language model on a bundled task: adapters or weights of its top blocks, or 4-bit scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from zograd.core.run import Method
from zograd.core.vector import Query
from zograd.oracles import Oracle, sequential
from zograd.problems.problem import Session
from zograd.quantized.infeasible import Probes
from zograd.spaces import PositiveOrthant, Space
from zograd.stores import Store


@dataclass(frozen=True)
class LanguageTask:
    """What problems on a bundled task share: batches of its training examples, judged by held-out ones.

    layers: the top blocks in which something is trained. mu: the radius at which methods are compared.
    """

    name: str
    task: str
    model: str = "smollm2-135m"
    layers: int = 1
    batch: int = 64
    train_examples: int = 1000
    eval_examples: int = 500
    mu: float = 2.0**-7
    radius: ClassVar[float] = 0.0
    matrices: ClassVar[bool] = True
    marks: ClassVar[int] = 5
    units: ClassVar[str] = ""
    """Of mu, as the description says them."""

    def trained(self, top: str) -> str:
        """What is trained, in words. top: the words for its blocks."""
        raise NotImplementedError

    def about(self) -> str:
        top = f"the top {self.layers} block(s) of {self.model}"
        return (
            f"d = {self.dim}: {self.trained(top)}, {self.unit} of {self.terms} examples a step, "
            f"mu = {self.mu:g}{self.units}, {len(self._loaded.held_out)} held-out examples"
        )

    def prepared(self) -> tuple[Any, Any, dict[str, Tensor]]:
        """The model, its tokenizer, and the tensors that are trained."""
        raise NotImplementedError

    @property
    def terms(self) -> int:
        return len(self._loaded.examples)

    @property
    def unit(self) -> int:
        return min(self.batch, self.terms)

    @property
    def dim(self) -> int:
        return sum(t.numel() for t in self._loaded.trained.values())

    @property
    def _loaded(self) -> Loaded:
        return load(self)

    def begin(self, space: Space, seed: int, whole: bool = False) -> Session:
        loaded = self._loaded
        loaded.reset()

        def judge() -> dict[str, float]:
            m = loaded.scorer.evaluate(loaded.held_out)
            return {"value": m.loss, "accuracy": m.value, "calibrated": m.calibrated or 0.0}

        return Session(Store(loaded.trained, space=space), self.oracle(seed, whole), loaded.start_loss, judge)

    def oracle(self, seed: int, whole: bool) -> Oracle:
        """One batch a step: queries with the same key share it. whole: a query without rows takes all examples."""
        from zograd.llm.scoring.batches import Batches

        loaded = self._loaded
        batches = Batches(loaded.examples, self.batch, seed)
        keys: list[int] = []

        def loss(rows: Sequence[int] | None = None) -> Tensor:
            batch = loaded.examples if whole else batches[len(keys) - 1]
            chosen = batch if rows is None else [loaded.examples[i] for i in rows]
            value: Tensor = loaded.scorer.loss(chosen)
            return value

        answer = sequential(loss)

        def evaluate(store: Store, queries: Sequence[Query], key: int) -> Sequence[float]:
            if key not in keys[-1:]:
                keys.append(key)
            return answer(store, queries, key)

        return evaluate


@dataclass(frozen=True)
class LoraTask(LanguageTask):
    """The mean cross-entropy of a task's label words, as a function of LoRA adapters in the top blocks of a model.

    One evaluation is one forward pass over a batch; the activations below the adapters are computed once, so that with
    adapters after the last attention a pass costs one token an example. As a finite
    sum the terms are the training examples. Judged by the loss and the accuracy on held-out examples. Adapters start
    from the same seed in every run; the seed of the run draws the batches.
    """

    targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    rank: int = 8
    kind: ClassVar[str] = "f"

    def trained(self, top: str) -> str:
        return f"LoRA of rank {self.rank} on {', '.join(self.targets)} of {top}"

    def prepared(self) -> tuple[Any, Any, dict[str, Tensor]]:
        """The model, its tokenizer, and the tensors that are trained."""
        from zograd.llm import loading

        model, tokenizer = loading.load(self.model, dtype="float32")
        module = loading.attach_lora(model, loading.LoraSpec(self.rank, targets=self.targets, layers=self.layers), 0)
        return module, tokenizer, loading.select(module, "lora")


@dataclass(frozen=True)
class ScalesTask(LanguageTask):
    """The same loss as a function of the scales of a model whose matrices stay packed in 4 bits (Q4_1).

    Methods of flat space run on log s (`PositiveOrthant`), all but qzo, which is additive with a projection. Judged
    besides by `infeasible`, the share of probes that asked for a scale that is not positive, and `infeasible_scales`,
    the share of such scales among all that were asked for.
    """

    select: str = "scales:mlp"
    kind: ClassVar[str] = "g"
    units: ClassVar[str] = " on log s"

    def trained(self, top: str) -> str:
        return f"{self.select} of {top}, Q4_1"

    def fitted(self, method: Method[Any]) -> Method[Any]:
        return replace(method, space=PositiveOrthant()) if method.space.flat and method.name != "qzo" else method

    def prepared(self) -> tuple[Any, Any, dict[str, Tensor]]:
        """The model, its tokenizer, and the masters of its scales."""
        from zograd.llm import loading

        model, tokenizer = loading.load(self.model, dtype="float32", quantized=True)
        return model, tokenizer, loading.select(model, self.select, layers=self.layers)

    def begin(self, space: Space, seed: int, whole: bool = False) -> Session:
        session = super().begin(space, seed, whole)
        probes = Probes()
        judge = session.judge
        return replace(session, oracle=probes.counted(session.oracle), judge=lambda: {**judge(), **probes.shares()})


@dataclass(frozen=True)
class WeightsTask(LanguageTask):
    """The same loss as a function of weights of the top blocks in float32, chosen by a pattern of names.

    A packed model is de-quantized on loading, so this starts where a `ScalesTask` does.
    """

    select: str = "mlp"
    mu: float = 2.0**-10
    kind: ClassVar[str] = "h"

    def trained(self, top: str) -> str:
        return f"weights {self.select} of {top} in float32"

    def prepared(self) -> tuple[Any, Any, dict[str, Tensor]]:
        """The model, its tokenizer, and the chosen weights."""
        from zograd.llm import loading

        model, tokenizer = loading.load(self.model, dtype="float32")
        return model, tokenizer, loading.select(model, self.select, layers=self.layers)


@dataclass(frozen=True)
class Loaded:
    """A model with its adapters and a task, shared by all runs on the problem."""

    trained: dict[str, Tensor]
    start: dict[str, Tensor]
    scorer: Any
    examples: list[Any]
    held_out: list[Any]

    start_loss: float

    def reset(self) -> None:
        """Adapters as they were drawn."""
        for name, tensor in self.trained.items():
            tensor.data.copy_(self.start[name])


@cache
def load(problem: LanguageTask) -> Loaded:
    """The model with what is trained of it, and the activations of its frozen blocks for all examples."""
    from zograd.hub import load_task
    from zograd.llm.scoring.scorer import Scorer

    task = load_task(problem.task)
    module, tokenizer, trained = problem.prepared()
    module.requires_grad_(False)
    examples = list(task.splits["train"])[: problem.train_examples]
    held_out = list(task.splits["validation"])[: problem.eval_examples]
    scorer = Scorer(module, tokenizer, task, trained=list(trained.values()), cache_prefix=True)
    with torch.no_grad():
        scorer.group([examples, held_out])
        scorer.remember([*examples, *held_out])
    start = {name: tensor.detach().clone() for name, tensor in trained.items()}
    return Loaded(trained, start, scorer, examples, held_out, scorer.evaluate(held_out).loss)


LANGUAGE: dict[str, LoraTask | ScalesTask] = {
    **{f"lora-{task}": LoraTask(f"lora-{task}", task) for task in ("mr", "trec")},
    **{f"scales-{task}": ScalesTask(f"scales-{task}", task) for task in ("mr", "trec")},
}
"""The problems of groups (f) and (g)."""
