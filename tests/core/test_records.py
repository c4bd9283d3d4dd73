"""Packed records: what comes back is equal to what went in, and a step takes at most 100 bytes."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import tracemalloc

import numpy as np
import pytest

import zograd as zo
from zograd.core.records import Records
from zograd.core.vector import Noise, Slot, Vector
from zograd.laws.masked import OnSmall
from zograd.noise import Kind
from zograd.stores import Rate

SIGN, NORMAL = Noise(Kind.SIGN, 2**64 - 1), Noise(Kind.NORMAL, 0)
ONE = zo.Record(0, Vector(((SIGN, 0.5),)), 1.0, (Rate(0.1, 0.0),), None, (), 2, False, (1.5, 0.5), 1e-3, 1.0)
OTHERS = [
    ONE,
    zo.Record(1, Vector(), math.inf, (Rate(0.1),), None, (), 2, True, (math.inf, 0.5), 1e-3),
    zo.Record(2, Vector(((SIGN, 1.0), (NORMAL, -2.0))), 1.0, (Rate(0.2, 0.1), Rate(0.3)), (1.0, 2.0), (), 9, mu=1.0),
    zo.Record(7, Vector(((Slot("anchor"), 1.0), (OnSmall(SIGN), 2.0))), 1.0, (Rate(0.1),), ()),
    zo.Record(5, Vector(), 1.0, (), None, (("anchor", Vector(((Slot("x"), 1.0),))), ("m", ONE.vector)), 1),
    zo.Record(6, ONE.vector, 1.0, (Rate(0.1),), None, (), 3, moved=0.25, meters=(("slope2", 4.0), ("trace", -1.0))),
    zo.Record(7, ONE.vector, 1.0, (Rate(0.1),), None, (), 3, moved=0.25, meters=(("trace", 4.0), ("slope2", -1.0))),
]


def test_records_come_back_equal_in_every_way_of_reading():
    tape = Records(OTHERS)
    assert list(tape) == OTHERS
    assert [tape[k] for k in range(-len(OTHERS), len(OTHERS))] == OTHERS * 2
    assert tape[1:] == OTHERS[1:]
    assert tape[::-2] == OTHERS[::-2]
    assert tape == OTHERS == tape
    assert tape != OTHERS[:-1]
    assert tape != [*OTHERS[:-1], OTHERS[0]]
    with pytest.raises(IndexError):
        tape[len(OTHERS)]
    tape.append(ONE)
    assert tape[-1] == ONE
    assert repr(tape) == "<Records of 8 steps>"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tape: pickle.loads(pickle.dumps(tape))])
def test_copies_are_equal_and_go_on_by_themselves(copied):
    tape = Records(OTHERS)
    other = copied(tape)
    other.append(ONE)
    assert list(tape) == OTHERS
    assert list(other) == [*OTHERS, ONE]


def test_refused_steps_are_left_out():
    tape = Records(OTHERS)
    assert list(tape.taken()) == [r for r in OTHERS if not r.refused]
    assert tape.taken().taken() == tape.taken()


@pytest.mark.parametrize("name", ["zo_sgd", "fzoo", "zo_svrg", "hizoo", "lozo", "zo_dct"])
def test_a_packed_tape_is_the_run(name):
    x0, f = np.full((3, 4), 0.5), lambda x: float(np.sum(np.sin(x) ** 2))
    loop, seen = zo.AskTell(x0, name, seed=3), []
    for _ in range(60):
        told = loop.tell([f(x) for x in loop.ask()])
        if told is not None:
            seen.append(told)
    assert list(loop.records) == seen
    again = zo.AskTell(x0, name, seed=3)
    again.run.replay(loop.records)
    np.testing.assert_array_equal(again.x, loop.x)


@pytest.mark.parametrize(
    ("method", "pairs", "most"),
    [
        (zo.methods.zo_sgd(lr=1e-3), 1, 100),
        (zo.methods.zo_sgd(lr=1e-3, n=4), 4, 100 + 12 * 8),
        (zo.methods.zo_sgd(lr="auto"), 1.25, 100),
    ],
)
def test_bytes_a_step(method, pairs, most):
    tracemalloc.start()
    try:
        result = zo.minimize(lambda x: float(x @ x), np.ones(10), method, budget=int(3_000 * pairs))
        steps, shown = result.nit, repr(result)
        gc.collect()
        whole, _ = tracemalloc.get_traced_memory()
        del result["tape"]
        gc.collect()
        rest, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 40 < (whole - rest) / steps < most
    assert len(shown) < 2000
