"""`zograd train` in a rank that kills itself: killed.py rank@step,rank@step MARKS -- arguments of the command line.

Death number k comes in the k-th life of the processes, after `step` steps were made and before the last is written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from zograd.cli import main
from zograd.core.run import Record
from zograd.distributed import Peers

deaths = [tuple(map(int, death.split("@"))) for death in sys.argv[1].split(",")]
marks = Path(sys.argv[2])
life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
remember = Peers.remember


def dying(self: Peers, record: Record | bytes, *, split: bool = False) -> None:
    if life < len(deaths) and isinstance(record, Record) and (self.rank, record.step + 1) == deaths[life]:
        (marks / f"life {life}").write_text(f"rank {self.rank} dies in step {record.step}")
        os.kill(os.getpid(), signal.SIGKILL)
    remember(self, record, split=split)


Peers.remember = dying  # type: ignore[method-assign]
sys.argv = ["zograd", *sys.argv[4:]]
main()
