"""`bench profile`: every part is found where it is, shares sum to 1, and passes of noise are counted to the element."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from typer.testing import CliRunner

from zograd import laws, methods
from zograd.bench import profile as profiling
from zograd.bench.profile import PARTS, STEP, as_text, bench_profile, seconds_by_part, watched
from zograd.cli import app
from zograd.core.run import Run
from zograd.llm.scoring import loss
from zograd.oracles import batched, sequential
from zograd.stores import Store

pytest.importorskip("transformers")


def test_profile_reports_the_contract(tiny: str) -> None:
    before = loss.token_losses
    out = bench_profile(tiny, batch_size=2, seq_len=8, rounds=2, threads=1)
    assert tuple(out["shares"]) == tuple(out["seconds"]) == PARTS
    assert sum(out["shares"].values()) == pytest.approx(1)
    assert min(out["shares"].values()) > 0
    assert sum(out["seconds"].values()) == pytest.approx(out["profiler_slowdown"] * out["t_step"])
    assert out["noise_per_weight"]["move"] == 1
    assert out["rounds"] == 2
    assert out["passes"] > 10
    assert json.loads(json.dumps(out)) == out
    assert len(as_text(out).splitlines()) == len(PARTS) + 1
    assert loss.token_losses is before


def test_directions_of_rank_one_draw_next_to_nothing(tiny: str) -> None:
    out = bench_profile(tiny, batch_size=1, seq_len=4, rounds=1, threads=1, law="rankone")
    assert out["noise_per_weight"]["probes"] < 0.2
    assert out["shares"]["noise_probes"] > 0


def spent(run: Any) -> dict[str, float]:
    """Seconds by part of what `run` does."""
    with profile(activities=[ProfilerActivity.CPU]) as seen, record_function(STEP):
        run()
    return seconds_by_part(seen.events())


def test_operators_go_to_the_part_that_they_belong_to() -> None:
    x, q = torch.randn(256, 256), torch.randn(1, 4, 256, 64)
    assert spent(lambda: [x @ x for _ in range(50)])["matmul"] > 0
    attended = spent(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attended["attention"] > 0
    assert attended["matmul"] == 0
    assert spent(lambda: x.exp())["other"] > 0

    def in_head() -> None:
        with record_function("zograd::head"):
            x @ x
            with record_function("zograd::probes"):
                x.exp()

    headed = spent(in_head)
    assert headed["matmul"] == headed["other"] == headed["noise_move"] == 0
    assert headed["loss_head"] > 0
    assert headed["noise_probes"] > 0
    assert headed["python"] > 0


def test_only_steps_count() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.randn(64, 64) @ torch.randn(64, 64)
    assert set(seconds_by_part(seen.events()).values()) == {0.0}


def passes_of(law: laws.Law, together: int, lazily: bool = False) -> list[profiling.Pass]:
    """Passes of one two-point step on a matrix of 60 x 40 and a vector of 60."""
    w, b, x = torch.randn(60, 40), torch.randn(60), torch.randn(5, 40)
    store = Store({"w": w, "b": b})
    run = Run(store, methods.make("zo_sgd", lr=1e-3, law=law), 0)

    def losses(copies: int) -> torch.Tensor:
        y = torch.nn.functional.linear(x.repeat(copies, 1), w, b)
        return y.view(copies, -1).square().mean(1)

    oracle = batched(losses, together) if together > 1 else sequential(lambda: losses(1).sum())
    run.step(oracle)  # batched() compares both ways in the first step
    if not lazily:
        with watched() as passes:
            run.step(oracle)
        return passes
    with store.deferring():
        run.step(oracle)
        with watched() as passes:
            run.step(oracle)
    return passes


@pytest.mark.parametrize("lazily", [False, True])
def test_a_step_one_point_at_a_time_draws_its_noise_three_times(lazily: bool) -> None:
    passes = passes_of(laws.Rademacher(), 1, lazily)
    drawn = {part: sum(p.drawn for p in passes if p.part == part) for part in ("probes", "move")}
    assert drawn == {"probes": 2 * 2460, "move": 2460}
    assert all(p.in_place == (p.part == "move") for p in passes)


def test_the_two_sides_of_a_pair_share_their_noise() -> None:
    passes = passes_of(laws.Rademacher(), 2)
    pairs = [p for p in passes if p.name == "combine_pair"]
    assert [p.drawn for p in pairs] == [2400, 60]
    assert sum(p.drawn for p in passes if p.part == "move") == 2460


def test_everything_is_as_it_was_afterwards() -> None:
    owners = (
        profiling.native,
        profiling.portable,
        profiling.cuda,
        profiling.kernels,
        profiling.Lens,
        profiling.Iterate,
    )
    before = [dict(vars(owner)) for owner in owners]
    with pytest.raises(ZeroDivisionError), watched():
        raise ZeroDivisionError
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_device_whose_operators_do_not_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    with pytest.raises(ValueError, match="set CUDA_LAUNCH_BLOCKING=1"):
        bench_profile("any", device="cuda")
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        bench_profile("any", rounds=0)


def test_the_command_prints_one_json_object(tiny: str) -> None:
    options = ["--model", tiny, "--batch-size", "1", "--seq-len", "4", "--rounds", "1", "--threads", "1", "--json"]
    run = CliRunner().invoke(app, ["bench", "profile", *options])
    assert run.exit_code == 0
    assert tuple(json.loads(run.stdout)["shares"]) == PARTS
