"""Readers disturbed: one word changed for a near one, and sentences that do not matter, with and without numbers.

Rows      31, 32
Paper     MSCR (one-word attacks); numerical sensitivity, arXiv 2511.08022
Formula   a word is swapped for one of its 10 nearest by co-occurrence; words in the order of p(right | word left out)
Evidence  every swap tried on the same questions; random swaps at as many evaluations; exact McNemar test
Extent    questions of trec read as bags of words by logistic regression; `zograd robustness` has language models
Needs     bench
Seconds   6
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression

from zograd.diagnostics import one_word, robustness
from zograd.examples import Claim, Figure, Finding, Line
from zograd.hub import Example, load_task
from zograd.hub.perturb import NUMBERS, PLAIN, Sentences, WordSwap, content_words, text_of, with_text


# %% The reader: a bag of words over the training questions, with weights of each word for each type of answer.
def tokens(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


class Reader:
    """Logistic regression on the words of questions; words that it has not seen count as nothing, numbers as one."""

    def __init__(self, examples: Sequence[Example]) -> None:
        read = [self.words(e) for e in examples]
        self.known = {w: k for k, w in enumerate(sorted({w for ws in read for w in ws}))}
        self.model = LogisticRegression(max_iter=300, C=3.0).fit(self.counts(examples), [e.label for e in examples])

    def words(self, e: Example) -> list[str]:
        a, b = text_of(e)
        return ["<number>" if w.isdigit() else w for w in tokens(e.prompt[a:b])]

    def counts(self, examples: Sequence[Example]) -> csr_matrix:
        rows = [(k, self.known[w]) for k, e in enumerate(examples) for w in self.words(e) if w in self.known]
        at = np.array(rows, dtype=int).reshape(-1, 2)
        return csr_matrix((np.ones(len(at)), (at[:, 0], at[:, 1])), shape=(len(examples), len(self.known)))

    def __call__(self, examples: Sequence[Example]) -> np.ndarray:
        return np.asarray(self.model.predict_log_proba(self.counts(examples)))


# %% Near words: cosine of words in the leading directions of how often they stand together in a question.
class Near:
    def __init__(self, reader: Reader, examples: Sequence[Example], count: int = 10) -> None:
        x = reader.counts(examples)
        together = (x.T @ x).log1p()
        table = TruncatedSVD(40, random_state=0).fit_transform(together)
        seen = np.asarray(x.sum(0)).ravel() >= 3
        self.names = [w for w, k in reader.known.items() if seen[k] and len(w) > 2 and w != "<number>"]
        unit = table[[reader.known[w] for w in self.names]]
        self.unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        self.at, self.count = {w: k for k, w in enumerate(self.names)}, count
        self.found: dict[str, list[str]] = {}

    def __call__(self, word: str) -> list[str]:
        if word in self.at and word not in self.found:
            order = np.argsort(-(self.unit @ self.unit[self.at[word]]), kind="stable")
            self.found[word] = [self.names[k] for k in order if self.names[k][:4] != word[:4]][: self.count]
        return self.found.get(word, [])


def every_swap(reader: Reader, example: Example, near: Near) -> bool:
    """Whether any single swap is answered wrongly, by trying all."""
    a, b = text_of(example)
    text = example.prompt[a:b]
    swaps = [with_text(example, text[:i] + w + text[j:])
             for i, j in content_words(text) for w in near(text[i:j])]  # fmt: skip
    return bool(swaps) and bool((reader(swaps).argmax(1) != example.label).any())


# %% The search on questions that are answered rightly, beside luck; then curves over the number of sentences.
def run(seed: int = 0, quick: bool = False) -> Finding:
    asked, read, strengths = (10, 60, (1, 4)) if quick else (150, 500, (1, 2, 4, 8))
    splits = load_task("trec").splits
    reader = Reader(splits["train"])
    near = Near(reader, splits["train"])
    test = list(splits["test"])
    labels = [e.label for e in test]
    right = [e for e, said in zip(test, reader(test).argmax(1), strict=True) if said == e.label]
    rng = np.random.default_rng(seed)
    chosen = [right[k] for k in rng.permutation(len(right))[:asked]]
    swap = WordSwap(near)
    attacks = [one_word(reader, e, near) for e in chosen]
    fooled = [attack.found is not None for attack in attacks]
    lucky = []
    for e, attack in zip(chosen, attacks, strict=True):
        drawn = [new for _ in range(attack.evaluations) if (new := swap(e, 1, rng)) is not None]
        lucky.append(bool(drawn) and bool((reader(drawn).argmax(1) != e.label).any()))
    alike = [every_swap(reader, e, near) == hit for e, hit in zip(chosen, fooled, strict=True)]
    one = all(len(tokens(a.found.prompt)) == len(tokens(e.prompt))
              and sum(x != y for x, y in zip(tokens(a.found.prompt), tokens(e.prompt), strict=True)) == 1
              for e, a in zip(chosen, attacks, strict=True) if a.found)  # fmt: skip
    kinds = {"sentences": Sentences(PLAIN), "numbers": Sentences(NUMBERS)}
    rows = robustness(reader, test[:read], labels[:read], kinds, strengths, seed=seed)
    after = {(row.kind, row.strength): row for row in rows}
    numbers = {
        "accuracy": len(right) / len(test), "share fooled by a searched word": float(np.mean(fooled)),
        "share fooled by random words at as many evaluations": float(np.mean(lucky)),
        "evaluations a question, mean": float(np.mean([a.evaluations for a in attacks])),
    }  # fmt: skip
    numbers |= {f"accuracy, {row.strength} {row.kind}": row.after for row in rows}
    numbers |= {f"p, {row.strength} {row.kind}": row.p for row in rows}
    last = strengths[-1]
    claims = (
        Claim("the search finds a word exactly where trying every swap does", all(alike)),
        Claim("each attack changes exactly one word", one),
        Claim("one near word fools the reader on more than a fifth of what it knows", float(np.mean(fooled)) > 0.2),
        Claim("random swaps at as many evaluations fool it less often", float(np.mean(lucky)) < float(np.mean(fooled)),
              full_only=True),
        Claim("sentences that do not matter lower its accuracy (p < 0.05)", after["sentences", last].significant),
        Claim("numbers in them make it no worse for this reader, against what is reported of language models",
              after["numbers", last].after >= after["sentences", last].after, full_only=True),
    )  # fmt: skip
    lines = []
    for kind in kinds:
        of = [after[kind, s] for s in strengths]
        lines.append(Line(kind, strengths, [r.after for r in of], [r.low for r in of], [r.high for r in of]))
    figure = Figure("Sentences that do not matter", "sentences", "accuracy", tuple(lines))
    return Finding(numbers, claims, (figure,))
