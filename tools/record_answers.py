"""Record the scores of SmolLM2-135M on trec under 40 prompts, for examples that replay a real model's answers.

    python tools/record_answers.py PARTS        # half an hour of one core; PARTS is a folder for finished prompts

A prompt is one of 8 templates with one choice of demonstrations: none, 2 or 4 training questions drawn once, or the 2
or 4 nearest by TF-IDF. Written is src/zograd/data/trec_prompts.npz: `scores` (prompts, questions, classes), float16,
log-probabilities of the label words among themselves; `tokens` (prompts, questions); `labels`; `split` (0 validation,
1 test). The questions are the first 300 of each split. A run with all parts at hand only writes the file.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zograd.problems.recorded import PROMPTS, WORDS

MODEL, TASK = "smollm2-135m", "trec"
EACH = 300
"""Questions of the validation and of the test split, the first ones; both are shuffled."""
OUT = Path(__file__).resolve().parents[1] / "src/zograd/data/trec_prompts.npz"


def question(example: Any) -> str:
    """The text of an example without the template of the task."""
    ((start, stop),) = example.spans
    return str(example.prompt[start:stop])


def demonstrations(kind: str, count: int, train: list[Any], asked: list[Any], seed: int) -> np.ndarray:
    """Indices into the training questions for each asked one: (questions, count), the nearest last."""
    if kind == "nearest":
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True)
        known = words.fit_transform([question(e) for e in train])
        near = words.transform([question(e) for e in asked]) @ known.T
        return np.argsort(-near.toarray(), axis=1, kind="stable")[:, :count][:, ::-1]
    drawn = np.random.default_rng(seed).choice(len(train), count, replace=False)
    return np.tile(drawn, (len(asked), 1))


def record(number: int, tuned: Any, train: list[Any], asked: list[Any]) -> dict[str, np.ndarray]:
    """Scores and tokens of one prompt on all questions; `tuned` is asked with the words of that prompt."""
    template, words, kind, count = PROMPTS[number]
    chosen = demonstrations(kind, count, train, asked, number)
    texts = []
    for example, rows in zip(asked, chosen, strict=True):
        shown = [template.format(text=question(train[k])) + words[train[k].label] + "\n\n" for k in rows]
        texts.append("".join(shown) + template.format(text=question(example)))
    tuned.form = tuned.form.changed(None, list(words))
    found = tuned.predict(texts)
    tokenizer = tuned._ready[1]
    scores = [[np.log(p) for p in prediction.probabilities.values()] for prediction in found]
    return {
        "scores": np.array(scores, np.float16),
        "tokens": np.array([len(tokenizer(text).input_ids) for text in texts], np.uint16),
    }


def main(parts: Path) -> None:
    from zograd import hub
    from zograd.llm.tuned import Tuned

    task = hub.load_task(TASK)
    train, asked = list(task.splits["train"]), [*task.splits["validation"][:EACH], *task.splits["test"][:EACH]]
    parts.mkdir(parents=True, exist_ok=True)
    tuned = Tuned(MODEL, prompt_template="{text}", label_words=list(WORDS[0]))
    for number in range(len(PROMPTS)):
        part = parts / f"{number}.npz"
        if not part.is_file():
            np.savez(part, **record(number, tuned, train, asked))
            print(number, PROMPTS[number], flush=True)
    loaded = [np.load(parts / f"{n}.npz") for n in range(len(PROMPTS))]
    np.savez_compressed(
        OUT,
        scores=np.stack([p["scores"] for p in loaded]),
        tokens=np.stack([p["tokens"] for p in loaded]),
        labels=np.array([e.label for e in asked], np.uint8),
        split=np.repeat([0, 1], EACH).astype(np.uint8),
    )
    print(OUT.name, OUT.stat().st_size, hashlib.sha256(OUT.read_bytes()).hexdigest())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
