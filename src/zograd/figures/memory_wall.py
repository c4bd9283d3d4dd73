"""What training of OPT needs in memory: Adam as in the table of the talk, and zeroth order beside inference.

Rows      2, 10, 58
Paper     Table 1 of the founding talk: Adam on OPT 1.3B, 6.7B, 13B, 30B takes 27, 156, 356, 633 GB
Formula   Adam: 16 bytes a weight and activations; zeroth order: weights and one tile; disk: two blocks
Evidence  the talk's table; `zograd plan` is compared with measured peaks in docs/log.md
Extent    plans from shapes alone: nothing is loaded; the talk states neither batch nor length
Needs     llm
Seconds   40
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from zograd.figures import Claim, Figure, Finding, Line

TABLE = {"1.3B": 27.0, "6.7B": 156.0, "13B": 356.0, "30B": 633.0}
"""GB with Adam, as the talk gives them."""
SHAPES = {"1.3B": (2048, 24, 32), "6.7B": (4096, 32, 32), "13B": (5120, 40, 40), "30B": (7168, 48, 56)}
"""Width, blocks, heads."""
GB = 1e9


# %% Plans from the shapes of the four models; nothing is loaded.
def plans(shape: tuple[int, int, int], batch: int) -> dict[str, float]:
    """GB at float16 of inference, MeZO, MeZO from disk, and Adam on an OPT of this shape."""
    from transformers import OPTConfig

    from zograd.runs.plan import plan

    width, blocks, heads = shape
    config = OPTConfig(
        hidden_size=width, ffn_dim=4 * width, num_hidden_layers=blocks, num_attention_heads=heads,
        word_embed_proj_dim=width, architectures=["OPTForCausalLM"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(Path(folder))
        mezo = plan(folder, method="mezo", dtype="float16", batch_size=batch, seq_len=128)
        disk = plan(folder, method="mezo", dtype="float16", batch_size=batch, seq_len=128, offload="disk")
    return {
        "inference": mezo["inference_peak_bytes"] / GB,
        "mezo": mezo["method_peak_bytes"] / GB,
        "mezo from disk": disk["method_peak_bytes"] / GB,
        "Adam": mezo["adam_peak_bytes"] / GB,
    }


def run(seed: int = 0, quick: bool = False) -> Finding:
    sizes = list(SHAPES)[:1] if quick else list(SHAPES)
    found = {size: plans(SHAPES[size], batch=8) for size in sizes}
    numbers = {f"{size}, {what}: GB": value for size, plan in found.items() for what, value in plan.items()}
    numbers |= {f"{size}, Adam in the talk: GB": TABLE[size] for size in sizes}
    billions = [float(size[:-1]) for size in sizes]
    lines = [Line(what, billions, [found[size][what] for size in sizes]) for what in found[sizes[0]]]
    lines.append(Line("Adam, as in the talk", billions, [TABLE[size] for size in sizes]))
    ratios = {size: found[size]["Adam"] / TABLE[size] for size in sizes}
    numbers |= {f"{size}, plan of Adam over the talk's": ratio for size, ratio in ratios.items()}
    plans_ = list(found.values())
    claims = (
        Claim("MeZO is planned within 1.05 of inference", all(p["mezo"] < 1.05 * p["inference"] for p in plans_)),
        Claim("from disk it takes less than a third of the memory of inference",
              all(p["mezo from disk"] < p["inference"] / 3 for p in plans_), full_only=True),
        Claim("Adam is planned above six times inference", all(p["Adam"] > 6 * p["inference"] for p in plans_)),
        Claim("the plan of Adam lies between half of the talk's table and the table, whose activations are not stated",
              all(0.5 < ratio < 1.35 for ratio in ratios.values())),
    )  # fmt: skip
    return Finding(
        numbers, claims, (Figure("Memory of OPT, float16", "weights, billions", "GB", tuple(lines), log="y"),)
    )
