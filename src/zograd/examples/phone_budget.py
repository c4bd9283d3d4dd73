"""A budget of memory and of time: the plan chooses how many blocks are trained, and the run keeps to both.

Rows      10
Paper     research programme
Formula   the most blocks with peak - weights <= 300 MiB; steps = 1 + floor((S - t_1) / t), t the median step of a
          rehearsal and t_1 its first step
Evidence  the measured peak of the run above the weights; the steps of a run that ends after S seconds
Extent    SmolLM2-135M on trec by zo_adam and one core of a server; no phone, and no energy without a counter
Needs     demo
Seconds   45
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from zograd.examples import Claim, Figure, Finding, Line
from zograd.llm.rehearsal import rehearse
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.memory import resident_bytes, trim
from zograd.runs.plan import plan

MIB = 1 << 20
MEMORY, SECONDS = 300 * MIB, 20.0
BLOCKS = (1, 2, 4, 8, 16, 30)
SHAPE = {"method": "zo_adam", "batch_size": 16, "dtype": "float32"}


# %% The memory above the weights, planned from a configuration alone: nothing is loaded.
def planned(model: str, layers: int) -> int:
    found = plan(model, layers=layers, seq_len=48, **SHAPE)
    return int(found["method_peak_bytes"] - found["weights_bytes"])


def shape_of_smollm2(folder: str) -> str:
    """A folder with the configuration of SmolLM2-135M, without its weights."""
    LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


# %% The plan is followed: a rehearsal promises steps, and a run on the clock makes them.
def followed(layers: int, weights: int, seed: int) -> dict[str, Any]:
    s = TrainSettings(
        model="smollm2-135m", task="trec", layers=layers, threads=1, seed=seed, baseline=False, train_examples=800,
        eval_examples=16, **SHAPE,
    )  # fmt: skip
    found = rehearse(s)
    trim()
    before = resident_bytes()
    with tempfile.TemporaryDirectory() as folder:
        done = train(s.model_copy(update={"seconds": SECONDS, "steps": 10**6}), Path(folder) / "run", quiet=True)
    return {**done, "above": done["peak_bytes"] - before - weights, "promised": found.steps(SECONDS), "lap": found.step}


def run(seed: int = 0, quick: bool = False) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        model = shape_of_smollm2(folder)
        needs = {layers: planned(model, layers) for layers in BLOCKS}
        weights = int(plan(model, **SHAPE)["weights_bytes"])
    chosen = max(layers for layers, need in needs.items() if need <= MEMORY)
    ran = {} if quick else followed(chosen, weights, seed)
    claims = [
        Claim("more blocks need more memory", list(needs.values()) == sorted(needs.values())),
        Claim("some blocks fit, and not all", chosen < BLOCKS[-1]),
        Claim("the measured peak above the weights is within the budget", quick or ran["above"] <= MEMORY, True),
        Claim("the plan is within 30 % and 16 MiB of that peak",
              quick or abs(needs[chosen] - ran["above"]) <= 0.3 * ran["above"] + 16 * MIB, True),
        Claim("the steps made are within 25 % of those promised",
              quick or abs(ran["steps"] - ran["promised"]) <= max(1, 0.25 * ran["promised"]), True),
        Claim("the run ends within two steps of its seconds",
              quick or ran["seconds"] <= SECONDS + 2 * ran["lap"], True),
    ]  # fmt: skip
    numbers = {"blocks that are trained": float(chosen), "MiB of weights": weights / MIB}
    numbers |= {f"MiB above the weights, {n} blocks, planned": need / MIB for n, need in needs.items()}
    lines = [Line("planned", BLOCKS, [need / MIB for need in needs.values()])]
    lines += [] if quick else [Line("measured", (chosen,), (ran["above"] / MIB,))]
    figure = Figure("A run above its weights", "blocks trained", "MiB", tuple(lines), log="xy")
    return Finding(numbers, tuple(claims), (figure,))
