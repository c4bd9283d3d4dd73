"""Models that do not predict the next token: masked ones, classifiers of text, encoders with a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family, saved, with_marks
from zograd.hub import Example, Task, TaskError
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.generation import generate
from zograd.llm.restore import replay
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.others import ClassScorer, MaskedScorer, PairScorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.methods.defaults import Shape
from zograd.runs.plan import plan

EXAMPLES = [Example(f"{'very ' * k}good {'maybe ' * (k // 2)}It was", k % 2) for k in range(1, 9)]
WORDS = (" terrible", " great")
MASKED, CLASSES, PAIRS = "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return with_marks(loading.load(str(tiny_model), dtype="float32")[1])


def task(words: tuple[str, ...] = WORDS, kind: str = "classification", examples: Any = EXAMPLES) -> Task:
    classes = ("bad", "good") if kind == "classification" else ()
    return Task("toy", "{text} It was", words, {"train": examples}, "made", "none", kind=kind, classes=classes)


@torch.no_grad()
def test_a_masked_model_is_scored_at_its_mask(tokenizer: Any) -> None:
    model = family("bert", len(tokenizer), MASKED)
    scorer = scorer_of(model, tokenizer, task())
    assert type(scorer) is MaskedScorer
    wanted = [tokenizer.convert_tokens_to_ids(word.strip()) for word in WORDS]
    for e, row in zip(EXAMPLES, scorer.scores(EXAMPLES), strict=True):
        ids = tokenizer(f"{e.prompt} <mask>", return_tensors="pt").input_ids
        (at,) = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        torch.testing.assert_close(row, model(input_ids=ids).logits[0, at, wanted], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scorer.scores(EXAMPLES, 2), torch.cat([scorer.scores(EXAMPLES)] * 2))
    inside = Example("very <mask> maybe good", 0)
    ids = tokenizer(inside.prompt, return_tensors="pt").input_ids
    torch.testing.assert_close(scorer.scores([inside])[0], model(input_ids=ids).logits[0, 2, wanted])


@torch.no_grad()
def test_a_classifier_is_scored_by_its_logits_in_the_order_of_the_labels(tokenizer: Any) -> None:
    model = family("bert", len(tokenizer), CLASSES, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    scorer = scorer_of(model, tokenizer, task())
    assert type(scorer) is ClassScorer
    for e, row in zip(EXAMPLES, scorer.scores(EXAMPLES), strict=True):
        own = model(input_ids=tokenizer(e.prompt, return_tensors="pt").input_ids).logits[0]
        torch.testing.assert_close(row, own[[1, 0]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("words", [WORDS, (" very bad", " no great yes")], ids=["one token", "several"])
def test_an_encoder_with_a_decoder_is_scored_on_what_it_writes(tokenizer: Any, words: tuple[str, ...]) -> None:
    """With and without the states of the encoder stored."""
    model = family("t5", len(tokenizer), PAIRS)
    decoder = list(loading.select(model, r"decoder\.block\.1").values())
    plain = scorer_of(model, tokenizer, task(words))
    stored = scorer_of(model, tokenizer, task(words), trained=decoder, cache_prefix=True)
    assert type(plain) is PairScorer
    assert (plain.read is None, stored.read is None) == (True, False)
    for e, row in zip(EXAMPLES, plain.scores(EXAMPLES), strict=True):
        ids = tokenizer(e.prompt, return_tensors="pt").input_ids
        expected = []
        for word in words:
            answer = tokenizer(word, add_special_tokens=False, return_tensors="pt").input_ids
            logits = model(input_ids=ids, labels=answer).logits[0]
            rows = logits if len(answer[0]) == 1 else torch.log_softmax(logits, -1)
            expected.append(rows.gather(1, answer[0][:, None]).mean())
        torch.testing.assert_close(row, torch.stack(expected), rtol=1e-4, atol=1e-4)
    for _ in range(2):
        torch.testing.assert_close(stored.scores(EXAMPLES, 2), torch.cat([plain.scores(EXAMPLES)] * 2))


@torch.no_grad()
def test_a_completion_of_a_decoder_has_the_loss_of_the_model(tokenizer: Any) -> None:
    model = family("t5", len(tokenizer), PAIRS)
    e = Example("very good", -1, "a great maybe")
    scorer = scorer_of(model, tokenizer, task((), "completion", [e]))
    own = model(
        **tokenizer(e.prompt, return_tensors="pt"), labels=tokenizer(e.completion, return_tensors="pt").input_ids
    )
    torch.testing.assert_close(scorer.losses([e])[0], own.loss, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_decoder_writes_its_answer(tokenizer: Any) -> None:
    """Token by token the most likely one, from the model's own forwards; prompts of other lengths change nothing."""
    model = family("t5", len(tokenizer), PAIRS)
    model.generation_config.eos_token_id = None
    prompts = ["very good", "It was a bad maybe yes no"]
    for prompt, found in zip(prompts, generate(model, tokenizer, prompts, max_new_tokens=5), strict=True):
        ids, written = tokenizer(prompt, return_tensors="pt").input_ids, [model.config.decoder_start_token_id]
        for _ in range(5):
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1]
            written.append(int(logits.argmax()))
        assert found.text == tokenizer.decode(written[1:], skip_special_tokens=True)
        assert (found.prompt, found.tokens, found.ended) == (prompt, 5, "length")
    stopped = generate(model, tokenizer, prompts[:1], max_new_tokens=5, stop=[found.text.split()[0]])
    assert len(stopped) == 1
    with pytest.raises(TaskError, match="writes no text"):
        generate(family("bert", len(tokenizer), MASKED), tokenizer, prompts)


