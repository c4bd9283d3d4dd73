"""Training with the weights on the disk is training with the weights in memory, bit for bit."""

from __future__ import annotations

import errno
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zograd import methods
from zograd.core.run import Run
from zograd.core.tape import Tape
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.loading import ModelError
from zograd.llm.loading import offloaded as offloading
from zograd.llm.restore import replay
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.train import train
from zograd.oracles import sequential
from zograd.runs.memory import Peak, resident_bytes
from zograd.stores import Store

COMMON: dict[str, Any] = {
    "task": "mr", "steps": 6, "batch_size": 4, "train_examples": 20, "eval_examples": 10, "lr": 1e-3, "mu": 1e-3,
    "dtype": "float32",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, untied": {"model": "untied"},
    "gpt-2": {"model": "gpt2"},
    "gpt-2, untied": {"model": "gpt2-untied"},
    "another dtype": {"dtype": "bfloat16", "lr": 1e-2},
    "nearest, decay": {"dtype": "float16", "rounding": "nearest", "lr": 1e-2, "weight_decay": 0.1},
    "lora": {"train": "lora", "lr": 0.1},
    "lora, adam": {"train": "lora", "method": "zo_adam"},
    "lora, another dtype": {"train": "lora", "dtype": "bfloat16"},
    "top blocks": {"layers": 2, "method": "fzoo", "set": {"n": 3}},
    "low rank": {"method": "lozo"},
    "rank one": {"set": {"law": "rankone"}, "steps": 11},
    "rank one, another dtype": {"set": {"law": "rankone"}, "dtype": "bfloat16", "lr": 1e-2},
    "momentum by replay": {"method": "mezo_momentum"},
    "pattern, no cache": {"train": "mlp", "cache_prefix": False},
    "residual": {"method": "residual", "mu": None, "set": {"moments": "factored"}},
    "residual, lora": {"method": "residual", "mu": None, "train": "lora", "lr": 1e-2},
    "backprop, another dtype": {
        "method": "backprop",
        "mu": None,
        "set": {"moments": "factored"},
        "dtype": "bfloat16",
        "train": "proj",  # of "full", offloaded embeddings stay as they are
    },
}

