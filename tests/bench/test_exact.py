"""zograd's weights return to their bits and its updates arrive, where the baseline loop's do not."""

from __future__ import annotations

import pytest
import torch

from zograd.bench import bench_exact
from zograd.bench.exact import Net, arrived, cosine, gain, restored
from zograd.stores import Store


def nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_return_after_queries(dtype: torch.dtype):
    assert restored(dtype, 1 << 12, 50, 0, nothing)


def test_restored_notices_a_changed_weight(monkeypatch: pytest.MonkeyPatch):
    digests = iter(["before", "after"])
    monkeypatch.setattr(Store, "digest", lambda self: next(digests))
    assert not restored(torch.float32, 1 << 10, 2, 0, nothing)


def test_restored_notices_a_probe_that_did_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zograd.bench.exact.MU", 0.0)
    assert not restored(torch.float32, 1 << 10, 2, 0, nothing)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1e-5])
def test_split_arrives_and_stochastic_is_unbiased(dtype: torch.dtype, size: float):
    row = arrived(dtype, 1 << 17, 50, 1e-6, size, 0, nothing)
    assert row["cosine_split"] >= 0.999
    assert row["gain_split"] == pytest.approx(1.0, abs=1e-3)
    assert abs(row["stochastic_bias_z"]) <= 4
    if dtype == torch.bfloat16:
        assert row["baseline_gain"] < 0.5, "most of a small step is rounded away in the plain loop"


def test_the_keys_of_the_contract_are_of_bfloat16_by_default():
    out = bench_exact(queries=300, updates=20, n=1 << 14, threads=1)
    assert out["dtype"] == "bfloat16"
    assert out["restored"] is True
    assert out["baseline_drift"] > 0.05
    assert out["cosine_split"] >= 0.999
    assert {"cosine_stochastic", "baseline_cosine", "stochastic_bias_z"} <= out.keys()
    assert [row["dtype"] for row in out["table"]] == ["float32", "bfloat16", "float16"]
    assert out["table"][0]["stochastic_bias_z"] is None
    assert all(len(row["by_size"]) == 2 for row in out["table"])


def test_one_dtype_on_request_and_nothing_on_stdout(capsys: pytest.CaptureFixture[str]):
    out = bench_exact(dtype="fp16", queries=4, updates=4, n=1 << 10)
    assert out["dtype"] == "float16"
    assert len(out["table"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "bad", [{"queries": 0}, {"updates": 1}, {"n": 1}, {"sizes": ()}, {"sizes": (0.0,)}, {"lr": 0.0}]
)
def test_settings_that_measure_nothing_are_refused(bad: dict[str, object]):
    with pytest.raises(ValueError, match="nothing to measure"):
        bench_exact(**bad)


def test_the_random_state_and_the_threads_are_the_callers():
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    bench_exact(dtype="bf16", queries=2, updates=2, n=1 << 10, threads=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_cosine_and_gain():
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 2.0]).double()
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert gain(a, b) == pytest.approx(0.25)
    assert cosine(torch.zeros(2).double(), b) == 0.0


def test_the_module_has_about_n_elements():
    assert sum(w.numel() for w in Net(1 << 12, torch.float32, 0).matrices()) == pytest.approx(1 << 12, rel=0.05)
