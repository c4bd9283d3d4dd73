"""Several processes, one run: they exchange losses, never weights, and end with the same bits.

Every process has the whole optimizer: it draws the same directions from the same seed, hears the same losses and makes
the same move. So the traffic of a step is its losses, some ten bytes each, and a process that comes late or comes back
catches up by replaying the tape.

Files: peers.py (the processes, and all that they tell each other), joining.py (how they find each other), shared.py
(the oracle that deals evaluations to them), shards.py (weights that are split over processes: FSDP2, tensor parallel),
executors.py (points of a black box on any executor).
"""

from __future__ import annotations

from zograd.distributed.executors import from_pool, parallel
from zograd.distributed.joining import joined
from zograd.distributed.peers import Peers, PeersDisagree, PeersError
from zograd.distributed.shared import Deal, PartLoss, shared

__all__ = [
    "Deal", "PartLoss", "Peers", "PeersDisagree", "PeersError", "from_pool", "joined", "parallel", "shared",
]  # fmt: skip
