"""Several processes in one run: they exchange losses, never weights, and end with the same bits.

Every process has the whole optimizer: it draws the same directions from the same seed, gets the same losses and makes
the same move. So the traffic of a step is its losses, about ten bytes each. A process that joins late or restarts
replays rank 0's tape.

Files: peers.py (the processes and their messages), joining.py (how they find each other), shared.py (the oracle that
deals evaluations to them), shards.py (weights that are split over processes: FSDP2, tensor parallelism), executors.py
(a black box on any executor), pools.py (pools whose processes die).
"""

from __future__ import annotations

from zograd.distributed.executors import from_pool, parallel
from zograd.distributed.joining import joined
from zograd.distributed.peers import Peers, PeersDisagree, PeersError
from zograd.distributed.shared import Deal, PartLoss, shared

__all__ = [
    "Deal", "PartLoss", "Peers", "PeersDisagree", "PeersError", "from_pool", "joined", "parallel", "shared",
]  # fmt: skip
