"""`python -m benchmarks.gpu`: a step on a CUDA device beside its forwards. One file, to run as one script anywhere.

Stages: ceilings (copy, matrix product), noise (passes over weights, bits), steps (time, memory), numerics (exactness).
Models have the shape of a known one and random bfloat16 weights, made on the device; nothing is fetched.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from zograd import methods
from zograd.bench.baseline import mezo_step
from zograd.bench.step import comparison, interleaved
from zograd.bench.workload import LR, quiet_machine
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.core.run import Method, Run
from zograd.core.vector import Noise, Vector
from zograd.errors import UsageError
from zograd.estimators import Forward
from zograd.laws import Law, Rademacher, RankOne
from zograd.llm.method import ride_along
from zograd.llm.scoring.loss import causal_losses
from zograd.noise import Job, Kind, Term, backend, combine, combine_group, fold, portable
from zograd.oracles import batched, sequential
from zograd.rules import SGD
from zograd.runs.memory import Peak
from zograd.stores import Store
from zograd.stores.deferred import LIMIT

MOST_RATIO = 1.02
"""The gate on the time of a step over its forwards, and on its peak over that of inference."""

COEF = 2.0**-20
MU = 2.0**-10
LAWS: dict[str, Law] = {"rademacher": Rademacher(), "rank_one": RankOne()}
EXECUTORS = {"one at a time": 1, "batched": 2}
"""How many points of a two-point step share a forward."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """A model and how much of everything is measured.

    config: keyword arguments of its transformers configuration `kind`. cut: those that make it small for numerics.
    tokens: (batch, length) of each workload. directions: points that share a forward in a one-sided step, less one.
    copy, leaves, leaf: elements copied; tensors of noise and elements of each. gemm: n of an n x n x n product.
    seconds: about this for each group of ways that take turns, `rounds` of them at most and 3 at least.
    """

    kind: str
    config: Mapping[str, Any]
    cut: Mapping[str, Any]
    tokens: Sequence[tuple[int, int]] = ((2, 32), (4, 128), (16, 128), (64, 128))
    directions: Sequence[int] = (1, 4, 16)
    copy: int = 1 << 30
    leaves: int = 32
    leaf: int = 1 << 24
    gemm: int = 8192
    seconds: float = 15.0
    rounds: int = 15
    queries: int = 1000
    steps: int = 50
    slopes: int = 16


SIZES = {
    "llama-8b": Size(
        "LlamaConfig",
        {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        },
        {"num_hidden_layers": 1, "vocab_size": 8192},
    ),
    "opt-13b": Size(
        "OPTConfig",
        {
            "vocab_size": 50272, "hidden_size": 5120, "ffn_dim": 20480, "num_hidden_layers": 40,
            "num_attention_heads": 40, "max_position_embeddings": 2048, "word_embed_proj_dim": 5120,
        },
        {"num_hidden_layers": 1, "vocab_size": 8192},
    ),
    "tiny": Size(
        "LlamaConfig",
        {
            "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        },
        {"num_hidden_layers": 1},
        tokens=((2, 8), (4, 16)),
        directions=(1, 4),
        copy=1 << 16,
        leaves=3,
        leaf=1 << 12,
        gemm=64,
        seconds=0.05,
        rounds=3,
        queries=20,
        steps=5,
        slopes=4,
    ),
}  # fmt: skip


def missing(device: str) -> str | None:
    """Why nothing can be measured on this device, in one line; None when it is at hand."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device is at hand, nothing was measured (--model tiny --device cpu runs the same path anywhere)"
    return None


