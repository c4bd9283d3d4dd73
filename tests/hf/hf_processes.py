"""What each process of `test_hf_torchrun.py` runs: a short training and its resumption, whose ends go to files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.hf.helpers import Forward, arguments, digest, llama, losses, rows


def trained(folder: Path, rank: int, method: str, lr: Any, resume: bool) -> Any:
    """Every process begins with other weights; those of rank 0 count."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = arguments(
        folder, per_device_train_batch_size=4 // world, gradient_accumulation_steps=2, save_strategy="steps",
        save_steps=3, logging_steps=1,
    )  # fmt: skip
    trainer = Forward(model=llama(seed=rank), args=args, train_dataset=rows(), method=method, lr=lr)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return trainer


if __name__ == "__main__":
    folder, method, lr = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    rank = int(os.environ.get("RANK", "0"))
    for resume in (False, True):
        trainer = trained(folder, rank, method, lr if lr == "auto" else float(lr), resume)
        found = {"rank": rank, "digest": digest(trainer.model), "losses": losses(trainer), "resume": resume}
        found["wrapped"] = type(trainer.model_wrapped).__name__
        (folder / f"found-{rank}-{resume}.json").write_text(json.dumps(found))
