"""Soft prompts and prefixes: the scores of peft's own forward, training, resuming, replaying, planning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM, PromptTuningConfig, get_peft_model

from tests.families import family, saved
from tests.hf.helpers import Forward, arguments, llama, losses, rows
from zograd.blockwise import Ends, Lookup, Nodes
from zograd.core.vector import Noise, Vector
from zograd.hub import Example, Task
from zograd.lens.branches import Branches
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.oracle import Forwards
from zograd.llm.restore import replay, restore
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.noise import Kind
from zograd.runs.plan import plan
from zograd.stores import Store

EXAMPLES = [Example(f"{'very ' * k}good {'maybe ' * (k // 2)}It was", k % 2) for k in range(1, 7)]
ONE, SEVERAL = (" terrible", " great"), (" very bad", " no great yes")
PARTS = ["prompt", "prefix"]
FAMILIES = ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in (
    "qwen2", "qwen3", "gpt_neox", "opt", "mixtral", "phi", "phi3", "gemma", "falcon", "bloom", "mpt"))]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return loading.load(str(tiny_model), dtype="float32")[1]


def task(words: tuple[str, ...], kind: str = "classification") -> Task:
    examples = EXAMPLES if words else [Example(e.prompt, -1, SEVERAL[e.label]) for e in EXAMPLES]
    return Task("toy", "{text} It was", words, {"train": examples}, "made", "none", kind=kind)


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_pefts_own_forward(tokenizer: Any, name: str, part: str) -> None:
    """Label words of one token and of several, completions; alone, and at two points in one forward."""
    model: Any = loading.attach_virtual(family(name, len(tokenizer)), part, 3, 0)
    weight = model.prompt_encoder["default"].embedding.weight
    weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    def own(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer.encode(text)])
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        return found[-ids.shape[1] :]

    def likelihood(prompt: str, word: str) -> torch.Tensor:
        first, tail = len(tokenizer.encode(prompt)), torch.tensor(tokenizer.encode(word))
        return -F.cross_entropy(own(prompt + word)[first - 1 : -1], tail)

    ids = [tokenizer.encode(word)[0] for word in ONE]
    one, several = Scorer(model, tokenizer, task(ONE)), Scorer(model, tokenizer, task(SEVERAL))
    expected = torch.stack([own(e.prompt)[-1, ids] for e in EXAMPLES])
    torch.testing.assert_close(one.scores(EXAMPLES), expected, rtol=1e-3, atol=1e-4)
    expected = torch.stack([torch.stack([likelihood(e.prompt, word) for word in SEVERAL]) for e in EXAMPLES])
    torch.testing.assert_close(several.scores(EXAMPLES), expected, rtol=1e-3, atol=1e-4)
    written = Scorer(model, tokenizer, task((), "completion"))
    losses_ = written.losses(written.task.splits["train"])
    expected = torch.stack([-likelihood(e.prompt, SEVERAL[e.label]) for e in EXAMPLES])
    torch.testing.assert_close(losses_, expected, rtol=1e-3, atol=1e-4)
    store = Store(loading.select(model, part))
    z = Vector(((Noise(Kind.NORMAL, 7), 0.1),))
    sides = []
    for side in (z, -z):
        with store.at(side):
            sides.append(one.scores(EXAMPLES))
    with Branches(store, [z, -z]):
        both = one.scores(EXAMPLES, 2)
    torch.testing.assert_close(both, torch.cat(sides), rtol=1e-3, atol=1e-4)
    assert float((sides[0] - sides[1]).abs().max()) > 1e-4


def settings(model: Path, part: str, **more: Any) -> TrainSettings:
    given: dict[str, Any] = {
        "model": str(model), "task": "mr", "train": part, "tokens": 4, "method": "zo_sgd", "lr": "auto", "steps": 30,
        "batch_size": 8, "train_examples": 8, "eval_examples": 8, "dtype": "float32", "threads": 1,
    }  # fmt: skip
    return TrainSettings(**{**given, **more})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks for it
@pytest.mark.parametrize("part", PARTS)
def test_it_learns_resumes_and_is_saved_as_peft_saves_it(
    tokenizer: Any, tmp_path: Path, tiny_model: Path, part: str
) -> None:
    s = settings(tiny_model, part)
    done = train(s, tmp_path / "run", quiet=True)
    assert done["trained"] == 4 * (32 if part == "prompt" else 2 * 4 * 16)
    assert done["loss_last"] < done["loss_first"]
    train(s.model_copy(update={"steps": 15}), tmp_path / "parts", quiet=True)
    resumed = train(TrainSettings(steps=30), tmp_path / "parts", resume=True, quiet=True)
    assert resumed["sha256"] == done["sha256"]
    scored = evaluate(None, None, tmp_path / "run", split="validation", examples=8)
    assert scored["loss"] == pytest.approx(done["eval_loss_after"], rel=1e-5)
    replay(tmp_path / "run", None, tmp_path / "saved")
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    assert theirs.prompt_encoder["default"].embedding.weight.numel() == done["trained"]
    with torch.no_grad():
        loaded = Scorer(theirs, tokenizer, task(ONE)).scores(EXAMPLES)
        ours = Scorer(restore(tmp_path / "run")[0].model, tokenizer, task(ONE)).scores(EXAMPLES)
        base = Scorer(loading.load(str(tiny_model), dtype="float32")[0], tokenizer, task(ONE)).scores(EXAMPLES)
    torch.testing.assert_close(loaded, ours)
    assert float((loaded - base).abs().max()) > 1e-4


@torch.no_grad()
def test_a_new_prefix_leaves_the_model_nearly_as_it_was(tokenizer: Any) -> None:
    model = family("llama", len(tokenizer))
    before = Scorer(model, tokenizer, task(ONE)).scores(EXAMPLES)
    after = Scorer(loading.attach_virtual(model, "prefix", 3, 0), tokenizer, task(ONE)).scores(EXAMPLES)
    assert float((after - before).abs().max()) < 0.3 * float(before.std())
    one, two = (loading.attach_virtual(family("llama", 64), "prompt", 3, seed) for seed in (5, 5))
    for a, b in zip(loading.select(one, "prompt").values(), loading.select(two, "prompt").values(), strict=True):
        assert torch.equal(a, b)


def test_without_a_method_values_are_taken(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = settings(tiny_model, "prompt", steps=2)
    train(TrainSettings(**s.model_dump(exclude={"method", "lr", "method_settings"})), tmp_path / "run", quiet=True)
    assert "training by zo_sgd, because virtual tokens stand in front of all blocks" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trained"] == [
        "prompt_encoder.default.embedding.weight"
    ]


@pytest.mark.parametrize("part", PARTS)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(tmp_path: Path, part: str) -> None:
    blocks = "residual feedback knows no derivative at virtual tokens.* Use --method node_perturbation"
    for more, match in (
        ({"method": "residual", "lr": None}, f"does not go with --method residual, as {blocks}"),
        ({"method": "forward_residual", "lr": None}, f"does not go with --method forward_residual, as {blocks}"),
        (
            {"method": "node_perturbation", "lr": None, "set": {"at": "blocks", "center": "residual"}},
            f"--method node_perturbation with center=residual, as {blocks} alone",
        ),
        ({"layers": 2}, "does not go with --layers"),
        ({"offload": "disk"}, "does not go with --offload"),
    ):
        with pytest.raises(SettingsError, match=match):
            train(settings(tmp_path / "none", part, **more), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("part", PARTS)
def test_models_that_have_no_place_for_them_are_refused(tokenizer: Any, tmp_path: Path, part: str) -> None:
    with pytest.raises(loading.ModelError, match="virtual tokens are for causal language models, and this is Bert"):
        loading.attach_virtual(family("bert", 64, "AutoModelForMaskedLM"), part, 2, 0)
    mamba = saved(tmp_path / "mamba", "mamba", tokenizer)
    if part == "prefix":
        with pytest.raises(loading.ModelError, match="--train prefix does not fit MambaForCausalLM"):
            train(settings(mamba, part), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("part", PARTS)
def test_a_plan_counts_them(tiny_model: Path, part: str) -> None:
    answer = plan(str(tiny_model), train=part, tokens=4, seq_len=16)
    assert answer["trainable"] == 4 * (32 if part == "prompt" else 2 * 4 * 16)
    more = plan(str(tiny_model), train=part, tokens=64, seq_len=16)
    assert more["activation_bytes"] > answer["activation_bytes"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_a_trainer_takes_a_soft_prompt_of_peft(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(llama(), config)
    trainer = Forward(model=model, args=arguments(tmp_path, max_steps=20), train_dataset=rows(4), lr=0.1, method="fzoo")
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


# ---- node perturbation -----------------------------------------------------------------------------------------------


def front_of(model: Any) -> Ends:
    virtual = loading.virtual_of(model)
    assert virtual is not None
    return Ends(front=list(loading.select(model, virtual.part)), lookup=virtual.lookup)


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("prompt", "llama", ONE),
        ("prompt", "gemma", ()),  # its embeddings are scaled behind the lookup; completions
        ("prefix", "gpt2", ()),
        ("prefix", "llama", SEVERAL),
    ],
    ids=["prompt, one token", "scaled prompt, completions", "prefix, completions", "prefix, words of several tokens"],
)
def test_the_mean_of_node_perturbation_is_the_gradient(
    tokenizer: Any, part: str, name: str, words: tuple[str, ...]
) -> None:
    """Against autograd, along random directions and along the gradient; packed rows, and rows with padding."""
    model = loading.attach_virtual(family(name, len(tokenizer)), part, 3, 0).requires_grad_(False)
    scorer = Scorer(model, tokenizer, task(words, "classification" if words else "completion"))
    store = Store(loading.select(model, part))
    weight, examples = store.tensors[0], scorer.task.splits["train"][::2]  # of one label, so that they agree
    weight.requires_grad_(True)
    (exact,) = torch.autograd.grad(scorer.loss(examples), weight)
    weight.requires_grad_(False)
    source = Nodes(loading.blocks(model), store.leaves, front_of(model))
    before = store.digest()

    def draw(key: int) -> torch.Tensor:
        assert len(source.observe(Forwards(scorer, examples), key)) == 2
        found = source.gradient(store.leaves[0])
        source.end()
        return found

    found = torch.stack([draw(key) for key in range(80)]).double()
    assert torch.equal(draw(7).double(), found[7])
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(weight.shape, generator=generator) for _ in range(5)] + [exact / exact.norm()]
    values = found @ torch.stack(along).flatten(1).T.double()
    expected = torch.tensor([float((exact * v).sum()) for v in along], dtype=torch.float64)
    error = values.std(0) / len(values) ** 0.5
    assert float(((values.mean(0) - expected) / error).abs().max()) < 3.5
    assert float(values.mean(0)[-1] / error[-1]) > 4  # it is told from 0
    assert store.digest() == before


def test_each_example_has_noise_of_its_own(tokenizer: Any) -> None:
    """On one example it is one direction for the batch; on twelve alike the variance is a part of that."""
    model = loading.attach_virtual(family("llama", len(tokenizer)), "prompt", 3, 0).requires_grad_(False)
    store = Store(loading.select(model, "prompt"))
    scorer = Scorer(model, tokenizer, task(ONE))
    variances = []
    for copies in (1, 12):
        source = Nodes(loading.blocks(model), store.leaves, front_of(model))
        found = []
        for key in range(60):
            source.observe(Forwards(scorer, EXAMPLES[:1] * copies), key)
            found.append(source.gradient(store.leaves[0]))
            source.end()
        variances.append(float(torch.stack(found).var(0).sum()))
    assert variances[1] / variances[0] == pytest.approx(1 / 12, rel=0.3)


def test_a_front_that_is_not_one_lookup_is_refused(tokenizer: Any) -> None:
    model = loading.attach_virtual(family("llama", len(tokenizer)), "prompt", 3, 0)
    store, blocks = Store(loading.select(model, "prompt")), loading.blocks(model)
    front = front_of(model)
    assert front.lookup is not None
    with pytest.raises(ValueError, match=r"reaches one embedding in front of the blocks, given as ends\.lookup"):
        Nodes(blocks, store.leaves, front._replace(lookup=None))
    other = Lookup(torch.nn.Embedding(3, 32), front.lookup.used)
    with pytest.raises(ValueError, match=r"reaches one embedding in front of the blocks, given as ends\.lookup"):
        Nodes(blocks, store.leaves, front._replace(lookup=other))
    with pytest.raises(ValueError, match="not known in front of the blocks; leave center out"):
        Nodes(blocks, store.leaves, front, at="blocks", center=True)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks for it
@pytest.mark.parametrize("part", PARTS)
def test_node_perturbation_learns_and_goes_on_to_the_same_bits(tiny_model: Path, tmp_path: Path, part: str) -> None:
    s = settings(
        tiny_model, part, method="node_perturbation", lr=0.1, warmup=0, steps=20, save_every=4, set={"draws": 2}
    )
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.005
    assert done["evaluations"] == 4 * done["steps"]
    train(s.model_copy(update={"steps": 13}), tmp_path / "parts", quiet=True)
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == done["sha256"]
    assert replay(tmp_path / "run", None, tmp_path / "saved")["sha256"] == done["sha256"]
    answer = plan(str(tiny_model), train=part, method="node_perturbation", tokens=4, seq_len=16)
    assert answer["trainable"] == done["trained"]
