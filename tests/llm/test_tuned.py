"""Predict and generate: a model or a run that answers a text, a file or lines, with labels or with text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import TaskError
from zograd.llm.evaluate import evaluate
from zograd.llm.prompts import Form, read_inputs
from zograd.llm.restore import replay
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned

COMMON: dict[str, Any] = {
    "task": "mr", "method": "zo_sgd", "steps": 3, "batch_size": 4, "train_examples": 12, "eval_examples": 12, "lr": 3.0,
    "mu": 1e-2, "dtype": "float32", "threads": 1, "layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers") / "run"
    train(TrainSettings.model_validate({**COMMON, "model": str(tiny_model)}), folder, quiet=True)
    return folder


def zograd(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


def parsed(text: str) -> Any:
    """Strict JSON: NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_a_run_answers_as_the_weights_that_replay_writes(run: Path, tmp_path: Path) -> None:
    """The probabilities are the softmax of the label words' logits, as transformers computes them.

    The folder is complete: `lm_eval --model hf` and servers read configuration, tokenizer and safetensors from it.
    """
    replay(run, None, tmp_path / "weights")
    files = {file.name for file in (tmp_path / "weights").iterdir()}
    assert files >= {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "weights")
    texts = ["a good film", "very bad", "it is good , not great", "terrible"]
    words = [tokenizer.convert_tokens_to_ids(w) for w in ("terrible", "great")]
    for text, found in zip(texts, Tuned(run).predict(texts), strict=True):
        prompt = tokenizer(f"{text} It was", return_tensors="pt")
        with torch.no_grad():
            expected = model(**prompt).logits[0, -1, words].softmax(0).tolist()
        assert list(found.probabilities) == ["negative", "positive"]
        assert list(found.probabilities.values()) == pytest.approx(expected, rel=1e-4)
        assert found.label == ["negative", "positive"][expected[1] > expected[0]]
        assert found.probability == max(found.probabilities.values())
        assert found.prompt == f"{text} It was"


def test_predictions_agree_with_the_accuracy_of_eval(run: Path, tmp_path: Path) -> None:
    """With --calibrate, with `calibrated` of it."""
    from zograd.hub import load_task

    chosen = load_task("mr").splits["test"][:30]
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps({"text": e.prompt.removesuffix(" It was")}) + "\n" for e in chosen))
    expected = evaluate(None, None, run, split="test", examples=30)
    tuned = Tuned(run)
    for calibrate, key in ((False, "value"), (True, "calibrated")):
        found = tuned.predict(read_inputs(data), calibrate=calibrate)
        hits = [p.label == ("negative", "positive")[e.label] for p, e in zip(found, chosen, strict=True)]
        assert sum(hits) / 30 == pytest.approx(expected[key])