CASES = [(variant, "disk") for variant in VARIANTS] + [
    (variant, "cpu")
    for variant in (
        "full",
        "gpt-2",
        "nearest, decay",
        "lora, adam",
        "top blocks",
        "low rank",
        "rank one",
        "rank one, another dtype",
        "residual",
        "residual, lora",
    )
]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama and a GPT-2, tied and untied, with one tokenizer; the untied Llama in several files."""
    from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    llama = AutoConfig.from_pretrained(tiny_model)
    llama.tie_word_embeddings = False
    gpt2 = {
        tied: GPT2Config(
            vocab_size=llama.vocab_size, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1,
            eos_token_id=1, pad_token_id=0, tie_word_embeddings=tied,
        )
        for tied in (True, False)
    }  # fmt: skip
    torch.manual_seed(3)
    LlamaForCausalLM(llama).save_pretrained(root / "untied", max_shard_size="300KB")
    GPT2LMHeadModel(gpt2[True]).save_pretrained(root / "gpt2")
    GPT2LMHeadModel(gpt2[False]).save_pretrained(root / "gpt2-untied")
    for name in ("untied", "gpt2", "gpt2-untied"):
        tokenizer.save_pretrained(root / name)
    assert (root / "untied" / "model.safetensors.index.json").exists()
    return {"tied": tiny_model} | {name: root / name for name in ("untied", "gpt2", "gpt2-untied")}


def settings(models: dict[str, Path], **more: Any) -> TrainSettings:
    model = models[more.pop("model", "tied")]
    return TrainSettings.model_validate({**COMMON, "model": str(model), **more})


QUICK = {
    *(("gpt-2, untied", "disk"), ("lora, another dtype", "disk"), ("rank one", "disk")),
    *(("momentum by replay", "disk"), ("residual", "disk"), ("nearest, decay", "cpu"), ("low rank", "cpu")),
}
"""Each property once: the other cases are slow."""


@pytest.mark.parametrize(
    ("variant", "where"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_offloaded_weights_give_the_bits_of_weights_in_memory(
    models: dict[str, Path], tmp_path: Path, variant: str, where: str
) -> None:
    """Same losses, same tape, same weights; also after a stop in the middle, and from a replay."""
    resident = settings(models, **VARIANTS[variant])
    offloaded = resident.model_copy(update={"offload": where})
    expected = train(resident, tmp_path / "resident", quiet=True)
    found = train(offloaded, tmp_path / "whole", quiet=True)
    assert found["sha256"] == expected["sha256"]
    assert found["eval_loss_after"] == expected["eval_loss_after"]
    tapes = [list(Tape(tmp_path / name / "tape.zo").records) for name in ("resident", "whole")]
    if where == "cpu":  # how many weights a move changes is not known while it waits for its block
        tapes = [[replace(record, moved=0.0) for record in tape] for tape in tapes]
    assert tapes[0] == tapes[1]

    train(offloaded.model_copy(update={"steps": 4}), tmp_path / "parts", quiet=True)
    resumed = train(offloaded, tmp_path / "parts", resume=True, quiet=True)
    assert resumed["sha256"] == expected["sha256"]
    assert replay(tmp_path / "parts", None, tmp_path / "saved")["sha256"] == expected["sha256"]
    assert not list((tmp_path / "parts").glob("weights*"))


@pytest.mark.parametrize(
    ("variant", "where"),
    [
        ("full", "cpu"),
        ("lora", "disk"),
        *(
            pytest.param(variant, where, marks=pytest.mark.slow)
            for variant in ("full", "lora", "gpt-2", "another dtype")
            for where in ("disk", "cpu")
            if (variant, where) not in (("full", "cpu"), ("lora", "disk"))
        ),
    ],
)
def test_saved_weights_are_those_that_a_resident_replay_saves(
    models: dict[str, Path], tmp_path: Path, variant: str, where: str
) -> None:
    resident = settings(models, steps=3, **VARIANTS[variant])
    for name, s in {"a": resident, "b": resident.model_copy(update={"offload": where})}.items():
        train(s, tmp_path / name, quiet=True)
        replay(tmp_path / name, None, tmp_path / f"saved-{name}")
    a, b = (load_file(tmp_path / f"saved-{name}" / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    scored = [
        evaluate(str(tmp_path / f"saved-{x}"), "mr", None, split="validation", examples=8, dtype=resident.dtype)
        for x in "ab"
    ]
    assert scored[0] == scored[1]


@pytest.mark.parametrize("name", ["tied", "untied", "gpt2", "gpt2-untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_the_disk_is_the_model(
    models: dict[str, Path], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    resident: Any = loading.load(str(models[name]), dtype=dtype)[0]
    model, _, pages = offloading.load(str(models[name]), dtype=dtype, scratch=tmp_path)
    offloading.stream(model, pages)
    a, b = resident.state_dict(), model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    assert len(list(model.parameters())) == len(list(resident.parameters()))  # what is tied stays tied
    assert all(p in pages for p in model.parameters())
    assert not model.training
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, resident(input_ids=ids).logits)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is resident")
def test_what_is_resident_is_a_few_blocks(tmp_path: Path) -> None:
    """A step, its move and the digest of 16 blocks of 4 MiB, with the memory of fewer than 6."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    gc.collect()
    model: Any
    model, pages = offloading.load_model(tmp_path, torch.float32, tmp_path)
    trained = dict(model.named_parameters())
    offloading.make_trainable(trained, pages, tmp_path)
    offloading.stream(model, pages)
    run = Run(Store(trained, pages=pages), methods.zo_sgd(lr=1e-3))
    ids = torch.arange(16).view(2, 8)
    oracle = sequential(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    run.step(oracle)  # allocates its workspace
    with Peak() as peak:
        before = resident_bytes()
        run.step(oracle)
        run.store.digest()
    block = 4 * sum(p.numel() for p in model.model.layers[0].parameters())
    assert peak.method == "VmHWM"
    assert peak.bytes - before < 6 * block < 4 * run.store.dim / 2


def test_the_files_of_the_model_are_not_written(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["tied"] / "model.safetensors"
    before = file.read_bytes()
    train(settings(models, offload="disk", lr=1.0), tmp_path / "run", quiet=True)
    assert file.read_bytes() == before


def test_a_killed_run_goes_on_to_the_same_bits(models: dict[str, Path], tmp_path: Path) -> None:
    s = settings(models, offload="disk")
    expected = train(s, tmp_path / "whole", quiet=True)
    script = (
        "import os, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from zograd.llm.settings import TrainSettings\n"
        "from zograd.llm.loop import Loop\n"
        "from zograd.llm.train import train\n"
        "from zograd.stores import Iterate\n"
        "moves = []\n"
        "write = Iterate._write\n"
        "def killed(self, *args, **named):\n"
        "    write(self, *args, **named)\n"
        "    moves.append(1)\n"
        "    if len(moves) == 100: os.kill(os.getpid(), 9)\n"  # in the third move, which the fourth step makes
        "Iterate._write = killed\n"
        "train(TrainSettings.model_validate_json(sys.argv[1]), sys.argv[2], quiet=True)\n"
    )
    command = [sys.executable, "-c", script, s.model_dump_json(by_alias=True), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    assert Tape(tmp_path / "killed" / "tape.zo").steps == 3
    assert not list((tmp_path / "killed").glob("weights*"))
    assert train(s, tmp_path / "killed", resume=True, quiet=True)["sha256"] == expected["sha256"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Inside, no file may grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_no_room_for_the_working_copy_is_said_before_anything_is_left(models: dict[str, Path], tmp_path: Path) -> None:
    with (
        file_size_limit(50_000),
        pytest.raises(
            ModelError, match=r"cannot write the working copy .* GiB\) to .*run: File too large; .* make room"
        ),
    ):
        train(settings(models, offload="disk"), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_is_said(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ModelError, match="No space left on device; --offload disk needs that much free there"):
        train(settings(models, offload="disk"), tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_cannot_be_made_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot write the working copy .* Not a directory"):
        offloading.load(str(models["tied"]), dtype="bfloat16", scratch=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"quantized": True}, "does not go with quantized"),
        ({"quantize": "nf4"}, "does not go with quantize"),
        ({"rounding": "split"}, "does not go with rounding = split"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse({"offload": "disk", **more})


def test_methods_with_slots_are_refused_where_weights_are_on_the_disk(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"'zo_adam' keeps .*; choose a method without slots, such as zo_sgd or fzoo, or --train lora",
    ):
        train(settings(models, offload="disk", method="zo_adam"), tmp_path / "run", quiet=True)


def test_files_that_do_not_fit_are_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def copy(name: str, tensors: dict[str, torch.Tensor]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((models["tied"] / "config.json").read_text())
        save_file(tensors, folder / "model.safetensors")
        return folder

    tensors = load_file(models["tied"] / "model.safetensors")
    key = "model.layers.2.mlp.up_proj.weight"
    renamed = copy("renamed", {k + "_" * (k == key): v for k, v in tensors.items()})
    with pytest.raises(ModelError, match=rf"files have no '{key}'"):
        offloading.load_model(renamed, torch.float32, tmp_path)
    other = copy("other", {k: v[:-1].clone() if k == key else v for k, v in tensors.items()})
    with pytest.raises(ModelError, match=rf"'{key}' is \(64, 32\) in the model, but \(63, 32\) in its files"):
        offloading.load_model(other, torch.float32, tmp_path)
    short = copy("short", tensors)
    data = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ModelError, match="does not lie in the file; was the download cut short"):
        offloading.load_model(short, torch.float32, tmp_path)
    (short / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors; load the model once and write it with save"):
        offloading.load_model(short, torch.float32, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_stays_open(models: dict[str, Path], tmp_path: Path) -> None:
    def held() -> list[str]:
        gc.collect()
        targets = [os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]
        mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
        return sorted(t for t in {*targets, *mapped} if str(tmp_path) in t or str(models["tied"]) in t)

    before = held()  # by other tests of this process
    train(settings(models, offload="disk", dtype="bfloat16"), tmp_path / "run", quiet=True)
    train(settings(models, offload="disk", train="lora"), tmp_path / "lora", quiet=True)
    assert held() == before
