"""AskTell one by one: trials, answers in any order, orders and comparisons, files, strategies of other libraries."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import smooth, start

from zograd import AskTell, methods, minimize
from zograd.api import trials
from zograd.api.trials import Answer, FeedbackError

RANKED = methods.rank(n=5, lr=0.1, mu=0.1)
PAIRS = methods.preference(n=3, lr=0.1, mu=0.1)
TWICE = methods.dap(lr=0.01)
"""It asks twice in a step."""


def by_steps(loop: AskTell, steps: int, f=smooth) -> AskTell:
    while len(loop.records) < steps:
        loop.tell([f(x) for x in loop.ask()])
    return loop


def same(a: AskTell, b: AskTell) -> None:
    np.testing.assert_array_equal(a.x, b.x)
    assert (a.evaluations, len(a.records)) == (b.evaluations, len(b.records))


# ---- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RANKED, PAIRS, TWICE, methods.zo_sgd(lr=0.01, n=3)], ids=lambda m: m.name)
def test_any_order_late_and_repeated_answers_give_the_run_of_ask_and_tell(method: Any) -> None:
    rng = np.random.default_rng(0)
    loop, ids, old = AskTell(start(), method, seed=3), [], []
    while len(loop.records) < 6:
        given = loop.trials()
        ids += [t.id for t in given]
        assert {t.group for t in given} == {given[0].id}
        for k in rng.permutation(len(given)):
            receipt = loop.report(given[k], smooth(given[k].x))
            assert (receipt.status, receipt.trials) == ("counted", (given[k].id,))
            again = loop.report(given[k].id, -1e9)
            assert again.status == ("late" if len(ids) == loop.source.told else "repeated")
            assert again.record is None
        for number in old:
            assert loop.report(number, math.nan).status == "late"
        old = [t.id for t in given]
        assert loop.report(ids[-1] + 1000, 0.0).status == "unknown"
        assert loop.report(-1, 0.0).status == "unknown"
    assert ids == list(range(len(ids)))
    same(loop, by_steps(AskTell(start(), method, seed=3), 6))


def test_the_last_answer_of_a_step_brings_its_record() -> None:
    loop = AskTell(start(), RANKED)
    records = [loop.report(t, smooth(t.x)).record for t in loop.trials()]
    assert records[:-1] == [None] * 4
    assert records[-1] == loop.records[0]


def test_a_failure_ranks_last_or_refuses_the_step() -> None:
    """It refuses the step where the method needs all values."""
    ranked = AskTell(start(), RANKED)
    for t in ranked.trials():
        receipt = ranked.report(t, math.nan if t.id == 0 else smooth(t.x))
    assert receipt.record is not None
    assert not receipt.record.refused
    loop = AskTell(start(), methods.fzoo(n=4))
    first, *others = loop.trials()
    assert loop.report_failure(first).counted
    for t in others:
        receipt = loop.report(t, smooth(t.x))
    assert receipt.record is not None
    assert receipt.record.refused
    np.testing.assert_array_equal(loop.x, start())
    assert loop.evaluations == 5


def test_a_trial_is_given_to_another_after_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(trials, "now", lambda: clock[0])
    loop = AskTell(start(), RANKED, lease=10.0)
    assert [t.id for t in loop.trials(3)] == [0, 1, 2]
    clock[0] += 4
    assert (loop.free, loop.wait) == (2, 0.0)
    assert [t.id for t in loop.trials()] == [3, 4]
    assert (loop.trials(), loop.free, loop.wait) == ([], 0, 6.0)
    loop.report(1, 1.0)
    clock[0] += 6
    again = loop.trials()
    assert [t.id for t in again] == [0, 2]
    assert loop.report(again[0], 5.0).counted  # the first answer counts, whoever gives it
    assert loop.report(0, 7.0).status == "repeated"
    clock[0] += 9.9
    assert [t.id for t in loop.trials()] == [3, 4]


def test_without_a_lease_all_open_trials_are_given_each_time() -> None:
    loop = AskTell(start(), RANKED)
    assert [t.id for t in loop.trials()] == [t.id for t in loop.trials()] == [0, 1, 2, 3, 4]
    assert [[t.id for t in loop.trials(2)] for _ in range(3)] == [[0, 1], [2, 3], [4, 0]]


def test_maximize_is_minimizing_the_negative() -> None:
    up, down = AskTell(start(), RANKED, maximize=True), AskTell(start(), RANKED)
    for _ in range(4):
        for t in up.trials():
            up.report(t, -smooth(t.x))
        down.tell([smooth(x) for x in down.ask()])
    same(up, down)
    assert up.tell([-smooth(x) for x in up.ask()]).loss == down.tell([smooth(x) for x in down.ask()]).loss  # type: ignore[union-attr]


def test_points_have_the_form_of_x0_and_stay_within_the_bounds() -> None:
    x0 = {"a": np.zeros((2, 3)), "b": np.float32(1.0)}
    loop = AskTell(x0, methods.rank(n=4, lr=0.5, mu=2.0), bounds=[(-1, 1)] * 6 + [(0.5, 1.5)])
    for _ in range(5):
        for t in loop.trials():
            assert (t.x["a"].shape, t.x["a"].dtype, t.x["b"].dtype) == ((2, 3), np.float64, np.float32)
            assert np.all(np.abs(t.x["a"]) <= 1)
            assert 0.5 <= t.x["b"] <= 1.5
            loop.report(t, float(np.sum((t.x["a"] - 3) ** 2) + t.x["b"]))
    found = loop.recommend()
    assert np.all(np.abs(found["a"]) <= 1)
    assert found["a"].mean() > 0
    tensor = AskTell(torch.ones(3, dtype=torch.float64), RANKED).trials(1)[0].x
    assert isinstance(tensor, torch.Tensor)


def test_a_budget_is_not_exceeded() -> None:
    loop = AskTell(start(), RANKED, budget=17)
    by_steps(loop, 3)
    assert (loop.done, loop.message, loop.evaluations) == (True, "budget used", 15)
    assert (loop.ask(), loop.trials(), loop.wait) == ([], [], None)
    assert loop.report(14, 0.0).status == "late"
    assert loop.report(15, 0.0).status == "unknown"
    with pytest.raises(RuntimeError, match="after the end"):
        loop.tell([])
    with pytest.raises(ValueError, match="budget=4 is less than one step: use at least 5"):
        AskTell(start(), RANKED, budget=4)
    with pytest.raises(ValueError, match="budget=nan must be a number of evaluations"):
        AskTell(start(), RANKED, budget=math.nan)  # type: ignore[arg-type]


def test_what_cannot_be_is_said() -> None:
    loop = AskTell(start(), RANKED)
    loop.report(0, 1.0)
    with pytest.raises(RuntimeError, match=r"1 of these 5 points have an answer by report\(\)"):
        loop.tell([1.0] * 5)
    with pytest.raises(TypeError, match="must return one number, got None"):
        loop.report(1, None)
    with pytest.raises(ValueError, match="lease=-1 must be >= 0"):
        AskTell(start(), lease=-1)
    with pytest.raises(ValueError, match="n=-1 trials"):
        loop.trials(-1)
    with pytest.raises(AttributeError, match="is no method of the menu and has no Run"):
        AskTell(start(), "lbfgs").run  # noqa: B018


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs", RANKED])
def test_losses_that_nobody_asked_for_are_refused(method: Any, tmp_path: Path) -> None:
    """A `tell` that came twice, as after a timeout, counted for the next points, which nobody had seen."""
    loop = AskTell(start(), method, budget=200)
    size = len(copy.deepcopy(loop).ask())
    with pytest.raises(RuntimeError, match=r"tell\(\) without ask\(\)"):
        loop.tell([1.0] * size)
    losses = [smooth(x) for x in loop.ask()]
    loop.save(tmp_path / "asked.json")
    for one in (AskTell.load(tmp_path / "asked.json", method), pickle.loads(pickle.dumps(loop)), loop):
        one.tell(losses)
        assert not one.done
        assert one.free == len(one.unanswered)
        one.save(tmp_path / "told.json")
        for again in (AskTell.load(tmp_path / "told.json", method), pickle.loads(pickle.dumps(one)), one):
            with pytest.raises(RuntimeError, match="without ask"):
                again.tell([1.0] * len(again.unanswered))
        told = one.evaluations
        one.tell([smooth(trial.x) for trial in one.trials()])
        assert one.evaluations > told


# ---- orders and comparisons ------------------------------------------------------------------------------------------


def increasing(f: float) -> float:
    """A transform that keeps the order, ties too, and no difference."""
    return math.atan(math.log1p(f)) * 1e-3 - 7.0


ORDINAL = [
    RANKED, PAIRS, methods.zo_sign_scalar(lr=0.1, mu=0.1), methods.snes(n=6), methods.sep_cma(n=6),
    methods.cr_fm_nes(n=6),
]  # fmt: skip


@pytest.mark.parametrize("method", ORDINAL, ids=lambda m: m.name)
def test_the_order_alone_gives_the_same_bits(method: Any) -> None:
    """Values, an increasing function of them, a ranking and comparisons: four ways to say the same."""
    rounded = lambda x: round(smooth(x), 1)  # noqa: E731  (ties occur)
    values, transformed, ordered, compared = (AskTell(start(), method, seed=4) for _ in range(4))
    ties, compares = 0, values.source.feedback == "pairs"
    for _ in range(12):
        values.tell([rounded(x) for x in values.ask()])
        transformed.tell([increasing(rounded(x)) for x in transformed.ask()])
        given = sorted(ordered.trials(), key=lambda t: rounded(t.x))
        groups = [list(g) for _, g in itertools.groupby(given, key=lambda t: rounded(t.x))]
        ties += len(groups) < len(given)
        assert ordered.tell_ranking([g if len(g) > 1 else g[0] for g in groups]).counted
        if compares:
            while (pair := compared.pair()) is not None and pair[0].group == compared.source.told:
                winner, loser = sorted(pair, key=lambda t: rounded(t.x))
                receipt = compared.prefer(winner, loser, tie=rounded(winner.x) == rounded(loser.x))
                if receipt.record is not None:
                    break
    assert ties > 0
    for loop in (transformed, ordered, *([compared] if compares else [])):
        same(loop, values)
        assert [r.vector for r in loop.records] == [r.vector for r in values.records]
    assert all(math.isnan(r.loss) and r.losses == () for r in ordered.records)  # nobody told a loss
    assert not np.array_equal(values.x, start())


def test_the_bits_depend_on_the_order() -> None:
    loops = [AskTell(start(), RANKED), AskTell(start(), RANKED)]
    for loop, order in zip(loops, ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4]), strict=True):
        assert loop.tell_ranking(order).counted
    assert not np.array_equal(loops[0].x, loops[1].x)


def test_a_method_of_values_takes_no_order() -> None:
    for method in ("zo_sgd", "cma", "auto", "lbfgs"):
        loop = AskTell(start(), method)
        for call in (lambda: loop.prefer(0, 1), lambda: loop.tell_ranking([0, 1]), loop.pair):  # noqa: B023
            with pytest.raises(
                FeedbackError, match=r"values .* rank: rank, snes, .*; that compare pairs: preference, zo_sign"
            ):
                call()
        assert not loop.desk.answers


def test_a_ranking_method_compares_two_points_only() -> None:
    with pytest.raises(FeedbackError, match="rank ranks its 5 points together: use tell_ranking"):
        AskTell(start(), RANKED).prefer(0, 1)
    loop, values = (AskTell(start(), methods.rank(n=2, lr=0.1, mu=0.1)) for _ in range(2))
    pair = loop.pair()
    assert pair is not None
    assert loop.prefer(pair[1], pair[0]).record is not None
    assert len(values.ask()) == 2
    values.tell([2.0, 1.0])
    same(loop, values)


def test_rankings_and_comparisons_that_do_not_fit() -> None:
    ranked, pairs = AskTell(start(), RANKED), AskTell(start(), PAIRS)
    assert [t.rival for t in pairs.trials()] == [1, 0, 3, 2, 5, 4]
    assert {t.rival for t in ranked.trials()} == {None}
    for call, says in (
        (lambda: ranked.tell_ranking([]), "the ranking is empty"),
        (lambda: ranked.tell_ranking([0, 1, 2, 3]), "has 4 trials and lacks 4"),
        (lambda: ranked.tell_ranking([0, 1, 2, [3, 3], 4]), "trial 3 twice"),
        (lambda: pairs.tell_ranking([0, 1, 2]), "lacks trial 3, the rival"),
        (lambda: pairs.prefer(0, 2), "0 and 2 are no rivals: the method compares 0 with 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert ranked.tell_ranking([0, 1, 2, 3, 99]).status == "unknown"
    assert pairs.tell_ranking([3, 2]).counted
    assert pairs.prefer(2, 3).status == pairs.tell_ranking([0, 1, 2, 3]).status == "repeated"
    assert pairs.unanswered == [0, 1, 4, 5]
    ranked.report(0, 1.0)
    with pytest.raises(ValueError, match="some trials of this group have values"):
        ranked.tell_ranking([1, 2, 3, 4])


def test_what_failed_is_left_out_of_a_ranking() -> None:
    """It ranks last."""
    loop = AskTell(start(), RANKED)
    loop.report_failure(2)
    receipt = loop.tell_ranking([0, 1, 3, 4])
    assert receipt.record is not None
    assert not receipt.record.refused
    ranked, told = (AskTell(start(), methods.cr_fm_nes(n=6)) for _ in range(2))
    ranked.report_failure(2)
    assert ranked.tell_ranking([4, 1, 3, 0, 5]).record is not None
    for number, value in enumerate([3.0, 1.0, math.inf, 2.0, 0.0, 4.0]):
        told.report(number, value)
    same(ranked, told)
    assert not ranked.records[0].refused


# ---- stop and go on --------------------------------------------------------------------------------------------------

WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda loop: pickle.loads(pickle.dumps(loop)),
    "file": lambda loop: saved(loop),
    "state": lambda loop: loaded(loop),
}


def saved(loop: AskTell) -> AskTell:
    path = Path("loop.json")
    loop.save(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return AskTell.load(path, None if isinstance(loop.method, str) else loop.method)


def loaded(loop: AskTell) -> AskTell:
    other = AskTell(loop.x, loop.method, budget=loop.budget, maximize=loop.maximize, seed=77)
    other.load_state_dict(pickle.loads(pickle.dumps(loop.state_dict())))
    return other


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [RANKED, TWICE, "zo_adamm", "rank", "lbfgs", "cma", "auto"], ids=str)
def test_a_run_goes_on_from_any_answer(method: Any, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if method in ("cma", "auto"):
        pytest.importorskip("cma", reason="the extra blackbox is not installed")
    f = lambda x: smooth(x) if x[0] < 0.3 else math.nan  # noqa: E731  (some fail)
    loop = AskTell(start(), method, budget=400, seed=5, maximize=True)
    for _ in range(29):
        trial = loop.trials(1)[0]
        loop.report(trial, -f(trial.x))
    other = WAYS[way](loop)
    for _ in range(60):
        if loop.done:
            break
        trial, twin = loop.trials()[-1], other.trials()[-1]
        assert (trial.id, trial.group) == (twin.id, twin.group)
        np.testing.assert_array_equal(trial.x, twin.x)
        assert loop.report(trial, -f(trial.x)).status == other.report(twin, -f(twin.x)).status == "counted"
    np.testing.assert_array_equal(loop.x, other.x)
    assert (loop.seed, loop.evaluations, loop.done) == (other.seed, other.evaluations, other.done)


def test_the_answers_alone_are_the_state() -> None:
    """An equal loop that takes them in the order of their ids: what `zograd serve` does."""
    loop, told = AskTell(start(), PAIRS, seed=1), []
    rng = np.random.default_rng(0)
    while len(told) < 40:
        k = int(rng.choice(loop.unanswered))
        if k ^ 1 in loop.unanswered and rng.random() < 0.5:
            assert loop.prefer(k, k ^ 1).counted
            told += [Answer(k, 0.0, ranked=True), Answer(k ^ 1, 1.0, ranked=True)]
        else:
            told.append(Answer(k, float(rng.random())))
            assert loop.report(k, told[-1].value).counted
    other = AskTell(start(), PAIRS, seed=1)
    assert other.restore(sorted(told, key=lambda a: a.id)) == len(told)
    same(loop, other)
    assert loop.unanswered == other.unanswered
    assert other.restore(told) == 0
    assert [r.vector for r in loop.records] == [r.vector for r in other.records]


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.json"
    loop = AskTell({"a": 1.0, "b": [2.0, 3.0]}, RANKED, bounds=[(None, 4.0)], lease=2.5)
    loop.save(path)
    with pytest.raises(ValueError, match="saved with a Method 'rank'; pass it again"):
        AskTell.load(path)
    with pytest.raises(ValueError, match="saved with rank, but the method passed is zo_sgd"):
        AskTell.load(path, "zo_sgd")
    other = AskTell.load(path, RANKED)
    assert (other.desk.lease, other.source.problem.upper.tolist()) == (2.5, [4.0] * 3)  # type: ignore[union-attr]
    assert {name: value.tolist() for name, value in other.recommend().items()} == {"a": 1.0, "b": [2.0, 3.0]}
    for text in ("{", "[]", '{"zograd": 99}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is no file of AskTell\.save"):
            AskTell.load(path)
    state = AskTell(start(), "lbfgs").state_dict()
    with pytest.raises(ValueError, match=r"of another run: its method LBFGS.*, and here it is OfMenu"):
        AskTell(start(), RANKED).load_state_dict(state)
    with pytest.raises(ValueError, match=r"of another run: its method OfMenu.*, and here it is LBFGS"):
        AskTell(start(), "lbfgs").load_state_dict(AskTell(start(), RANKED).state_dict())


# ---- strategies of other libraries -----------------------------------------------------------------------------------


def test_lbfgs_finds_the_minimum_that_minimize_finds() -> None:
    f = lambda x: float(np.sum((x - 1) ** 2 * np.arange(1, 7)))  # noqa: E731
    loop = AskTell(np.zeros(6), "lbfgs", budget=400)
    while not loop.done:
        loop.tell([f(x) for x in loop.ask()])
    assert loop.message == "no lower point near x: a local minimum, as far as finite differences show"
    assert f(loop.recommend()) < 1e-12
    assert f(minimize(f, np.zeros(6), "lbfgs", budget=400).x) < 1e-12


@pytest.mark.parametrize("method", ["auto", "cma"])
def test_a_search_keeps_to_its_budget(method: str) -> None:
    pytest.importorskip("cma", reason="the extra blackbox is not installed")
    loop = AskTell(start(), method, budget=120, bounds=[(-2, 2)])
    asked = 0
    while not loop.done:
        points = loop.ask()
        asked += len(points)
        loop.tell([smooth(x) for x in points])
    assert asked == loop.evaluations <= 120
    assert smooth(loop.x) < smooth(start())
