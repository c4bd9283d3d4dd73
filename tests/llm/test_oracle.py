"""The oracle of a batch: it evaluates its own batch, and what one batch shows about the model holds for the next."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zograd as zo
from zograd.core.run import Record
from zograd.core.vector import Query
from zograd.distributed import Peers
from zograd.hub import Example, Task
from zograd.llm import loading
from zograd.llm.oracle import TOGETHER, BatchOracle, points_of
from zograd.llm.scoring import Scorer
from zograd.llm.settings import TrainSettings
from zograd.quantized.infeasible import Probes

EXAMPLES = [Example(f"{'very ' * k}good It was", k % 2) for k in range(8)]


@pytest.fixture
def scorer(tiny_model: Path) -> Scorer:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    return Scorer(model, tokenizer, Task("toy", "{text}", (" terrible", " great"), {"train": EXAMPLES}, "made", "none"))


@pytest.fixture
def run(scorer: Scorer) -> zo.Run:
    return zo.Run(zo.Store(loading.select(scorer.model, "full")), zo.methods.fzoo(n=3, lr=1e-4))


def test_an_oracle_keeps_its_batch_when_another_one_is_made(scorer: Scorer, run: zo.Run) -> None:
    oracles = BatchOracle(scorer, TrainSettings(together=2), Peers())
    first, second = oracles(EXAMPLES[:4]), oracles(EXAMPLES[4:])
    queries = run.ask()
    for oracle, batch in ((first, EXAMPLES[:4]), (second, EXAMPLES[4:]), (first, EXAMPLES[:4])):
        expected = points_of(scorer, batch, 1)(run.store, queries, 0)
        assert list(oracle(run.store, queries, 0)) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(points_of(scorer, EXAMPLES[4:], 1)(run.store, queries, 0), rel=1e-5)


def test_a_limit_holds_for_later_batches_and_for_the_peers(
    scorer: Scorer, run: zo.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = Peers()
    oracles = BatchOracle(scorer, TrainSettings(together=4), peers)
    forward = zo.oracles.Batched._forward
    sizes: list[int] = []

    def tight(self, store, group, key):
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(self, store, group, key)

    monkeypatch.setattr(zo.oracles.Batched, "_forward", tight)
    queries = run.ask()
    with pytest.warns(UserWarning, match="now 2"):
        oracles(EXAMPLES[:4])(run.store, queries, 0)
    assert oracles.limit == peers.limit == 2
    sizes.clear()
    oracles(EXAMPLES[4:])(run.store, queries, 0)
    assert max(sizes) == 2


def test_a_resumed_run_keeps_the_limit_of_its_tape(scorer: Scorer, run: zo.Run) -> None:
    record = run.step(lambda store, queries, key: [1.0] * len(queries))
    taken: list[Record] = [replace(record, meters=((TOGETHER, float(k)),)) for k in (8, 3)]
    oracles = BatchOracle(scorer, TrainSettings(together=4), peers := Peers(), taken)
    assert oracles.limit == peers.limit == 3
    oracles.keep_to(1)  # of another process, before this one has evaluated anything
    assert oracles.limit == peers.own_limit() == 1


def test_a_resumed_run_does_not_check_the_model_again(scorer: Scorer, run: zo.Run) -> None:
    """It compared another batch both ways, and gave up where the uninterrupted run had not: other bits from there."""
    losses = scorer.copy_losses
    scorer.copy_losses = lambda batch, copies: losses(batch, copies) + 0.1 * (copies > 1)  # type: ignore[method-assign]
    queries = run.ask()
    with pytest.warns(UserWarning, match="its loss is .* alone and .* beside others. The losses are those of one at a"):
        BatchOracle(scorer, TrainSettings(together=4), Peers())(EXAMPLES[:4])(run.store, queries, 0)
    record = run.step(lambda store, queries, key: [1.0] * len(queries))
    resumed = BatchOracle(scorer, TrainSettings(together=4), Peers(), [record])
    resumed(EXAMPLES[:4])(run.store, run.ask(), 0)
    assert resumed.limit == -1


@pytest.mark.parametrize(("dtype", "same"), [("bfloat16", True), ("float32", False)])
def test_losses_of_16_bits_may_differ(tiny_model: Path, dtype: str, same: bool) -> None:
    """Adapters are float32 on a model in bfloat16, and its losses were compared to 1e-4."""
    model, tokenizer = loading.load(str(tiny_model), dtype=dtype)
    module = loading.attach_lora(model, loading.LoraSpec(2), 0)
    task = Task("toy", "{text}", (" terrible", " great"), {"train": EXAMPLES}, "made", "none")
    scorer = Scorer(module, tokenizer, task)
    losses = scorer.copy_losses
    scorer.copy_losses = lambda batch, copies: losses(batch, copies) * (1 + 0.002 * (copies > 1))  # type: ignore[method-assign]
    run = zo.Run(zo.Store(loading.select(module, "lora")), zo.methods.fzoo(n=3, lr=1e-4))
    points = points_of(scorer, EXAMPLES[:4], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points(run.store, run.ask(), 0)
    assert points.given_up is not same


def test_probes_are_counted_over_all_oracles() -> None:
    store = zo.Store({"s": torch.tensor([1.0, 0.5, -0.25])})
    probes, query = Probes(), Query()
    for value in (1.0, 2.0):
        assert probes.counted(lambda store, queries, key, value=value: [value])(store, [query], 0) == [value]
    assert (probes.probes, probes.infeasible, probes.elements, probes.infeasible_elements) == (2, 2, 6, 2)
    assert probes.shares() == {"infeasible": 1.0, "infeasible_scales": 1 / 3}