def reviews(path: Path) -> Path:
    """A file whose labels two words decide."""
    lines = [{"text": f"it was {word} {k}", "label": label} for k in range(60) for word, label in (
        ("good", "yes"), ("bad", "no"))]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "masked": ("bert", MASKED, {}),
    "classes": ("bert", CLASSES, {}),
    "pairs": ("t5", PAIRS, {}),
    "shared blocks": ("albert", MASKED, {}),
    "causal classes": ("qwen2", CLASSES, {}),
    "no head": ("bert", "AutoModel", {}),
}


QUICK = [("masked", "lora"), ("classes", "full"), ("pairs", "full"), ("no head", "full")]


@pytest.mark.parametrize(("kind", "part"), [
    pytest.param(kind, part, marks=() if (kind, part) in QUICK else pytest.mark.slow)
    for kind in KINDS for part in ("full", "lora")])  # fmt: skip
def test_the_default_recipe_learns(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, part: str
) -> None:
    """And what was learned is replayed, saved, loaded and scored as in the run; the run resumes to the same bits."""
    name, auto, more = KINDS[kind]
    model, data = saved(tmp_path / "model", name, tokenizer, auto, **more), reviews(tmp_path / "mine.jsonl")
    rate: dict[str, Any] = {} if kind == "shared blocks" else {"lr": 4e-3 if part == "full" else 2e-2}
    s = TrainSettings(model=str(model), task=str(data), train=part, dtype="float32", threads=1,
                      steps=400 if kind == "shared blocks" else 60, batch_size=16, **rate)  # fmt: skip
    done = train(s, tmp_path / "run", quiet=True)
    said = capsys.readouterr().err
    if kind == "shared blocks":
        assert "by zo_sgd with a measured rate, 400 steps, because its blocks run 2 times in one forward" in said
        assert done["loss_last"] < done["loss_first"]
    else:
        assert done["metric_after"] > 0.95
        assert ("by backprop, their exact gradient" if name == "bert" else "by residual") in said
    again = train(TrainSettings(), tmp_path / "run", resume=True, quiet=True)
    assert again["sha256"] == done["sha256"]
    replay(tmp_path / "run", None, tmp_path / "saved")
    scored = evaluate(str(tmp_path / "saved"), str(data), None, split="validation", dtype="float32", seed=0)
    assert scored["loss"] == pytest.approx(done["eval_loss_after"], rel=1e-3, abs=1e-5)


