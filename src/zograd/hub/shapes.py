"""What a record of the user's data is, recognised from its columns, and how it becomes an example.

classification   text columns and a label
choice           a question, choices of its own, and which of them is right
completion       a prompt and its completion
chat             turns of a conversation, of which the last is learned; also prompt and completion as turns
instruction      instruction, input and output, as in Alpaca
text             a text without a label, all of which is learned
images           an image and a label
speech           a recording and what is said in it, which is learned
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from zograd.hub.choices import ANSWERS, CHOICES, choices_of, example_of
from zograd.hub.errors import TaskError, UnknownTaskError
from zograd.hub.examples import Chat, Example
from zograd.hub.labels import Labels, LabelWords, labels_in, labels_of
from zograd.hub.media import Media, Picture, Recording
from zograd.hub.records import Record, Table
from zograd.hub.template import Template

__all__ = ["ASKS", "RECORDS", "Asked", "Shape", "check_used", "shape_of"]

ASKS: Final = "\nLabel:"
"""What follows the text in a prompt where no template is given."""

TURNS: Final = ("messages", "conversations")
"""Columns that hold the turns of a conversation."""

ANSWER: Final = "\nAnswer:"
"""What follows a question in a prompt where no template is given."""

BESIDE: Final = frozenset(
    [
        "id",
        "idx",
        "index",
        "split",
        "url",
        "title",
        "source",
        "meta",
        "metadata",
        "timestamp",
        "date",
        "lang",
        "language",
    ]
)
"""Columns that may stand beside a text and are no label and no text themselves."""

_INDEX: Final = re.compile(r"|Unnamed: \d+(\.\d+)?|__index_level_\d+__")
"""Names that pandas gives to the numbers of rows in a file, and to columns without a name."""

_ROLES: Final = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}

_OF_ALPACA: Final = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{{instruction}}\n\n{block}### Response:\n"
)
ALPACA: Final = Template(_OF_ALPACA.format(more="", block=""))
"""The prompt of Alpaca (Taori et al. 2023)."""
ALPACA_INPUT: Final = Template(
    _OF_ALPACA.format(more=", paired with an input that provides further context", block="### Input:\n{input}\n\n")
)
"""The same where there is an input."""


@dataclass(frozen=True)
class Asked:
    """How a user wants records to be read; what is None or "auto", the columns decide."""

    records: str = "auto"
    prompt_template: str | None = None
    label_words: LabelWords | None = None
    text_column: str | None = None
    label_column: str | None = None
    completion_column: str | None = None


@dataclass(frozen=True)
class Shape:
    """How the records of a table become examples.

    kind: "classification", "choice", "completion" or "text". columns: those by whose hash the table is split. said: how
    records are read, for the line before training. needs: the columns that data must have. label: the column of the
    label, or of the right choice. reads: "text", "images" or "speech". uses: the fields of `Asked` that have a part in
    it. key: the text by which a column of a record is hashed.
    """

    kind: str
    template: str
    columns: tuple[str, ...]
    example: Callable[[Record], Example]
    said: str
    needs: tuple[str, ...]
    labels: Labels = field(default_factory=lambda: Labels((), ()))
    label: str = ""
    reads: str = "text"
    uses: tuple[str, ...] = ()
    key: Callable[[Record, str], str] = Record.key


def shape_of(table: Table, asked: Asked, where: str) -> Shape:
    """The shape of the records that was asked for, or the one that the columns show.

    Raises:
        TaskError: no shape fits, or one does that a Trainer is for (preferences).
    """
    columns = set(table.columns)
    if asked.records != "auto":
        if asked.records not in _MAKERS:
            raise UnknownTaskError(f"records = {asked.records!r}: choose one of auto, {', '.join(_MAKERS)}")
        return _MAKERS[asked.records](table, asked, where)
    if (reads := _shows_media(table, asked)) is not None:
        return _MAKERS[reads](table, asked, where)
    if _brings_choices(table, asked):
        return _MAKERS["choice"](table, asked, where)
    if asked.completion_column is not None and _asks_for_labels(columns, asked):
        option = "label_words" if asked.label_column is None else "label_column"
        raise TaskError(
            f"{option} asks to predict labels, and completion_column={asked.completion_column} to learn an answer, "
            f"which {where} cannot be read for at once; leave one out. For multiple choice, the one names the column "
            f"of the right choice and the other that of the choices, which holds lists."
        )
    name = next(name for fits, name in _RECOGNISED if fits(columns, asked))
    if name in _ELSEWHERE:
        _check_one_kind(table, _NEEDED[name], where)
        raise TaskError(f"{where} {_ELSEWHERE[name]}")
    return _MAKERS[name](table, asked, where)


def _check_one_kind(table: Table, columns: Collection[str], where: str) -> None:
    """Raise TaskError where no record has all columns: records of several kinds have them together."""
    held = [[name for name, value in record.values.items() if value is not None] for record in table.records]
    if any(set(columns) <= {*names} for names in held):
        return
    other = next((k for k, names in enumerate(held) if names != held[0]), None)
    if other is None:
        return
    kinds = "; ".join(f"{table.records[k].place} has {', '.join(held[k])}" for k in (0, other))
    raise TaskError(f"{where} holds records of several kinds: {kinds}. Write each kind into a file of its own.")


def check_used(shape: Shape, asked: Asked, where: str) -> None:
    """Raise TaskError for what was asked for and has no part in a shape."""
    names = ("prompt_template", "label_words", "text_column", "label_column", "completion_column")
    if given := [name for name in names if getattr(asked, name) is not None and name not in shape.uses]:
        raise TaskError(
            f"{', '.join(given)}: of no use for {where}, where {shape.said}; what may be given for that is "
            f"{', '.join(shape.uses)}. Leave it out, or say with records what else a record is."
        )


# ---- which shape -----------------------------------------------------------------------------------------------------


def _asks_for_labels(columns: set[str], asked: Asked) -> bool:
    return asked.label_words is not None or asked.label_column is not None


def _asks_for_completion(columns: set[str], asked: Asked) -> bool:
    return asked.completion_column is not None


def _chooses(columns: set[str], asked: Asked) -> bool:
    return {"choices", *ANSWERS} & columns > {"choices"}


def _brings_choices(table: Table, asked: Asked) -> bool:
    """Whether the column of the choices holds some, and another one says which is right.

    Then they are the choices, whatever names the other column: a label without them would be a number without a text.
    """
    column = asked.completion_column or CHOICES
    answers = ANSWERS if asked.label_column is None else (asked.label_column,)
    there = table.columns
    if column not in there or not any(c in there and c != column for c in answers):
        return False
    first = next((r for r in table.records if not r.lacks(column)), None)
    return first is not None and _are_choices(first, column, sure=asked.completion_column is None)


def _are_choices(record: Record, column: str, sure: bool) -> bool:
    """Whether a value is a list of choices, or an object, and no turns. sure: a text that begins like JSON is, too."""
    value = record.values[column]
    if isinstance(value, list):
        return not any(isinstance(v, dict) and ("role" in v or "from" in v) for v in value)
    if not isinstance(value, str):
        return isinstance(value, dict)
    if sure or value.lstrip()[:1] not in ("[", "{"):
        return value.lstrip()[:1] in ("[", "{")
    try:
        return len(choices_of(record, column)[0]) > 1
    except TaskError:
        return False


def _asks_by_template(columns: set[str], asked: Asked) -> bool:
    return asked.prompt_template is not None


def _answers_a_template(columns: set[str], asked: Asked) -> bool:
    return asked.prompt_template is not None and "label" not in columns and "completion" in columns


def _shows(*names: str) -> Callable[[set[str], Asked], bool]:
    """Whether these columns are there, and no other one was named as the text."""
    return lambda columns, asked: asked.text_column is None and columns.issuperset(names)


def _shows_label(columns: set[str], asked: Asked) -> bool:
    return "label" in columns


def _shows_text_alone(columns: set[str], asked: Asked) -> bool:
    """A text, and nothing that could be a label."""
    return "text" in columns and all(c in ("text", asked.text_column) or _is_beside(c) for c in columns)


def _is_beside(column: str) -> bool:
    return column in BESIDE or _INDEX.fullmatch(column) is not None


def _text_of(table: Table, asked: Asked) -> str:
    """The column of the text: "text", which `read` makes of the named one; or that one, if there is another "text"."""
    named = asked.text_column
    if named in (None, "text") or all(_same(r.values.get("text"), r.values.get(named)) for r in table.records):
        return "text"
    return str(named)


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _shows_media(table: Table, asked: Asked) -> str | None:
    """What is read in place of texts, "images" or "speech", where there are some and no text was named; else None."""
    if asked.prompt_template is not None:
        return None
    for reads, kind in (("speech", Recording), ("images", Picture)):
        if _media_in(table, kind, asked.text_column) is not None:
            return reads
    return None


def _media_in(table: Table, kind: type[Media], named: str | None) -> str | None:
    """The first column that holds images or recordings, or the named one if it does."""
    first = table.records[0].values if table.records else {}
    return next((c for c, value in first.items() if isinstance(value, kind) and named in (None, c)), None)


SAID: Final = ("text", "transcription", "transcript", "sentence", "completion")
"""Columns that hold what is said in a recording."""


def _anything(columns: set[str], asked: Asked) -> bool:
    return True


_RECOGNISED: Final[tuple[tuple[Callable[[set[str], Asked], bool], str], ...]] = (
    (_asks_for_labels, "classification"),
    (_asks_for_completion, "completion"),
    (_answers_a_template, "completion"),
    (_chooses, "choice"),
    (_asks_by_template, "classification"),
    (_shows("chosen", "rejected"), "preferences"),
    (_shows("prompt", "completion", "label"), "judged"),
    (_shows("prompt", "completion"), "completion"),
    *((_shows(column), "chat") for column in TURNS),
    (_shows("instruction", "output"), "instruction"),
    (_shows_label, "classification"),
    (_shows_text_alone, "text"),
    (_anything, "classification"),  # which says what is missing
)
"""Shapes in the order in which they are tried, with what shows them."""

_ELSEWHERE: Final = {
    "preferences": (
        "holds preferences (columns chosen and rejected), which have a loss of their own: train on them in Python, "
        "with forward_only(DPOTrainer) of zograd.hf; or name the answer to learn with completion_column=chosen."
    ),
    "judged": (
        "holds completions with a judgement (columns prompt, completion and label): train on them in Python, with "
        "forward_only(KTOTrainer) of zograd.hf; records=completion learns all of them alike, records=classification "
        "predicts the label."
    ),
}


_NEEDED: Final = {"preferences": ("chosen", "rejected"), "judged": ("prompt", "completion", "label")}


# ---- how each shape is read ------------------------------------------------------------------------------------------


def _check(columns: Iterable[str], table: Table, where: str, option: str) -> None:
    there = table.columns
    for column in columns:
        if column not in there:
            raise TaskError(f"{where} has no column {column!r}; its columns are {', '.join(there)}. {option}")


def _classification(table: Table, asked: Asked, where: str) -> Shape:
    columns, label = table.columns, asked.label_column or "label"
    if label not in columns:
        raise TaskError(
            f"{where} has no column {label!r} for the label; its columns are {', '.join(columns)}. Name the right one "
            f"with label_column. To learn an answer, give a prompt template and completion_column; to learn a text, "
            f"records=text."
        )
    template = Template(
        _template_of(table, asked, label, where) if asked.prompt_template is None else asked.prompt_template
    )
    template.check(columns, where)
    _check_text(template, table, asked, where)
    labels = _labels(table, asked, label, where)

    def example(record: Record) -> Example:
        text, spans = _filled(template, record)
        return Example(text, labels.of(record, label), spans=spans)

    said = f"the column {label} is predicted from the prompt {template.text!r}"
    return Shape(
        "classification", template.text, template.columns, example, said, (*template.columns, label), labels, label,
        uses=("prompt_template", "label_words", "text_column", "label_column"),
    )  # fmt: skip


def _check_text(template: Template, table: Table, asked: Asked, where: str) -> None:
    """Raise TaskError where {text} may be the named column, or one that has this name."""
    if "text" in template.columns and (column := _text_of(table, asked)) != "text":
        raise TaskError(
            f"{where} has a column 'text' beside {column!r}, which text_column names, so {{text}} in the prompt "
            f"template {template.text!r} may be either: write {{{column}}}, or leave text_column out for the other."
        )


def _of_template(asked: Asked) -> tuple[str, ...]:
    """What may be given for a prompt: without a template nothing says where a named text would go."""
    return ("prompt_template",) if asked.prompt_template is None else ("prompt_template", "text_column")


def _labels(table: Table, asked: Asked, label: str, where: str) -> Labels:
    """The labels in a column, with the words that were asked for or their own."""
    names, words = table.classes.get(label, ()), asked.label_words
    return labels_of(words, names) if words else labels_in(table.records, label, where, names)


def _template_of(table: Table, asked: Asked, label: str, where: str) -> str:
    """The prompt where none is given: the text, or each of several texts with its name, and what asks for the label."""
    columns = table.columns
    texts = [c for c in columns if c != label and not _is_beside(c) and _holds_text(table, c)]
    if asked.text_column is not None:
        texts = [_text_of(table, asked)]
    elif "text" in texts:
        texts = ["text"]
    if len(texts) > 1:
        texts = [c for c in texts if not _holds_numbers(table, c)]
    if len(texts) == 1:
        return f"{{{texts[0]}}}{ASKS}"
    if 2 <= len(texts) <= 4:
        return "\n".join(f"{c[:1].upper()}{c[1:]}: {{{c}}}" for c in texts) + ASKS
    raise TaskError(
        f"{where} has the columns {', '.join(columns)}, and {len(texts)} of them hold texts to predict {label} from: "
        f"give a prompt template such as '{{{(texts or _fields(table))[0]}}} It was'."
    )


def _holds_text(table: Table, column: str) -> bool:
    """Whether a column holds texts: braces in its name would be fields of a template."""
    first = next((r.values[column] for r in table.records if r.values.get(column) is not None), None)
    return isinstance(first, str) and not set(column) & set("{}!:.[]")


def _holds_numbers(table: Table, column: str) -> bool:
    """Whether the texts of a column are all numbers or truth values, as a CSV writes them."""
    found = {r.text(column) for r in table.records if not r.lacks(column)}
    return all(text.strip().casefold() in ("true", "false") or _is_number(text) for text in found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fields(table: Table) -> list[str]:
    """The columns that a template would name."""
    return [c for c in table.columns if not _is_beside(c)] or table.columns


def _filled(template: Template, record: Record) -> tuple[str, tuple[tuple[int, int], ...]]:
    return template.place({column: record.text(column) for column in template.columns})


def _images(table: Table, asked: Asked, where: str) -> Shape:
    label = asked.label_column or "label"
    _check([label], table, where, "Name the one with the label with label_column.")
    image = _media_in(table, Picture, asked.text_column)
    if image is None:
        raise TaskError(
            f"{where} has no column of images; its columns are {', '.join(table.columns)}. A column named image, or "
            f"the one that text_column names, holds the paths of image files."
        )
    labels = _labels(table, asked, label, where)

    def example(record: Record) -> Example:
        picture: Picture = record.values[image]
        return Example(picture.name, labels.of(record, label), media=picture)

    said = f"the column {label} is predicted from the image in {image}"
    return Shape(
        "classification", "", (image,), example, said, (image, label), labels, label, reads="images",
        uses=("label_words", "text_column", "label_column"),
    )  # fmt: skip


def _speech(table: Table, asked: Asked, where: str) -> Shape:
    sound = _media_in(table, Recording, asked.text_column)
    if sound is None:
        raise TaskError(
            f"{where} has no column of recordings; its columns are {', '.join(table.columns)}. A column named audio, "
            f"or the one that text_column names, holds the paths of sound files."
        )
    there = [c for c in SAID if c in table.columns and not isinstance(table.records[0].values[c], Media)]
    said = asked.completion_column or (there or ["text"])[0]
    if "label" in table.columns and said not in table.columns:
        raise TaskError(
            f"{where} holds recordings with labels, and what is learned here is what is said in them: train a "
            f"classifier of sounds in Python, with forward_only(Trainer) of zograd.hf, or name the text with "
            f"completion_column."
        )
    _check([said], table, where, "Name the one that holds what is said with completion_column.")

    def example(record: Record) -> Example:
        recording: Recording = record.values[sound]
        return Example(recording.name, -1, record.text(said).strip(), media=recording)

    what = f"the column {said} is learned as what is said in {sound}"
    uses = ("text_column", "completion_column")
    return Shape("completion", "", (sound,), example, what, needs=(sound, said), reads="speech", uses=uses)


def _template_hint(table: Table) -> str:
    """What to do where a column of the prompt is not there."""
    return f"Name the columns of the prompt in a prompt template such as '{{{_fields(table)[0]}}}'."


def _completion(table: Table, asked: Asked, where: str) -> Shape:
    completion = asked.completion_column or "completion"
    template = Template("{prompt}" if asked.prompt_template is None else asked.prompt_template)
    _check(template.columns, table, where, _template_hint(table))
    _check_text(template, table, asked, where)
    _check([completion], table, where, "Name the right one with completion_column.")
    if asked.prompt_template is None and _holds_turns(table, "prompt"):
        return _turns(("prompt", completion), "the last turn of the conversation in prompt and completion is learned")

    def example(record: Record) -> Example:
        text, spans = _filled(template, record)
        return Example(text, -1, _answer(record, completion), spans=spans, also=_also(record))

    said = f"the column {completion} is learned as what follows the prompt {template.text!r}"
    return Shape(
        "completion", template.text, template.columns, example, said, needs=(*template.columns, completion),
        uses=(*_of_template(asked), "completion_column"),
    )  # fmt: skip


def _also(record: Record, column: str = "also") -> tuple[str, ...]:
    """Further right answers: a list, the JSON of one as a CSV has it, or one text; what is empty is none."""
    value = record.values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):  # otherwise it is an answer that begins with a bracket
            value = json.loads(value)
    answers = [Record({column: v}, record.place) for v in (value if isinstance(value, list) else [value])]
    return tuple(answer.text(column) for answer in answers if not answer.lacks(column))


def _answer(record: Record, column: str) -> str:
    """What is learned behind a prompt."""
    if not (answer := record.text(column)):
        raise TaskError(f"{record.place}: the column {column!r} is empty; fill the answer in, or remove the line.")
    return answer


def _choice(table: Table, asked: Asked, where: str) -> Shape:
    """Multiple choice; without a column of answers, records that are asked."""
    choices = asked.completion_column or CHOICES
    usual = "{prompt}" if "prompt" in table.columns and "question" not in table.columns else f"{{question}}{ANSWER}"
    template = Template(usual if asked.prompt_template is None else asked.prompt_template)
    _check(template.columns, table, where, _template_hint(table))
    _check_text(template, table, asked, where)
    _check([choices], table, where, "Name the one with the choices with completion_column.")
    if asked.label_column is not None:
        _check([asked.label_column], table, where, "Name the right one with label_column.")
    answer = asked.label_column or next((c for c in ANSWERS if c in table.columns), None)
    if answer is None:
        raise TaskError(
            f"{where} has no column that says which choice is right ({', '.join(ANSWERS)}); its columns are "
            f"{', '.join(table.columns)}. Name it with label_column."
        )
    said = f"the column {answer} says which of the {choices} follows the prompt {template.text!r}"
    return Shape(
        "choice", template.text, template.columns, lambda r: example_of(r, template, choices, answer), said,
        needs=(*template.columns, choices, answer), label=answer,
        uses=(*_of_template(asked), "label_column", "completion_column"),
    )  # fmt: skip


def _chat(table: Table, asked: Asked, where: str) -> Shape:
    named = asked.text_column or next((c for c in TURNS if c in table.columns), None)
    in_two = not named and "prompt" in table.columns
    columns = ("prompt", asked.completion_column or "completion") if in_two else (named or TURNS[0],)
    _check(columns, table, where, "Name the one that holds the turns with text_column.")
    return _turns(columns, f"the last turn of the conversation in {' and '.join(columns)} is learned")


def _turns(columns: tuple[str, ...], said: str) -> Shape:
    def example(record: Record) -> Example:
        return in_turns(tuple(turn for column in columns for turn in _conversation(record, column)), record.place)

    def key(record: Record, column: str) -> str:
        """Without the answer where that is the last turn of a column: the same question stays in one split."""
        if columns == (column,):
            return Record({column: [*map(list, _conversation(record, column)[:-1])]}, record.place).key(column)
        return record.key(column)

    uses = ("text_column",) if len(columns) == 1 else ("completion_column",)
    return Shape("completion", "", columns[:1], example, said, needs=columns, uses=uses, key=key)


def _instruction(table: Table, asked: Asked, where: str) -> Shape:
    output = asked.completion_column or "output"
    _check(["instruction", output], table, where, "Name the columns so, or give a prompt template.")
    more = ("input",) if "input" in table.columns else ()

    def example(record: Record) -> Example:
        instruction, answer = record.text("instruction"), record.text(output)  # empty where one is to be answered
        given = record.text("input") if more and record.values["input"] is not None else ""
        prompt, spans = (ALPACA_INPUT if given else ALPACA).place({"instruction": instruction, "input": given})
        question = f"{instruction}\n\n{given}" if given else instruction
        return Example(prompt, -1, answer, (("user", question), ("assistant", answer)), spans)

    said = f"the column {output} is learned as the answer to instruction{' and input' if more else ''}"
    return Shape(
        "completion", "", ("instruction", *more), example, said, needs=("instruction", *more, output),
        uses=("completion_column",),
    )  # fmt: skip


def _text(table: Table, asked: Asked, where: str) -> Shape:
    _check(["text"], table, where, "Name the right one with text_column.")
    column = _text_of(table, asked)
    said = f"all of the column {asked.text_column or 'text'} is learned (language modelling)"
    return Shape(
        "text", f"{{{column}}}", (column,), lambda r: Example("", -1, r.text(column)), said, needs=(column,),
        uses=("text_column",),
    )  # fmt: skip


_MAKERS: Final[dict[str, Callable[[Table, Asked, str], Shape]]] = {
    "classification": _classification,
    "choice": _choice,
    "completion": _completion,
    "chat": _chat,
    "instruction": _instruction,
    "text": _text,
    "images": _images,
    "speech": _speech,
}

RECORDS: Final = ("auto", *_MAKERS)
"""What a user may say that records are."""


# ---- conversations ---------------------------------------------------------------------------------------------------


def _holds_turns(table: Table, column: str) -> bool:
    return any(isinstance(record.values.get(column), list) for record in table.records[:1])


def _conversation(record: Record, column: str) -> Chat:
    """The turns in a column: objects with role and content, or with from and value; or the JSON of them."""
    turns = record.values.get(column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        try:
            turns = json.loads(turns)
        except ValueError as error:
            raise TaskError(f"{record.place}: the column {column!r} is not valid JSON ({error}).") from None
    if not isinstance(turns, list) or not turns:
        what = "nothing" if turns is None else "an empty list" if turns == [] else f"a {type(turns).__name__}"
        raise TaskError(
            f"{record.place}: the column {column!r} holds {what}, expected a list of turns such as "
            f'[{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Hello"}}].'
        )
    return tuple(_turn(turn, number, record.place) for number, turn in enumerate(turns, start=1))


def _turn(turn: Any, number: int, place: str) -> tuple[str, str]:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(p.get("text", "")) for p in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise TaskError(
            f'{place}: turn {number} is not of the form {{"role": "user", "content": "text"}}; calls of tools, '
            f"pictures and sounds are not read."
        )
    return _ROLES.get(role, role), content


def in_turns(turns: Chat, place: str) -> Example:
    """The example of a conversation: as turns, and as a plain text in which each turn has the name of its role."""
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise TaskError(
            f"{place}: the conversation ends with a turn of {turns[-1][0]!r} after {len(turns) - 1} others; what is "
            f"learned is the last turn, of 'assistant', after at least one other."
        )
    prompt, spans = "", []
    for role, text in turns[:-1]:
        prompt += f"{role.capitalize()}: "
        spans.append((len(prompt), len(prompt) + len(text)))
        prompt += text + "\n"
    return Example(f"{prompt}Assistant:", -1, " " + turns[-1][1].strip(), turns, tuple(spans))
