"""transformers' Trainer, and those of TRL, with steps that only evaluate: `forward_only(TrainerClass)`.

Files: trainer.py (the class that stands in front of the Trainer), choosing.py (what is trained, by which method),
optimizer.py (the optimizer that the Trainer holds), losses.py (the loss of the batches of a step), arguments.py
(`TrainingArguments` that have another meaning here), checkpoints.py (the tape beside the weights), packing.py (both as
one small file).
"""

from __future__ import annotations

from zograd.hf.trainer import forward_only

__all__ = ["forward_only"]
