"""Two ranks against one: the same bits, few bytes, and no rank that continues alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import processes
import pytest
import torch

from zograd import Run, Store
from zograd.distributed import Peers, joined, shared
from zograd.oracles import sequential


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    return processes.run_two(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def one() -> dict[Any, Any]:
    """The same cases in this process alone."""
    return processes.sharing(Peers())


@pytest.mark.parametrize("case", processes.CASES, ids=lambda c: f"{c[0]}, {c[1]} parts, {c[2]}, dropout {c[3]}")
def test_two_ranks_end_at_the_bits_of_one(two: list[dict[str, Any]], one: dict[Any, Any], case: Any) -> None:
    """Weights and tape after six steps, however parts and directions are dealt; with dropout too."""
    assert two[0]["sharing"][case][:2] == two[1]["sharing"][case][:2] == one[case][:2]


def test_parts_of_the_batch_and_not_ranks_decide_on_the_bits(one: dict[Any, Any]) -> None:
    """The tape depends on the number of parts, not on the process that evaluates them: two and three parts differ."""
    tape = {
        (parts, deal): one["two points", parts, deal, 0.0][1] for parts, deal in [(2, "data"), (2, "both"), (3, "both")]
    }
    assert tape[2, "data"] == tape[2, "both"]
    assert tape[2, "data"] != tape[3, "both"]


def test_a_two_point_step_sends_at_most_100_bytes(two: list[dict[str, Any]], one: dict[Any, Any]) -> None:
    """8 bytes of status and 8 for each of the evaluations of a rank."""
    sent = {case: rank["sharing"][case][2] for rank in two for case in processes.CASES if case[0] == "two points"}
    assert all(0 < size <= 100 for size in sent.values())
    assert sent["two points", 2, "data", 0.0] == 8 + 2 * 8
    assert sent["two points", 1, "directions", 0.0] == 8 + 8
    assert all(size == 0 for *_, size in one.values())


def test_a_nan_on_one_rank_is_refused_by_all(two: list[dict[str, Any]]) -> None:
    assert two[0]["failing"]["nan"] == two[1]["failing"]["nan"]
    assert two[0]["failing"]["nan"][2] == [False, False, True, False, False, False]


def test_an_error_on_one_rank_stops_all_before_anything_moves(two: list[dict[str, Any]], one: dict[Any, Any]) -> None:
    """Rank 1 raises its own error, rank 0 one that names rank 1; taken again, the step is the undisturbed one."""
    errors = [rank["failing"]["error"] for rank in two]
    assert errors[0][0] == "PeersError"
    assert "rank 1" in errors[0][1]
    assert errors[1] == ("KeyError", "'the disk of rank 1'")
    assert all(rank["failing"]["unmoved"] for rank in two)
    assert all(rank["failing"]["again"] == one["two points", 2, "data", 0.0][:2] for rank in two)


def test_ranks_that_differ_all_stop(two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert "after 3 steps the tape of rank 1" in rank["differing"]["history"]
        assert rank["differing"]["weights"] == "the weights of rank 1 differ from those of rank 0"
        assert rank["differing"]["split"] == "nothing"
    assert [rank["differing"]["together"] for rank in two] == ["PeersError", "FileNotFoundError"]


def test_a_wish_to_stop_reaches_all_after_the_same_exchange(two: list[dict[str, Any]]) -> None:
    assert all(rank["differing"]["stop"] == [False, True, False] for rank in two)


def test_totals_and_broadcasts(two: list[dict[str, Any]]) -> None:
    assert all(rank["differing"]["total"] == [1.5, 2.5] for rank in two)
    assert all(rank["differing"]["broadcast"] == (b"a tape", b"") for rank in two)


def test_a_late_rank_catches_up_from_the_tape(two: list[dict[str, Any]], one: dict[Any, Any]) -> None:
    """Rank 0 made four steps alone; after its tape was sent, six steps end where six undisturbed ones do."""
    assert two[0]["late"] == two[1]["late"]
    assert two[0]["late"][1] == one["two points", 2, "data", 0.0][0]


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_a_lost_rank_raises_on_the_others(two: list[dict[str, Any]], how: str) -> None:
    """A silent rank is noticed by the timeout of the group, while it is silent; a closed connection needs none."""
    assert "lost them" in two[0][how]
    assert two[1][how] == {"silent": "rank 0 knew while this rank was silent", "gone": "gone"}[how]


# ---- weights that are split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["two points", "adam"])
def test_fsdp_moves_as_whole_weights_do(two: list[dict[str, Any]], method: str) -> None:
    """Six steps under `fully_shard`: the losses and gathered weights of an unsharded run, bit for bit, by the lens."""
    for rank in two:
        found = rank["split"][f"fsdp {method}"]
        assert found["losses"]
        assert found["weights"] == []
        assert found["escaped"] == set()
    held = [rank["split"][f"fsdp {method}"]["held"] for rank in two]
    assert held[0][0] + held[1][0] == held[0][1] == held[1][1]
    assert 0 < held[0][0] < held[0][1]


def test_tensor_parallel_weights_replay_to_the_whole_ones(two: list[dict[str, Any]]) -> None:
    """Column- and row-parallel layers: their loss at a point, and the moves of six steps replayed on whole weights."""
    for rank in two:
        here, there = rank["split"]["tensor parallel loss"]
        assert math.isclose(here, there, rel_tol=1e-6)
        assert rank["split"]["tensor parallel"]["weights"] == []
        assert rank["split"]["tensor parallel"]["escaped"] == set()
    boxes = [rank["split"]["tensor parallel"]["boxes"] for rank in two]
    assert boxes[0]["0.weight"] == ((0, 4), (0, 6))
    assert boxes[1]["3.weight"] == ((0, 5), (4, 8))


def test_what_split_weights_cannot_do_is_refused(two: list[dict[str, Any]]) -> None:
    """Evaluations that do not deal evenly would hang in the forward; a law that sorts whole tensors sees only parts."""
    for rank in two:
        assert "do not deal evenly" in rank["split"]["uneven"]
        assert "SmallWeights looks at whole tensors" in rank["split"]["rows"]


# ---- alone -----------------------------------------------------------------------------------------------------------


def test_one_part_alone_is_the_sequential_oracle() -> None:
    digests = []
    for oracle in (
        lambda net, loss: sequential(lambda: loss(net, 0)),
        lambda net, loss: shared(lambda part, rows=None: loss(net, part), Peers()),
    ):
        net = processes.network(dropout=0.5)
        run = Run(Store(dict(net.named_parameters())), processes.METHODS["five points"](), seed=2)
        _, loss = processes.cut(1)
        digests.append(processes.outcome(run, [run.step(oracle(net, loss)) for _ in range(5)]))
    assert digests[0] == digests[1]


def test_joined_without_torchrun_is_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined() as peers:
        assert (peers.rank, peers.world, peers.stopping(True), peers.broadcast(b"x")) == (0, 1, True, b"x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": (0.5, 0.6)}, "sum to 1"),
        ({"weights": ()}, "sum to 1"),
        ({"deal": "batches"}, "'data', 'directions' or 'both'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared(lambda part, rows=None: 0.0, Peers(), **arguments)


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout=0 must be > 0"), joined(timeout=0):
        pass


def test_terms_of_a_sum_are_one_part() -> None:
    """A query of single terms reaches the loss when there is one part, and is refused when there are more."""
    seen: list[Any] = []
    store = Store({"x": torch.zeros(3)})
    query = processes.Query(rows=(2, 5))

    def loss(part: int, rows: Any = None) -> float:
        seen.append((part, rows))
        return float(store.leaves[0].tensor.sum())

    assert shared(loss, Peers())(store, [query], 0) == [0.0]
    assert seen[0] == (0, (2, 5))
    with pytest.raises(TypeError, match="use one part"):
        shared(loss, Peers(), weights=(0.5, 0.5))(store, [query], 0)


@pytest.mark.parametrize("way", ["closure", "hybrid"])
def test_a_closure_in_several_processes_is_told_once_by_each(two: list[dict[str, Any]], way: str) -> None:
    """Each rank has other data, so weights drift apart; the warning names the remedy."""
    for rank in two:
        (said,) = rank["doors"][way][0]
        assert said.startswith("2 processes run here, and each moves by the loss of its own closure")
        assert "zograd.distributed.shared" in said
    assert two[0]["doors"][way][1] != two[1]["doors"][way][1]


def test_the_own_ways_of_several_processes_say_nothing(two: list[dict[str, Any]]) -> None:
    """Shared losses under DDP end at the same weights; FSDP's weights are split, and its forward is of all ranks."""
    for rank in two:
        assert rank["doors"]["shared"][0] == rank["doors"]["fsdp"][0] == []
    assert two[0]["doors"]["shared"][1] == two[1]["doors"]["shared"][1] != two[0]["doors"]["closure"][1]


