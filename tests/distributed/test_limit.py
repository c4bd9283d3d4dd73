"""How many points share a forward is the same in all processes, and in those that resume."""

from __future__ import annotations

import struct

import pytest

from zograd.distributed import Peers


def pair(mine: int, other: int) -> Peers:
    """One of two processes, whose peer reports how many points share a forward."""
    peers = Peers()
    peers.world, peers.own_limit = 2, lambda: mine
    theirs = Peers()
    theirs.world, theirs.own_limit, sent = 2, lambda: other, []
    theirs._gather = lambda block: [sent.append(block) or block, block]  # type: ignore[method-assign]
    theirs.exchange((2.0,), 1)
    peers._gather = lambda block: [block, sent[0]]  # type: ignore[method-assign]
    return peers


@pytest.mark.parametrize(
    ("mine", "other", "agreed"), [(-1, -1, -1), (4, -1, 4), (-1, 4, 4), (8, 3, 3), (0, 8, 0), (-1, 0, 0), (500, -1, 62)]
)
def test_an_exchange_agrees_on_the_least(mine: int, other: int, agreed: int) -> None:
    peers = pair(mine, other)
    assert peers.exchange((1.0,), 1) == [(1.0,), (2.0,)]
    assert peers.limit == agreed
    assert peers.sent == 16


def test_flags_and_limit_do_not_mix() -> None:
    peers = pair(62, 62)
    peers.exchange((1.0,), 1)
    assert not peers.stopping(False)
    peers.stopping(True)
    peers.exchange((1.0,), 1)
    assert peers.stopping(False)
    seen: list[bytes] = []
    peers._gather = lambda block: [seen.append(block) or block, block]  # type: ignore[method-assign]
    peers.exchange((), 1, failed=True)
    assert (seen[0][0] & 1, seen[0][0] >> 2) == (1, 63)
    assert struct.unpack("<d", seen[0][8:])[0] != 0.0


def test_a_process_alone_has_its_own_limit() -> None:
    peers = Peers()
    peers.own_limit = lambda: 500
    peers.exchange((1.0,), 1)
    assert peers.limit == 500