def bench_gpu(
    model: str = "llama-8b", *, device: str = "cuda", seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """All four stages on a model of the shape `model`: llama-8b, opt-13b or tiny (for a machine without a device).

    Ways that are compared take turns in one process, in an order that reverses every round, after warm-ups; figures are
    medians of wall time, the device synchronised at the end of each.

    `ceilings`   `copy_gb_per_s` (read and written), `gemm_tflop_per_s` (bfloat16).
    `noise`      a row each dtype and pass: `ratio` to `x.add_(c)` on the same tensors, leaf after leaf (`how` "leaves")
                 or by `combine_group` ("group"), `gb_per_s`, `same_bits` as the CPU on a slice (on the CPU: as torch).
    `steps`      a row each number of tokens and way: `ratio` to `forwards` plain forwards with the loss of zograd
                 (`causal_losses`), its quartiles and `ratio_min` (fastest over fastest), `ratio_transformers` to as
                 many with the model's own loss; `seconds`, `tokens_per_s` of the batch; `peak_bytes`, `peak_ratio` and
                 `peak_ratio_transformers` to those of a forward. Ways: "forward", "transformers" (a forward of each
                 kind), two-point steps along each law one point at a time and both at once ("rank_one batched"),
                 one-sided steps along n rank-one directions at once ("rank_one x n", the evaluations of FZOO), "mezo"
                 (`bench.baseline`, with the model's own loss). Moves are made in passing (`Store.deferring`).
    `numerics`   on a cut of the model: `trace_free` (bits after `queries`, of which `felt` moved the loss), `replayed`
                 (bits of a replay of `replayed_steps`), `slope_correlation` and `slope_error` (relative, root mean
                 square) of two-point slopes in bfloat16 against float32 ones, on the same weights and directions.
    `gates`      `gate`, `measured`, `bound`, `passed` of each requirement; steps and peaks by the worse of both ratios.
    `notes`      what ran out of memory, what warned; `failed`: stages that ended in an error, with the error.
    `model`, `params`, `weights_bytes`, `device`, `backend`, `torch`, `transformers`, `triton`, `seconds`.

    Cost: meant for some minutes a stage on an H200. Memory: the weights, activations of the largest workload (17 copies
    of it at 16 directions), and four times the largest tensor in the baseline loop; what does not fit is noted and left
    out. Raises ValueError for an unknown model or a device that is not at hand.
    """
    if model not in SIZES:
        raise UsageError(f"there is no shape {model!r}; use {', '.join(SIZES)}")
    if (why := missing(device)) is not None:
        raise ValueError(why)
    bench = _Bench(SIZES[model], torch.device(device), seed)
    stages: dict[str, Callable[[], Any]] = {
        "ceilings": bench.ceilings, "noise": bench.noise, "steps": bench.steps, "numerics": bench.numerics,
    }  # fmt: skip
    start = time.perf_counter()
    result: dict[str, Any] = {"model": model}
    failed: dict[str, str] = {}
    with quiet_machine(None), torch.no_grad():
        for name, stage in stages.items():
            say(f"{name} ...")
            with bench.remembering_warnings(name):
                try:
                    result[name] = stage()
                except torch.OutOfMemoryError:
                    bench.notes.append(f"{name}: out of memory, the rest of this stage was not measured")
                except Exception as e:  # the other stages do not depend on this one
                    failed[name] = f"{type(e).__name__}: {e}"
                    say(traceback.format_exc())
            bench.free()
            say(f"{name}: {time.perf_counter() - start:.0f} s since the start")
    return {
        **result,
        "gates": gates(result),
        "notes": list(dict.fromkeys(bench.notes)),
        "failed": failed,
        **bench.description(),
        "seconds": time.perf_counter() - start,
    }


@dataclass
class _Bench:
    """The stages, with what they share."""

    size: Size
    device: torch.device
    seed: int
    notes: list[str] = field(default_factory=list)
    params: int = 0
    weights_bytes: int = 0

    # ---- taking turns --------------------------------------------------------------------------------------------

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def remembering_warnings(self, stage: str) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        said = (str(w.message) for w in caught if issubclass(w.category, UserWarning))
        self.notes += [f"{stage}: {text}" for text in said if not text.startswith("this step changed")]  # lr is tiny

    def seconds(self, ways: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each way in each round; ways that do not fit in memory are noted and left out."""
        kept: dict[str, Callable[[], None]] = {}
        once = 0.0
        for name, way in ways.items():

            def finished(way: Callable[[], object] = way) -> None:
                way()
                self.wait()

            try:
                finished()  # compiles kernels, fills caches
                start = time.perf_counter()
                finished()
                once += time.perf_counter() - start
                kept[name] = finished
            except torch.OutOfMemoryError:
                self.notes.append(f"{name}: out of memory")
                self.free()
        rounds = min(max(int(self.size.seconds / max(once, 1e-9)), 3), self.size.rounds)
        return interleaved(kept, rounds, time.perf_counter)

    # ---- (a) ceilings --------------------------------------------------------------------------------------------

    def ceilings(self) -> dict[str, float]:
        n, m = self.size.copy, self.size.gemm
        source = torch.ones(n, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        a, b = (torch.randn(m, m, device=self.device).to(torch.bfloat16) for _ in range(2))
        c = torch.empty_like(a)
        taken = self.seconds({"copy": lambda: target.copy_(source), "gemm": lambda: torch.mm(a, b, out=c)})
        copied, multiplied = (statistics.median(taken[name]) for name in ("copy", "gemm"))
        return {"copy_gb_per_s": 4 * n / copied / 1e9, "gemm_tflop_per_s": 2 * m**3 / multiplied / 1e12}

    # ---- (b) noise -----------------------------------------------------------------------------------------------

    def noise(self) -> list[dict[str, Any]]:
        terms = {
            "sign": [Term(Kind.SIGN, fold(self.seed, 0), COEF)],
            "signs": [Term(Kind.SIGN, fold(self.seed, j), COEF) for j in (0, 1)],
            "normal": [Term(Kind.NORMAL, fold(self.seed, 2), COEF)],
            "normals": [Term(Kind.NORMAL, fold(self.seed, j), COEF) for j in (2, 3)],
        }
        elements = self.size.leaves * self.size.leaf
        rows = []
        for name, dtype in DTYPES.items():
            leaves = [
                torch.randn(self.size.leaf, device=self.device).mul_(0.02).to(dtype) for _ in range(self.size.leaves)
            ]
            jobs = [Job(x, x, leaf=k) for k, x in enumerate(leaves)]

            def add(leaves: list[Tensor] = leaves) -> None:
                for x in leaves:
                    x.add_(COEF)

            def one_by_one(terms: list[Term], leaves: list[Tensor] = leaves) -> None:
                for k, x in enumerate(leaves):
                    combine(x, x, terms=terms, leaf=k)

            ways: dict[str, Callable[[], object]] = {"add": add}
            for what, these in terms.items():
                ways[f"{what} leaves"] = lambda these=these: one_by_one(these)  # type: ignore[misc]
                ways[f"{what} group"] = lambda these=these, jobs=jobs: combine_group(jobs, terms=these)  # type: ignore[misc]
            same = {what: self._same_bits(leaves[-1], these) for what, these in terms.items()}
            taken = self.seconds(ways)
            for way, seconds in taken.items():
                what, _, how = way.partition(" ")
                row: dict[str, Any] = {"dtype": name, "pass": what, "how": how or "leaves"}
                row |= comparison("", seconds, taken["add"], elements)
                row["gb_per_s"] = 2 * elements * leaves[0].element_size() / statistics.median(seconds) / 1e9
                rows.append(row | ({"same_bits": same[what]} if what in same else {}))
        return rows

    def _same_bits(self, x: Tensor, terms: list[Term]) -> bool:
        """Whether a pass over 10,000 elements of x gives the bits that the CPU gives (on the CPU: that torch gives)."""
        n, start, leaf = min(x.numel(), 10_000), 77, 3
        here, there = x[:n].clone(), x[:n].cpu().clone()
        combine(here, here, terms=terms, leaf=leaf, start=start)
        if self.device.type == "cpu":
            portable.combine(there, there, 1.0, terms, None, 1.0, leaf, start, None, None)
        else:
            combine(there, there, terms=terms, leaf=leaf, start=start)
        return torch.equal(here.cpu(), there)

    # ---- (c) steps -----------------------------------------------------------------------------------------------

    def model(self, cut: bool = False) -> Any:
        """The model, random, in eval mode."""
        import transformers

        config = getattr(transformers, self.size.kind)(**{**self.size.config, **(self.size.cut if cut else {})})
        torch.manual_seed(self.seed)
        with torch.device(self.device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        return model.to(self.device).eval()

    def ids(self, model: Any, batch: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator).to(self.device)

    def steps(self) -> list[dict[str, Any]]:
        model = self.model()
        parameters = dict(model.named_parameters())
        self.params = sum(p.numel() for p in parameters.values())
        self.weights_bytes = sum(p.numel() * p.element_size() for p in parameters.values())
        rows: list[dict[str, Any]] = []
        for batch, length in self.size.tokens:
            try:
                rows += self._rows(model, parameters, self.ids(model, batch, length))
            except torch.OutOfMemoryError:
                self.notes.append(f"{batch * length} tokens: out of memory")
            self.free()
        return rows

    def _rows(self, model: Any, parameters: dict[str, Tensor], ids: Tensor) -> list[dict[str, Any]]:
        """Every way at one batch."""
        with ExitStack() as stack:
            return self._rows_of(self._ways(model, parameters, ids, stack), ids.numel())

    def _ways(
        self, model: Any, parameters: dict[str, Tensor], ids: Tensor, stack: ExitStack
    ) -> dict[str, tuple[int, Callable[[], object]]]:
        """The evaluations of each way, and what makes one step of it."""

        def losses(copies: int) -> Tensor:
            return causal_losses(model, ids, copies=copies)

        def loss() -> float:
            return float(losses(1))

        def own_loss() -> float:
            return float(model(input_ids=ids, labels=ids, use_cache=False).loss)

        def step(method: Method[Any], together: int) -> Callable[[], object]:
            store = Store(parameters)
            run = Run(store, method, self.seed)
            stack.enter_context(store.deferring(merge=ride_along(method)))  # as in training
            oracle = sequential(loss) if together == 1 else batched(losses, together)

            def go() -> None:
                if run.step_number % LIMIT == 0:
                    store.make_moves()
                run.step(oracle)

            return go

        draws = iter(range(1 << 30))
        ways: dict[str, tuple[int, Callable[[], object]]] = {
            "forward": (1, loss),
            "transformers": (1, own_loss),
        }
        for name, law in LAWS.items():
            method = methods.make("zo_sgd", lr=LR, mu=MU, law=law)
            for how, together in EXECUTORS.items():
                ways[f"{name} {how}"] = (2, step(method, together))
        for n in self.size.directions:
            method = Method(Forward(n), RankOne(), SGD(), mu=MU, lr=LR, name="one_sided")
            ways[f"rank_one x {n}"] = (n + 1, step(method, n + 1))
        ways["mezo"] = (
            2,
            lambda: mezo_step(list(parameters.values()), own_loss, lr=LR, seed=fold(self.seed, next(draws)) % 2**63),
        )
        return ways

    def _rows_of(self, ways: dict[str, tuple[int, Callable[[], object]]], tokens: int) -> list[dict[str, Any]]:
        taken = self.seconds({name: way for name, (_, way) in ways.items()})
        self.free()
        peaks = {name: self._peak(ways[name][1]) for name in taken}
        plain = "transformers" if "transformers" in taken else "forward"  # the former needs memory for all logits
        rows = []
        for name, seconds in taken.items():
            k = ways[name][0]
            own = comparison("", seconds, [k * t for t in taken[plain]], self.params)
            row: dict[str, Any] = {"tokens": tokens, "way": name, "forwards": k, "rounds": len(seconds)}
            row |= comparison("", seconds, [k * t for t in taken["forward"]], self.params)
            row |= {"ratio_transformers": own["ratio"], "seconds": statistics.median(seconds)}
            row |= {"tokens_per_s": tokens / row["seconds"], "peak_bytes": peaks[name]}
            row |= {"peak_ratio": peaks[name] / peaks["forward"], "peak_ratio_transformers": peaks[name] / peaks[plain]}
            rows.append(row)
        return rows

    def _peak(self, way: Callable[[], object]) -> int:
        with Peak(self.device) as peak:
            way()
            self.wait()
        return peak.bytes

    # ---- (d) numerics --------------------------------------------------------------------------------------------

    def numerics(self) -> dict[str, Any]:
        model = self.model(cut=True)
        ids = self.ids(model, *self.size.tokens[0])
        parameters = dict(model.named_parameters())
        return {
            "params": sum(p.numel() for p in parameters.values()),
            **self._trace(model, ids),
            **self._replay(model, ids),
            **self._slopes(model, ids),
        }

    def _trace(self, model: Any, ids: Tensor) -> dict[str, Any]:
        """Bits of the weights after many queries, and how many of these saw another loss."""
        store = Store(dict(model.named_parameters()))
        before, plain = store.digest(), float(causal_losses(model, ids))
        felt = 0
        for q in range(self.size.queries):
            v = Vector(((Noise(Kind.SIGN, fold(self.seed, q // 2)), 1.0),))
            with store.at((MU if q % 2 == 0 else -MU) * v):
                felt += float(causal_losses(model, ids)) != plain
        return {"queries": self.size.queries, "felt": felt, "trace_free": store.digest() == before}

    def _replay(self, model: Any, ids: Tensor) -> dict[str, Any]:
        """Bits of a replay of `steps` steps, from the scalars of their records, against those of the steps."""
        parameters = dict(model.named_parameters())
        start = {name: p.detach().clone() for name, p in parameters.items()}
        method = methods.make("zo_sgd", lr=1e-5, mu=MU)
        run = Run(Store(parameters), method, self.seed)
        before = run.store.digest()
        records = [run.step(sequential(lambda: float(causal_losses(model, ids)))) for _ in range(self.size.steps)]
        after = run.store.digest()
        again = Run(Store(start), method, self.seed)
        again.replay(records)
        return {
            "replayed_steps": self.size.steps,
            "replayed": again.store.digest() == after != before and not any(r.refused for r in records),
        }

    def _slopes(self, model: Any, ids: Tensor) -> dict[str, Any]:
        """Two-point slopes in bfloat16 and float32."""
        found = []
        for network in (model, copy.deepcopy(model).float()):
            store = Store(dict(network.named_parameters()))

            def at(point: Vector, store: Store = store, network: Any = network) -> float:
                with store.at(point):
                    return float(causal_losses(network, ids))

            vs = [Vector(((Noise(Kind.SIGN, fold(self.seed, j)), 1.0),)) for j in range(self.size.slopes)]
            found.append([(at(MU * v) - at(-MU * v)) / (2 * MU) for v in vs])
        low, high = np.array(found)
        return {
            "slopes": self.size.slopes,
            "slope_correlation": float(low @ high / np.sqrt((low @ low) * (high @ high))),
            "slope_error": float(np.sqrt(np.mean((low - high) ** 2) / np.mean(high**2))),
        }

    def description(self) -> dict[str, Any]:
        import transformers

        cuda = self.device.type == "cuda"
        return {
            "params": self.params,
            "weights_bytes": self.weights_bytes,
            "device": torch.cuda.get_device_name(self.device) if cuda else str(self.device),
            "backend": backend(self.device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "triton": getattr(sys.modules.get("triton"), "__version__", None),
        }


def gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The requirements that the stages at hand bear on: `measured` has to be at most `bound`, or True."""
    found: list[dict[str, Any]] = []

    def gate(name: str, measured: float | bool, bound: float | bool) -> None:
        passed = measured is bound if isinstance(bound, bool) else measured <= bound
        found.append({"gate": name, "measured": measured, "bound": bound, "passed": bool(passed)})

    for row in result.get("steps", ()):
        if row["way"].partition(" ")[2] in EXECUTORS:
            at = f"{row['way']}, {row['tokens']:,} tokens"
            gate(f"step / 2 forwards, {at}", max(row["ratio"], row["ratio_transformers"]), MOST_RATIO)
            gate(f"peak / inference, {at}", max(row["peak_ratio"], row["peak_ratio_transformers"]), MOST_RATIO)
    for row in result.get("noise", ()):
        if "same_bits" in row and row["how"] == "leaves":
            gate(f"bits of {row['pass']}, {row['dtype']}", row["same_bits"], True)
    if "numerics" in result:
        gate("queries leave no trace", result["numerics"]["trace_free"], True)
        gate("replay has the bits of the run", result["numerics"]["replayed"], True)
    return found


def as_text(result: dict[str, Any]) -> str:
    """The result as Markdown, to paste into benchmarks/records.md."""
    about = ", ".join(f"{key} {result[key]}" for key in ("device", "backend", "torch", "transformers", "triton"))
    lines = [f"`python -m benchmarks.gpu --model {result['model']}`: {result['params']:,} weights; {about}."]
    if c := result.get("ceilings"):
        lines += ["", f"Copy {c['copy_gb_per_s']:,.0f} GB/s, bfloat16 product {c['gemm_tflop_per_s']:,.1f} TFLOP/s."]
    if rows := result.get("noise"):
        lines += ["", "| dtype | pass | how | x add_ | GB/s | bits of the CPU |", "|---|---|---|---:|---:|---|"]
        lines += [
            f"| {r['dtype']} | {r['pass']} | {r['how']} | {r['ratio']:.2f} | {r['gb_per_s']:,.0f} | "
            f"{ {True: 'yes', False: 'NO'}.get(r.get('same_bits'), '') } |"
            for r in rows
        ]
    if rows := result.get("steps"):
        lines += [
            "",
            "| tokens | way | forwards | over them | quartiles | fastest | over those of transformers "
            "| ms | tokens/s | peak / inference | over that of transformers |",
            "|---:|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {r['tokens']:,} | {r['way']} | {r['forwards']} | {r['ratio']:.3f} | {r['ratio_quartiles'][0]:.3f} to "
            f"{r['ratio_quartiles'][1]:.3f} | {r['ratio_min']:.3f} | {r['ratio_transformers']:.3f} | "
            f"{1e3 * r['seconds']:,.1f} | {r['tokens_per_s']:,.0f} | {r['peak_ratio']:.3f} | "
            f"{r['peak_ratio_transformers']:.3f} |"
            for r in rows
        ]
    if n := result.get("numerics"):
        lines += [
            "",
            f"{n['params']:,} weights: {n['queries']} queries ({n['felt']} felt) left "
            f"{'no trace' if n['trace_free'] else 'A TRACE'}; replay of {n['replayed_steps']} steps "
            f"{'bit-equal' if n['replayed'] else 'DIFFERS'}; slopes in bfloat16 against float32: correlation "
            f"{n['slope_correlation']:.4f}, relative error {n['slope_error']:.3f}.",
        ]
    lines += ["", "| gate | measured | bound | |", "|---|---:|---:|---|"]
    for g in result["gates"]:
        shown = [f"{v:.3f}" if isinstance(v, float) else str(v).lower() for v in (g["measured"], g["bound"])]
        lines.append(f"| {g['gate']} | {shown[0]} | {shown[1]} | {'pass' if g['passed'] else 'FAIL'} |")
    lines += [f"\nNote: {note}" for note in result["notes"]]
    lines += [f"\nFAILED: {stage}: {error}" for stage, error in result["failed"].items()]
    return "\n".join(lines)


def measure(
    model: Annotated[str, "Shape, with random weights: llama-8b, opt-13b or tiny."] = "llama-8b",
    device: Annotated[str, "cuda, cuda:1, ... or cpu."] = "cuda",
) -> dict[str, Any]:
    """Steps of a large model on a CUDA device against its forwards, with every gate. Without a device: says so.

    Example: python -m benchmarks.gpu --model tiny --device cpu
    """
    if (why := missing(device)) is not None:
        return {"measured": False, "why": why}
    result = bench_gpu(model, device=device, say=say)
    return result | ({"failure": f"not measured: {', '.join(result['failed'])}"} if result["failed"] else {})


app = script(measure, lambda result: result.get("why") or as_text(result))

if __name__ == "__main__":
    app()