@pytest.mark.parametrize("deal", ["data", "directions", "both"])
def test_parts_have_random_numbers_of_their_own_and_all_points_of_a_part_share_them(deal: Any) -> None:
    """With one mask for all parts, the examples of different parts would lose the same units."""
    seen: dict[int, list[tuple[float, ...]]] = {}

    w = torch.ones(3)

    def loss(part: int, rows: Any = None) -> torch.Tensor:
        seen.setdefault(part, []).append((float(torch.rand(())), float(np.random.rand())))  # noqa: NPY002
        return w.sum()

    run = Run(Store({"w": w}), processes.METHODS["five points"](), seed=2)
    run.step(shared(loss, Peers(), weights=[0.25, 0.25, 0.5], deal=deal))
    assert [len(draws) for _, draws in sorted(seen.items())] == [5, 5, 5]
    assert [len(set(draws)) for draws in seen.values()] == [1, 1, 1]
    assert len({draws[0] for draws in seen.values()}) == 3


def test_dropout_of_two_parts_is_that_of_different_units() -> None:
    """The mean over the same examples cut in two differs from part to part: their masks are not one mask."""
    dropout, w, values = torch.nn.Dropout(0.5), torch.ones(64), {}

    def loss(part: int, rows: Any = None) -> torch.Tensor:
        values[part] = dropout(w * torch.arange(1.0, 65.0)) > 0
        return w.sum()

    run = Run(Store({"w": w}), processes.METHODS["two points"](), seed=2)
    run.step(shared(loss, Peers(), weights=[0.5, 0.5]))
    assert not torch.equal(values[0], values[1])
