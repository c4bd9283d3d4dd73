"""Records of every shape, from a file to a loss: what is told by the columns, what is learned, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zograd.hub import Example, Task, TaskError, load_task
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.scoring.encoding import Encoder
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} <end>\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
ASKED, ANSWER = {"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": "very good"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(source: Any, **given: Any) -> tuple[Task, Example]:
    """The task, and its only example."""
    task = load_task(source, **given)
    (example,) = [e for part in task.splits.values() for e in part]
    return task, example


SHAPES: dict[str, tuple[dict[str, Any], str, Example]] = {
    "messages": ({"messages": [ASKED, ANSWER]}, "messages", Example("User: Is it good?\nAssistant:", -1, " very good")),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Is it good?"}, {"from": "gpt", "value": "very good"}]},
        "conversations",
        Example("User: Is it good?\nAssistant:", -1, " very good"),
    ),
    "as JSON in a text": (
        {"messages": json.dumps([ASKED, ANSWER])}, "messages",
        Example("User: Is it good?\nAssistant:", -1, " very good"),
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Is it good?"}]}, ANSWER]}, "messages",
        Example("User: Is it good?\nAssistant:", -1, " very good"),
    ),
    "prompt and completion as turns": (
        {"prompt": [ASKED], "completion": [ANSWER]}, "prompt and completion",
        Example("User: Is it good?\nAssistant:", -1, " very good"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_conversations(name: str) -> None:
    record, columns, expected = SHAPES[name]
    task, example = only([record])
    assert (example.prompt, example.completion) == (expected.prompt, expected.completion)
    assert example.chat == (("user", "Is it good?"), ("assistant", "very good"))
    assert task.kind == "completion"
    assert task.said == f"the last turn of the conversation in {columns} is learned"


def test_instructions() -> None:
    with_input = {"instruction": "Add.", "input": "1 1", "output": "2"}
    task, example = only([with_input])
    assert example.prompt.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n")
    assert example.completion == "2"
    assert example.chat == (("user", "Add.\n\n1 1"), ("assistant", "2"))
    assert [example.prompt[a:b] for a, b in example.spans] == ["Add.", "1 1"]
    assert task.said == "the column output is learned as the answer to instruction and input"
    for empty in ("", None):
        without = only([with_input | {"input": empty}])[1]
        assert "### Input" not in without.prompt
        assert without.chat[0] == ("user", "Add.")


def test_text_alone_is_language_modelling(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one line\n\nand another\n")
    task = load_task(tmp_path / "d.txt")
    assert (task.kind, task.said) == ("text", "all of the column text is learned (language modelling)")
    assert sorted(e.completion for part in task.splits.values() for e in part) == ["and another", "one line"]
    assert load_task([{"text": "a", "id": 3, "url": "x"}]).kind == "text"
    assert load_task([{"body": "a", "stars": 3}], text_column="body", records="text").kind == "text"


def test_another_shape_can_be_asked_for() -> None:
    both = {"prompt": "p", "completion": "c", "label": "x", "text": "t"}
    assert only([both], records="completion")[1] == Example("p", -1, "c")
    assert only([both], records="text")[1] == Example("", -1, "t")
    words = {"x": " a", "y": " b"}
    assert only([both], label_words=words, prompt_template="{prompt}:")[1] == Example("p:", 0)
    qa = {"question": "q", "answer": "a"}
    assert only([qa], prompt_template="Q: {question}\nA:", completion_column="answer")[1] == Example(
        "Q: q\nA:", -1, "a"
    )
    assert only([{"prompt": "p", "completion": "c"}], prompt_template="{prompt}?")[1] == Example("p?", -1, "c")
    assert only([{"log": [ASKED, ANSWER]}], text_column="log", records="chat")[1].chat[1] == ("assistant", "very good")


def test_two_texts_and_a_label_need_no_template() -> None:
    rows = [{"premise": f"p{i}", "hypothesis": "h", "label": ("entailment", "not_entailment")[i % 2]} for i in range(4)]
    task = load_task(rows)
    assert task.template == "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"
    assert task.label_words == (" entailment", " not entailment")


def test_records_of_several_kinds_are_named() -> None:
    """Texts with labels beside prompts with completions were said to be completions with a judgement."""
    rows = [{"text": "a", "label": 1}, {"prompt": "p", "completion": "c"}] * 4
    says = r"holds records of several kinds: record 1 has text, label; record 2 has prompt, completion\. Write each"
    with pytest.raises(TaskError, match=says):
        load_task(rows)


def test_an_empty_answer_is_refused_with_its_record() -> None:
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(TaskError, match=r"record 2: the column 'completion' is empty; fill the answer in"):
        load_task([good, {"prompt": "p", "completion": ""}, good])


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, {}, r"holds preferences .* with forward_only\(DPOTrainer\)"),
    ({"prompt": "p", "completion": "a", "label": True}, {}, r"with a judgement .* with forward_only\(KTOTrainer\)"),
    (
        {"text": "a", "stars": 3},
        {},
        "no column 'label' for the label; .* with label_column\\. To learn an answer, .* a text, records=text",
    ),
    ({"a": "x", "b": "y"}, {"completion_column": "b"}, "no column 'prompt'; its columns are a, b. Name the columns of"),
    ({"prompt": "x", "b": "y"}, {"completion_column": "c"}, "no column 'c'; .* right one with completion_column"),
    ({"messages": []}, {}, "record 1: the column 'messages' holds an empty list, expected a list of turns such as"),
    ({"messages": None, "x": 1}, {}, "record 1: the column 'messages' holds nothing, expected a list of turns"),
    ({"messages": "[{"}, {}, "record 1: the column 'messages' is not valid JSON"),
    (
        {"messages": [ASKED]},
        {},
        "record 1: the conversation ends with a turn of 'user' after 0 others; what is learned",
    ),
    ({"messages": [ASKED, ANSWER, ASKED]}, {}, "ends with a turn of 'user' after 2 others"),
    ({"messages": [ASKED, {"role": "assistant", "content": None}]}, {}, "turn 2 is not of the form .* calls of tools"),
    ({"messages": [ASKED, "Hi"]}, {}, "record 1: turn 2 is not of the form"),
    ({"x": 1}, {"records": "chat"}, "no column 'messages'; its columns are x. Name the one that holds the turns"),
    ({"x": 1}, {"records": "instruction"}, "no column 'instruction'; its columns are x. Name the columns so"),
    ({"x": 1}, {"records": "text"}, "no column 'text'; its columns are x. Name the right one with text_column"),
    (
        {"x": 1},
        {"records": "dialogue"},
        "records = 'dialogue': choose one of auto, classification, choice, completion, chat",
    ),
]


@pytest.mark.parametrize(("record", "given", "message"), WRONG, ids=range(len(WRONG)))
def test_one_sentence_for_each_mistake(record: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        load_task([record], **given)
    assert "\n" not in str(caught.value)


# ---- from an example to tokens and losses ----------------------------------------------------------------------------


@pytest.fixture
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    return model, tokenizer


def test_the_chat_template_writes_a_conversation(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    task, example = only([{"messages": [ASKED, ANSWER]}])
    plain = Encoder(tokenizer, 10**6)
    assert not plain.chat
    ids, start = plain.learned(example)
    assert tokenizer.decode(ids[start:]).split() == ["very", "good"]
    tokenizer.chat_template = TEMPLATE
    ids, start = Encoder(tokenizer, 10**6).learned(example)
    assert list(ids) == tokenizer.encode("<user> Is it good? <end>\n<assistant> very good <end>\n")
    assert list(ids[:start]) == tokenizer.encode("<user> Is it good? <end>\n<assistant> ")
    assert Encoder(tokenizer, 10**6, chat=False).learned(example) == plain.learned(example)
    assert Scorer(model, tokenizer, task).losses([example]).isfinite().all()
    system = only([{"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWER]}])[1]
    with pytest.raises(TaskError, match=r"refuses the conversation that begins 'Be brief\.' \(no system here\)"):
        Encoder(tokenizer, 10**6).learned(system)


def test_a_template_that_writes_the_last_turn_otherwise(tiny: tuple[Any, Any]) -> None:
    """It asks for an answer with words that it does not write before one (<think>): what it writes is learned.

    Where it writes earlier turns otherwise, the text of the last one is learned, behind what asks for it.
    """
    _, tokenizer = tiny
    ask = "{% if add_generation_prompt %}very {% endif %}"
    example = only([{"messages": [ASKED, {"role": "assistant", "content": "good"}]}])[1]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}" + ask
    ids, start = Encoder(tokenizer, 10**6).learned(example)
    assert list(ids) == tokenizer.encode("Is it good? good")
    assert tokenizer.decode(ids[start:]) == "good"
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}" + ask
    ids, start = Encoder(tokenizer, 10**6).learned(example)
    assert list(ids) == tokenizer.encode("1 Is it good? very good")
    assert tokenizer.decode(ids[start:]) == "good"


def test_all_of_a_text_is_learned_as_transformers_learns_it(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    task, example = only([{"text": "It was good and very bad"}])
    ids = torch.tensor([tokenizer.encode(example.completion)])
    expected = float(model(input_ids=ids, labels=ids).loss.detach())
    assert float(Scorer(model, tokenizer, task).losses([example]).detach()) == pytest.approx(expected, rel=1e-5)
    one = only([{"text": "good"}])
    with pytest.raises(TaskError, match="the text 'good' has no token to predict"):
        Scorer(model, tokenizer, one[0]).encode(one[1])
    tokenizer.eos_token = "<unk>"
    (sequence,) = Scorer(model, tokenizer, one[0]).encode(one[1])
    assert sequence.ids == (tokenizer.eos_token_id, *tokenizer.encode("good"))


@pytest.mark.parametrize("shape", ["text", "chat", "instruction"])
def test_training_on_each_shape(
    tiny_model: Path, tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of a batch falls, a line says how records are read, and eval of the run gives the run's number."""
    rows: list[dict[str, Any]] = [
        {
            "text": {"text": f"It was good {i} and bad"},
            "chat": {"messages": [ASKED, ANSWER, {"role": "user", "content": str(i)}, ANSWER]},
            "instruction": {"instruction": f"good {i}", "input": "", "output": "very bad"},
        }[shape]
        for i in range(40)
    ]
    path = write(tmp_path / "d.jsonl", rows)
    given = {"model": str(tiny_model), "task": path, "steps": 12, "batch_size": 8, "lr": 3e-3, "method": "backprop"}
    result = train(TrainSettings(**given, dtype="float32", threads=1), tmp_path / "run", quiet=True)
    assert result["loss_last"] < result["loss_first"]
    assert result["metric_after"] < result["metric_before"]
    assert load_task(path).said in capsys.readouterr().err
    assert evaluate(None, None, tmp_path / "run", split="validation")["loss"] == result["eval_loss_after"]