def test_texts_files_and_lines_give_the_same_predictions(run: Path, tmp_path: Path) -> None:
    texts = ["a good film", "very bad"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"review": t, "id": 1}) + "\n" for t in texts))
    (tmp_path / "a.csv").write_text("review,id\n" + "".join(f"{t},1\n" for t in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    given: list[tuple[list[object], str | None]] = [
        ([*texts], None),
        ([], "\n".join(texts)),
        (["--file", tmp_path / "a.txt"], None),
        (["--file", tmp_path / "a.jsonl", "--text-column", "review"], None),
        (["--file", tmp_path / "a.csv", "--text-column", "review", "--out", tmp_path / "out.jsonl"], None),
    ]
    results = []
    for arguments, stdin in given:
        code, out, err = zograd("predict", run, *arguments, "--json", "--threads", 1, stdin=stdin)
        assert code == 0, err
        (line,) = out.splitlines()
        results.append(parsed(line))
    assert all(r["predictions"] == results[0]["predictions"] for r in results)
    assert [parsed(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == results[0]["predictions"]
    assert results[0]["calibrated"] is False
    assert results[0]["steps"] == 3


def test_a_run_needs_its_data_no_more(tiny_model: Path, tmp_path: Path) -> None:
    """Template, classes and words stand in run.json, also those that came from the file."""
    data = tmp_path / "mine.jsonl"
    rows = [{"text": t, "label": k} for k, t in [("bad", "a film very bad"), ("good", "a film very good")] * 8]
    data.write_text("".join(json.dumps({**row, "text": f"{row['text']} {n}"}) + "\n" for n, row in enumerate(rows)))
    s = TrainSettings.model_validate({**COMMON, "model": str(tiny_model), "task": str(data), "steps": 1})
    train(s, tmp_path / "run", quiet=True)
    before = Tuned(tmp_path / "run").predict(["a film"])
    data.unlink()
    assert Tuned(tmp_path / "run").predict(["a film"]) == before
    assert before[0].prompt == "a film\nLabel:"
    assert list(before[0].probabilities) == ["bad", "good"]
    other = Tuned(tmp_path / "run", prompt_template="{text} is", label_words={"bad": " terrible", "good": " great"})
    assert other.predict(["a film"])[0].prompt == "a film is"
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    del meta["data"]["asks"]  # as an earlier release wrote it: the file says the words
    (tmp_path / "run" / "run.json").write_text(json.dumps(meta))
    with pytest.raises(TaskError, match="does not exist"):
        Tuned(tmp_path / "run")


def test_generate_is_what_transformers_generates(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Prompts of several lengths share a batch, padded on the left."""
    replay(run, None, tmp_path / "weights")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "weights")
    texts = ["a good film", "bad", "it was very , very good and it was not"]
    found = Tuned(run).generate(texts, max_new_tokens=6)
    for text, generated in zip(texts, found, strict=True):
        prompt = tokenizer(f"{text} It was", return_tensors="pt")
        ids = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=6, do_sample=False)
        expected = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :])
        assert generated.text.strip() == expected.strip()
        assert (generated.tokens, generated.ended) == (6, "length")


def test_a_stop_text_and_an_end_token_end_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    tuned = Tuned(tiny_model)
    whole = tuned.generate(["a good film", "bad"], max_new_tokens=6, temperature=3.0, seed=5)
    word = whole[0].text.split()[2]
    cut, _ = tuned.generate(["a good film", "bad"], max_new_tokens=6, temperature=3.0, seed=5, stop=[f" {word}"])
    assert cut.text == whole[0].text[: whole[0].text.index(f" {word}")]
    assert (cut.tokens, cut.ended) == (3, "stop")
    model, tokenizer, _ = tuned._ready
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(word)]
    cut, _ = tuned.generate(["a good film", "bad"], max_new_tokens=6, temperature=3.0, seed=5)
    assert cut.text.split() == whole[0].text.split()[:2]
    assert (cut.tokens, cut.ended) == (3, "stop")


def test_the_seed_draws_and_leaves_the_random_state_alone(tiny_model: Path) -> None:
    tuned, state = Tuned(tiny_model), torch.get_rng_state()
    one, two, other = (tuned.generate(["a good"], temperature=2.0, max_new_tokens=8, seed=s)[0].text for s in (1, 1, 2))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), state)


def test_templates_of_several_columns_take_records() -> None:
    form = Form("{passage} {question}?", ("no", "yes"), (" no", " yes"))
    assert form.examples([{"passage": "It rains.", "question": "wet", "id": 3}])[0].prompt == "It rains. wet?"
    assert form.examples(['{"passage": "It rains.", "question": 1}'])[0].prompt == "It rains. 1?"
    for bad, says in [
        ("It rains.", "input 2 is one text, and an input has the columns passage, question: write"),
        ({"passage": "x"}, "input 2 has no column 'question', which the prompt template"),
        ({"passage": "x", "question": None}, "input 2: the column 'question' holds nothing"),
        (3, "input 2 is int, and expected is a text"),
        (" ", "input 2 is empty"),
    ]:
        with pytest.raises(TaskError, match=says):
            form.examples([{"passage": "a", "question": "b"}, bad])  # type: ignore[list-item]


REFUSED: dict[str, tuple[list[object], int, str]] = {
    "no labels": (["predict", "MODEL", "text"], 2, "has no labels: choose the labels with --task, or with"),
    "no input": (["predict", "RUN"], 1, "there is nothing to answer"),
    "one to calibrate": (["predict", "RUN", "text", "--calibrate"], 2, "here is one; give several"),
    "dtype of a run": (["predict", "RUN", "text", "--dtype", "bf16"], 2, "--dtype cannot be chosen for a run"),
    "base of no run": (["predict", "MODEL", "text", "--model", "x", "--task", "mr"], 2, "is the base model of a run"),
    "words of other labels": (
        ["predict", "RUN", "text", "--label-words", "a=x,b=y"],
        1,
        "the labels are negative, pos",
    ),
    "no such file": (["predict", "RUN", "--file", "gone.jsonl"], 1, "gone.jsonl does not exist"),
    "kind of file": (["predict", "RUN", "--file", "a.docx"], 1, "is not a file of .jsonl"),
    "column": (["predict", "RUN", "--file", "FILE"], 1, "line 1 has no column 'text'.*--text-column names the column"),
    "out is the input": (["predict", "RUN", "--file", "FILE", "--out", "FILE"], 2, "which would be lost"),
    "out is a folder": (["predict", "RUN", "text", "--out", "."], 2, "is a folder; give the name of a file"),
    "out in no folder": (["predict", "RUN", "text", "--out", "no/a.jsonl"], 2, "there is no folder"),
    "no tokens": (["generate", "RUN", "text", "--max-new-tokens", "0"], 2, "--max-new-tokens 0: at least 1"),
    "cold": (["generate", "RUN", "text", "--temperature", "-1"], 2, "--temperature -1.0: it is 0"),
    "stop at nothing": (["generate", "RUN", "text", "--stop", ""], 2, "--stop is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_a_model_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    import re

    import zograd.llm.tuned as module

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "restore", load)
    monkeypatch.setattr(module.loading, "load", load)
    file = tmp_path / "in.jsonl"
    file.write_text('{"sentence": "x"}\n')
    arguments, code, says = REFUSED[case]
    names = {"RUN": run, "MODEL": "smollm2-135m", "FILE": file}
    done, out, err = zograd(*[names.get(str(a), a) for a in arguments], stdin="")
    assert (done, out) == (code, "")
    assert re.search(says, err), err
    assert len([line for line in err.splitlines() if "zograd: importing torch ..." not in line]) == 1
    assert file.read_text() == '{"sentence": "x"}\n'


def test_a_prompt_that_is_too_long_is_named(tiny_model: Path) -> None:
    with pytest.raises(TaskError, match=r"has 100 tokens, and with --max-new-tokens 64 it is longer than the 128"):
        Tuned(tiny_model).generate(["good " * 100])
    with pytest.raises(TaskError, match="200 tokens, but the model takes 128"):
        Tuned(tiny_model, prompt_template="{text}", label_words={"a": " good", "b": " bad"}).predict(
            ["good" + " good" * 199]
        )


def test_scores_that_are_not_finite_have_no_label_and_strict_json(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    shutil.copytree(tiny_model, tmp_path / "broken")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    code, out, err = zograd("predict", tmp_path / "broken", "good", "--task", "mr", "--json")
    assert code == 1
    assert parsed(out)["predictions"] == [
        {"prompt": "good It was", "label": None, "probability": None, "probabilities": {}}
    ]
    assert "1 of 1 inputs have scores that are not finite, and so no label" in err


def test_each_stage_is_shown_with_a_bar(run: Path, tiny_model: Path) -> None:
    """As `zograd train` shows them; nothing with --json, where stderr is no terminal."""
    of_a_run = [f"zograd: loading {tiny_model} ... ", "zograd: replaying 3 steps ... "]
    for arguments, stages, bar in [
        (("predict", run, "a film", "bad"), of_a_run, "zograd: answering: 100%|"),
        (("generate", run, "a film", "--max-new-tokens", 3), of_a_run, "zograd: writing: 100%|"),
        (("eval", "--run", run, "--examples", 5), ["zograd: reading mr ... ", *of_a_run], "zograd: evaluating: 100%|"),
        (("eval", "--model", tiny_model, "--task", "mr", "--examples", 5), ["zograd: reading mr ... ", of_a_run[0]],
         "zograd: evaluating: 100%|"),
    ]:  # fmt: skip
        code, _, err = zograd(*arguments)
        assert code == 0, err
        places = [err.index(what) for what in ("zograd: importing torch ... ", "importing transformers", *stages, bar)]
        assert places[0] == 0
        assert places[2:] == sorted(places[2:])
        assert zograd(*arguments, "--json")[2] == ""


def test_replay_shows_its_stages(run: Path, tmp_path: Path) -> None:
    code, _, err = zograd("replay", run, "--out", tmp_path / "weights")
    assert code == 0
    for stage in ("importing torch ... ", "replaying 3 steps ... ", f"writing {tmp_path / 'weights'} ... "):
        assert f"zograd: {stage}" in err


@pytest.mark.parametrize("stop", [(), ("film",)])
def test_progress_is_told_after_each_token_and_adds_up_to_the_prompts(tiny_model: Path, stop: tuple[str, ...]) -> None:
    from zograd.llm import loading
    from zograd.llm.generation import generate

    told: list[float] = []
    model, tokenizer = loading.load(str(tiny_model))
    found = generate(model, tokenizer, ["good"] * 20, max_new_tokens=4, stop=stop, progress=told.append)
    longest = max(g.tokens for g in found)
    assert len(told) == 2 * (longest + 1)  # two groups of prompts, and what is left of each
    assert sum(told) == pytest.approx(20)
    assert max(told[:longest]) == pytest.approx(16 / 4)


def test_what_people_see(run: Path) -> None:
    code, out, err = zograd("predict", run, "a good film")
    assert code == 0
    assert sorted(line.split()[1] for line in out.splitlines()) == ["negative", "positive"]
    assert float(out.split("%")[0]) >= 50
    assert "probabilities of the label words, not calibrated" in err
    code, out, err = zograd("predict", run, "a good film", "bad", "--calibrate")
    assert [line.split("\t")[1] for line in out.splitlines()] == ["a good film It was", "bad It was"]
    assert "after the mean score of each label is subtracted" in err
    code, out, _ = zograd("generate", run, "a good film", "bad", "--max-new-tokens", 2)
    assert out.startswith("> a good film It was\n")


CHATS = [
    [{"role": "user", "content": f"a good film {k}"}, {"role": "assistant", "content": "very good"}] for k in range(20)
]


@pytest.fixture
def chatting(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template."""
    folder = shutil.copytree(tiny_model, tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} , {{ m.content }} . {% endfor %}"
        "{% if add_generation_prompt %}assistant , {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["chat", "instruction"])
def test_a_run_on_conversations_answers_the_turn_of_a_user(chatting: Path, tmp_path: Path, kind: str) -> None:
    """A text, its turns, and the record of a file have the prompt that the chat template writes, as in training."""
    rows: list[Any] = [{"messages": turns} for turns in CHATS]
    if kind == "instruction":
        rows = [{"instruction": t[0]["content"], "input": "", "output": t[1]["content"]} for t in CHATS]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    s = {**COMMON, "model": str(chatting), "task": str(data), "lr": 1e-3, "train_examples": 8, "eval_examples": 2}
    train(TrainSettings.model_validate(s), tmp_path / "run", quiet=True)
    data.rename(tmp_path / "in.jsonl")
    tuned = Tuned(tmp_path / "run")
    model, tokenizer, _ = tuned._ready
    ids = tokenizer("user , a good film 3 . assistant , ", return_tensors="pt").input_ids
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(whole[0, ids.shape[1] :]).strip()
    inputs: list[Any] = ["a good film 3", rows[3], read_inputs(tmp_path / "in.jsonl")[3]]
    if kind == "chat":
        inputs.append({"messages": CHATS[3][:1]})
    assert [g.text.strip() for g in tuned.generate(inputs, max_new_tokens=4)] == [expected] * len(inputs)
    with pytest.raises(SettingsError, match="was trained to write"):
        tuned.predict(["a good film 3"])
    plain = Tuned(chatting).generate([{"messages": CHATS[3]}], max_new_tokens=4)
    assert plain[0].prompt == "User: a good film 3\nAssistant:"


def test_several_words_of_a_class_stay_in_the_run(tiny_model: Path, tmp_path: Path) -> None:
    words = {"0": [" bad", " terrible"], "1": [" good", " great"]}
    train(TrainSettings.model_validate({**COMMON, "model": str(tiny_model), "label_words": words}), tmp_path / "run")
    (found,) = Tuned(tmp_path / "run").predict(["a good film"])
    one, two = (Tuned(tmp_path / "run", label_words=w).predict(["a film"])[0] for w in (None, words))
    assert one == two
    assert sum(found.probabilities.values()) == pytest.approx(1)