def test_an_encoder_without_a_head_predicts_nothing_until_it_gets_one(tokenizer: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bert", tokenizer, "AutoModel")
    with pytest.raises(loading.ModelError, match=r"BertModel has no head.*zograd train puts a head of classes on it"):
        evaluate(str(model), "mr", None, examples=4)
    one, two, other = (loading.load(str(model), dtype="float32", classes=3, seed=k)[0] for k in (5, 5, 6))
    assert one.classifier.weight.shape[0] == 3
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert plan(str(model), batch_size=2, seq_len=16)["params"] == sum(p.numel() for p in one.parameters()) - 33


def test_the_rate_of_blocks_that_do_not_add_is_a_tenth_and_is_recorded(tokenizer: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bert", tokenizer, CLASSES)
    s = TrainSettings(model=str(model), task="mr", dtype="float32", steps=2, train_examples=16, eval_examples=8)
    train(s, tmp_path / "run", quiet=True)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (stored["method"], stored["lr"]) == ("backprop", pytest.approx(0.1 * Shape(32, 2).lr, rel=0.02))


def test_a_head_is_trained_with_the_last_blocks(tokenizer: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bert", tokenizer, CLASSES)
    s = TrainSettings(model=str(model), task="mr", layers=1, dtype="float32", threads=1, steps=2, lr=1e-3,
                      train_examples=16, eval_examples=8)  # fmt: skip
    for method in ("backprop", "zo_sgd"):
        train(s.model_copy(update={"method": method}), tmp_path / method, quiet=True)
        trained = json.loads((tmp_path / method / "run.json").read_text())["trained"]
        assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} < set(trained)
        assert all("layer.1." in n or "classifier" in n or "pooler" in n for n in trained)


def gradient(model: Any, scorer: Any, names: list[str]) -> list[Tensor]:
    tensors = [dict(model.named_parameters())[name] for name in names]
    for tensor in tensors:
        tensor.requires_grad_(True)
    return list(torch.autograd.grad(scorer.loss(EXAMPLES), tensors))


@pytest.mark.parametrize("kind", ["masked", "classes"])
def test_backprop_of_an_encoder_is_its_gradient(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    """One step of SGD by the blocks moves each tensor, those of the head too, by -lr times autograd's gradient."""
    from zograd.blockwise import Backprop, Ends
    from zograd.llm.oracle import Forwards
    from zograd.stores import Store

    name, auto, _ = KINDS[kind]
    model = family(name, len(tokenizer), auto).requires_grad_(False)
    trained = loading.select(model, "full", layers=2)
    scorer = scorer_of(model, tokenizer, task(), trained=list(trained.values()))
    store = Store(trained)
    source = Backprop(list(loading.blocks(model)), store.leaves, Ends(loading.head_of(model)))
    source.observe(Forwards(scorer, EXAMPLES), 0)
    found = {leaf.name: source.gradient(leaf).view(leaf.shape) for leaf in source.order(store.leaves)}
    source.end()
    expected = gradient(model, scorer, list(found))
    for name, own in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], own, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("kind", "architecture"), [
    ("wav2vec2", "Wav2Vec2ForCTC"), ("moonshine", "MoonshineForConditionalGeneration"),
])  # fmt: skip
def test_other_models_of_speech_are_refused(tmp_path: Path, kind: str, architecture: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
    with pytest.raises(loading.ModelError, match=rf"\({architecture}\) is a model of speech, and only Whisper"):
        loading.load(str(tmp_path))


def test_what_does_not_fit_is_said(tokenizer: Any, tmp_path: Path) -> None:
    masked, classes = (family("bert", len(tokenizer), auto) for auto in (MASKED, CLASSES))
    for model, what, match in (
        (masked, task((" very good", " bad")), "the label word ' very good' has 2 tokens"),
        (masked, task((" good", " good")), "label words ' good' and ' good' have the same tokens"),
        (masked, task((), "completion", [Example("a", -1, "b")]), "fills masks and scores no longer answers"),
        (classes, task((" a", " b", " c")), "has a head of 2 classes, and the task has 3 classes"),
        (classes, task((), "completion", [Example("a", -1, "b")]), "the task has completions"),
    ):
        with pytest.raises(TaskError, match=match):
            scorer_of(model, tokenizer, what)
    with pytest.raises(TaskError, match="has 2 masks <mask>, and one is filled"):
        scorer_of(masked, tokenizer, task()).encode(Example("<mask> or <mask>", 0))
    with pytest.raises(TaskError, match="but the model takes 128: cut such examples with --truncate"):
        scorer_of(masked, tokenizer, task()).encode(Example("very " * 200, 0))
    pairs = saved(tmp_path / "t5", "t5", tokenizer, PAIRS)
    with pytest.raises(SettingsError, match="an encoder reads those of T5ForConditionalGeneration; use residual"):
        train(TrainSettings(model=str(pairs), task="mr", method="node_perturbation", layers=1, train_examples=8,
                            eval_examples=8), tmp_path / "run", quiet=True)  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["masked", "classes", "pairs"])
def test_a_plan_of_such_a_model(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    name, auto, _ = KINDS[kind]
    model = saved(tmp_path / "model", name, tokenizer, auto)
    expected = sum(p.numel() for p in family(name, len(tokenizer), auto).parameters())
    assert plan(str(model), batch_size=2, seq_len=16)["params"] == expected
    blocks = plan(str(model), method="backprop", layers=1)["trainable"]
    whole = family(name, len(tokenizer), auto)
    last = sum(p.numel() for p in loading.blocks(whole)[-1].parameters())
    assert blocks == last + sum(p.numel() for p in loading.head_of(whole).values())
