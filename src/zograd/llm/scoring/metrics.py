"""Losses and metrics of examples from their scores: accuracy, F1, MCC, loss, perplexity, by class, with intervals."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.errors import UsageError
from zograd.llm.scoring.choices import NONE, chosen
from zograd.llm.scoring.rewards import OF_TEXTS, reward_named

Classes: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""The number of a class for each example."""

MetricFunction: TypeAlias = Callable[[Classes, Classes], float]
"""A metric of labels and predictions, in this order, as scikit-learn has it."""


class MetricError(UsageError, ValueError):
    """A metric that is unknown, does not fit the task, or fails."""


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation on `examples` examples.

    metric: the name of what was asked for, or "accuracy" of a classification or of multiple choice, "loss" of
        completions; value: its value.
    calibrated: the metric after the mean log-score of each class over all examples is subtracted.
    majority: share of the largest class. Multiple choice has neither, since examples share no classes.
    loss: mean loss in nats.
    not_finite: examples with a score that is NaN or infinite. If there are any, all metrics are NaN.
    accuracy, macro_f1, mcc: of a classification. F1 is the mean over the classes that occur, MCC Matthews' correlation.
    perplexity: exp of the mean loss of a token, of completions and texts.
    low, high: the ends of a 95 % confidence interval of the value, where one was asked for.
    f1_of: the class whose F1 the value is, where the metric is that of one of two classes.
    classes: for each class its name, its examples, how often it was predicted, precision, recall and F1.
    """

    metric: str
    value: float
    calibrated: float | None
    majority: float | None
    examples: int
    loss: float
    not_finite: int = 0
    accuracy: float | None = None
    macro_f1: float | None = None
    mcc: float | None = None
    perplexity: float | None = None
    low: float | None = None
    high: float | None = None
    f1_of: str | None = None
    classes: Sequence[dict[str, Any]] = ()


# ---- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric by its name. function: of labels and predictions; None for those of the losses."""

    name: str
    function: MetricFunction | None
    own: bool = False
    """Whether it is the user's."""
    written: bool = False
    """Whether it looks at the answers that a model writes, as the objective of that name does."""

    def __call__(self, labels: Classes, predictions: Classes) -> float:
        """Its value. Raises MetricError where a function of the user fails or returns no number."""
        assert self.function is not None
        if not self.own:
            return self.function(labels, predictions)
        try:
            return float(self.function(labels, predictions))
        except Exception as e:
            raise MetricError(
                f"the metric {self.name!r} failed on {len(labels)} labels and predictions ({type(e).__name__}: {e}); "
                f"it is called with two arrays of class numbers and returns a number"
            ) from e


def accuracy(labels: Classes, predictions: Classes) -> float:
    return float((labels == predictions).mean())


def macro_f1(labels: Classes, predictions: Classes) -> float:
    """The mean of F1 over the classes that occur among labels or predictions."""
    table = confusion(labels, predictions)
    occur = table.sum(0) + table.sum(1) > 0
    return float(_f1(table)[occur].mean())


def balanced_accuracy(labels: Classes, predictions: Classes) -> float:
    """The mean of recall over the classes that occur among the labels."""
    table = confusion(labels, predictions)
    sizes = table.sum(1)
    return float((table.diagonal()[sizes > 0] / sizes[sizes > 0]).mean())


def mcc(labels: Classes, predictions: Classes) -> float:
    """Matthews' correlation of K classes (Gorodkin 2004); 0 where labels or predictions are all of one class."""
    table = confusion(labels, predictions).astype(float)
    total, hits, of, said = table.sum(), table.trace(), table.sum(1), table.sum(0)
    spread = (total**2 - (said**2).sum()) * (total**2 - (of**2).sum())
    return float((hits * total - (of * said).sum()) / math.sqrt(spread)) if spread > 0 else 0.0


def f1(labels: Classes, predictions: Classes) -> float:
    """F1 of the second of two classes."""
    return float(_f1(confusion(labels, predictions, 2))[1])


def confusion(labels: Classes, predictions: Classes, classes: int = 0) -> np.ndarray[Any, Any]:
    """int64 [classes, classes]: how often an example of the row's class was taken for the column's."""
    size = max(classes, int(labels.max()) + 1, int(predictions.max()) + 1)
    table: np.ndarray[Any, Any] = np.bincount(labels * size + predictions, minlength=size * size).reshape(size, size)
    return table


def _f1(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """F1 of each class: 2 hits / (examples + predictions), 0 where there are neither."""
    found: np.ndarray[Any, Any] = 2 * table.diagonal() / np.maximum(table.sum(0) + table.sum(1), 1)
    return found


WRITTEN: Final = tuple(OF_TEXTS)
"""Metrics of written answers."""

OF_LOSSES: Final = ("loss", "perplexity")
"""Metrics of the losses."""

NAMED: Final[dict[str, MetricFunction]] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
    "f1": f1,
    "mcc": mcc,
}
"""Metrics of labels and predictions."""


def metric_of(asked: str | MetricFunction | None, kind: str, classes: int) -> Metric:
    """The metric that was asked for, or the one of the kind of task.

    asked: a name of `NAMED` or `OF_LOSSES`, of completions also of `WRITTEN`; `module:function`, or a function, of
        labels and predictions.

    Raises:
        MetricError: an unknown name, a function that cannot be imported, or a metric that does not fit the task.
        ImportError: the library of a metric is missing.
    """
    if asked is None:
        return Metric("accuracy", accuracy) if kind in ("classification", "choice") else Metric("loss", None)
    if kind == "completion" and isinstance(asked, str) and asked in WRITTEN:
        reward_named(asked)
        return Metric(str(asked), None, written=True)
    if not isinstance(asked, str):
        found = Metric(getattr(asked, "__name__", type(asked).__name__), asked, own=True)
    elif ":" in asked:
        found = Metric(asked, imported(asked), own=True)
    elif asked in NAMED or asked in OF_LOSSES:
        found = Metric(asked, NAMED.get(asked))
    else:
        if asked in WRITTEN:
            what = "has classes" if kind in ("classification", "choice") else "writes none: all of the text is learned"
            raise MetricError(f"metric = {asked!r} compares answers that are written, and this task {what}; use loss")
        names = ", ".join(dict.fromkeys((*NAMED, *OF_LOSSES, *WRITTEN)))
        raise MetricError(
            f"metric = {asked!r}: choose one of {names}, or write module:function, such as "
            f"sklearn.metrics:cohen_kappa_score"
        )
    if kind == "choice" and not found.own and asked not in ("accuracy", "loss"):
        raise MetricError(f"metric = {found.name!r} is not for multiple choice: choose accuracy or loss")
    if kind not in ("classification", "choice") and found.function is not None:
        raise MetricError(
            f"metric = {found.name!r} compares classes, and this task has none: choose one of "
            f"{', '.join(OF_LOSSES + (WRITTEN if kind == 'completion' else ()))}"
        )
    if kind == "classification" and asked == "perplexity":
        raise MetricError("metric = 'perplexity' is for completions and texts, and this task has classes; use loss")
    if asked == "f1" and classes != 2:
        raise MetricError(f"metric = 'f1' is for 2 classes, and this task has {classes}; use macro-f1")
    return found


def imported(name: str, what: str = "metric") -> Callable[..., Any]:
    """The function of `module:function`; modules of the current folder are found too. what: names it in a message."""
    module, _, path = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as e:
        raise MetricError(f"{what} = {name!r} cannot be imported ({type(e).__name__}: {e})") from e
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise MetricError(f"{what} = {name!r} is a {type(found).__name__}, expected a function")
    function: Callable[..., Any] = found
    return function


# ---- from scores -----------------------------------------------------------------------------------------------------


def losses_of(scores: Tensor, labels: Tensor | None) -> Tensor:
    """float32 [N]: cross-entropy of scores [N, classes] with labels; without labels (completions) minus the score.

    labels: int64, of one copy of the batch; N is a multiple of their number. Of multiple choice they are rows
    (`labels_of_choices`), and the loss is -log of the probability of all right choices together.
    """
    if labels is None:
        return -scores[:, 0]
    if labels.ndim == 2:
        rows = labels.repeat(len(scores) // len(labels), 1)
        there, right = scores.masked_fill(rows == NONE, -torch.inf), scores.masked_fill(rows != 1, -torch.inf)
        return there.logsumexp(1) - right.logsumexp(1)
    return F.cross_entropy(scores, labels.repeat(len(scores) // len(labels)), reduction="none")


def metrics_of(
    scores: Tensor,
    labels: Tensor | None,
    *,
    metric: Metric | None = None,
    names: Sequence[str] = (),
    tokens: Sequence[int] = (),
    interval: bool = False,
) -> Metrics:
    """The metrics of scores [N, classes] and labels [N]; of completions, without labels, loss and perplexity.

    Labels of multiple choice are rows (`labels_of_choices`).

    metric: what `value` is; default accuracy, or loss. names: of the classes. tokens: how many tokens of each
    completion are learned, which weigh its loss in the perplexity. interval: with a 95 % confidence interval: Wilson's
    of an accuracy and of rewards that are 0 or 1, else that of a bootstrap of 1,000 samples, 200 of a user's function.

    >>> found = metrics_of(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> round(found.value, 3), found.mcc
    (0.667, 0.5)
    """
    metric = metric_of(None, "completion" if labels is None else "classification", 2) if metric is None else metric
    scores, labels = scores.cpu(), None if labels is None else labels.cpu()
    rows = labels is not None and labels.ndim == 2
    there = torch.ones_like(scores, dtype=torch.bool) if labels is None or not rows else labels != NONE
    bad = int((~scores.isfinite() & there).any(1).sum())
    largest = None if labels is None or rows else int(torch.bincount(labels).max()) / len(labels)
    if bad:
        calibrated = None if labels is None or rows else math.nan
        return Metrics(metric.name, math.nan, calibrated, largest, len(scores), math.nan, bad)
    losses = losses_of(scores, labels)
    found = Metrics(metric.name, math.nan, None, largest, len(scores), float(losses.mean()))
    if labels is None:
        return _of_losses(found, metric, losses, tokens, interval)
    if rows:
        return _of_choices(found, metric, scores, labels, losses, interval)
    return _of_classes(found, metric, scores, labels, losses, names, interval)


def of_rewards(m: Metrics, name: str, rewards: Tensor, interval: bool) -> Metrics:
    """The metrics of completions with the mean reward of the written answers, [N], as the value."""
    each = rewards.double().cpu().numpy()
    low, high = None, None
    if interval and bool(np.isin(each, (0.0, 1.0)).all()):
        low, high = wilson(float(each.mean()), len(each))
    elif interval:
        low, high = _bootstrap(lambda rows: float(each[rows].mean()), len(each))
    return replace(m, metric=name, value=float(each.mean()), low=low, high=high)


def _of_losses(m: Metrics, metric: Metric, losses: Tensor, tokens: Sequence[int], interval: bool) -> Metrics:
    each = losses.double().numpy()
    weights = np.array(tokens if len(tokens) else np.ones(len(each)), dtype=float)

    def value(rows: Any) -> float:
        weight = weights[rows] if metric.name == "perplexity" else np.ones(len(rows))
        mean = float((each[rows] * weight).sum() / weight.sum())
        return _exp(mean) if metric.name == "perplexity" else mean

    perplexity = _exp(float((each * weights).sum() / weights.sum()))
    low, high = _bootstrap(value, len(each)) if interval else (None, None)
    result = perplexity if metric.name == "perplexity" else m.loss
    return replace(m, value=result, perplexity=perplexity, low=low, high=high)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _of_classes(
    m: Metrics, metric: Metric, scores: Tensor, labels: Tensor, losses: Tensor, names: Sequence[str], interval: bool
) -> Metrics:
    logp = torch.log_softmax(scores.double(), 1)
    true, said = labels.numpy(), scores.argmax(1).numpy()
    without_bias = (logp - logp.mean(0)).argmax(1).numpy()
    value, calibrated = m.loss, float(losses_of(logp - logp.mean(0), labels).mean())
    if metric.function is not None:
        value, calibrated = metric(true, said), metric(true, without_bias)

    def of_rows(rows: Any) -> float:
        return float(losses[rows].mean()) if metric.function is None else metric(true[rows], said[rows])

    hits = accuracy(true, said)
    low, high = None, None
    if interval:
        samples = 200 if metric.own else 1000
        low, high = wilson(hits, len(true)) if metric.name == "accuracy" else _bootstrap(of_rows, len(true), samples)
    of = names[1] if metric.function is f1 and len(names) == 2 else None
    return replace(
        m, value=value, calibrated=calibrated, accuracy=hits, macro_f1=macro_f1(true, said), mcc=mcc(true, said),
        low=low, high=high, f1_of=of, classes=_by_class(confusion(true, said, scores.shape[1]), names),
    )  # fmt: skip


def _of_choices(m: Metrics, metric: Metric, scores: Tensor, labels: Tensor, losses: Tensor, interval: bool) -> Metrics:
    said, true = (found.numpy() for found in chosen(scores, labels))

    def of_rows(rows: Any) -> float:
        return float(losses[rows].mean()) if metric.function is None else metric(true[rows], said[rows])

    hits = accuracy(true, said)
    low, high = None, None
    if interval:
        samples = 200 if metric.own else 1000
        low, high = wilson(hits, len(true)) if metric.name == "accuracy" else _bootstrap(of_rows, len(true), samples)
    value = m.loss if metric.function is None else metric(true, said)
    return replace(m, value=value, accuracy=hits, low=low, high=high)


def _by_class(table: np.ndarray[Any, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    hits, of, said, scores = table.diagonal(), table.sum(1), table.sum(0), _f1(table)
    return [
        {
            "class": names[k] if k < len(names) else str(k),
            "examples": int(of[k]),
            "predicted": int(said[k]),
            "precision": float(hits[k] / said[k]) if said[k] else None,
            "recall": float(hits[k] / of[k]) if of[k] else None,
            "f1": float(scores[k]),
        }
        for k in range(len(table))
    ]


# ---- confidence intervals --------------------------------------------------------------------------------------------

_Z: Final = 1.959963984540054
"""The normal distribution has 95 % between -z and z."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among `count` examples (Wilson 1927).

    >>> tuple(round(end, 3) for end in wilson(0.9, 100))
    (0.826, 0.945)
    """
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _bootstrap(value: Callable[[Any], float], count: int, samples: int = 1000) -> tuple[float | None, float | None]:
    """The 2.5 % and 97.5 % points of a value over examples drawn with replacement.

    (None, None) where it fails, and where all samples have one value, such as 1: that says nothing about its error.
    """
    rng = np.random.Generator(np.random.Philox(0))
    try:
        found = [value(rng.integers(count, size=count)) for _ in range(samples)]
    except MetricError:  # of a sample that lacks a class
        return None, None
    if min(found) == max(found):
        return None, None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def why_not_finite(metrics: Metrics, model: Any) -> str | None:
    """One sentence for metrics of scores that are not finite; None where all are finite. Reads every weight."""
    if not metrics.not_finite:
        return None
    plain = ((name, p.detach()) for name, p in model.named_parameters() if type(p) is nn.Parameter)
    found = next((name for name, p in plain if not bool(p.isfinite().all())), None)
    held, overflow = f"its weight {found!r} holds numbers that are not", f"its forward overflows {model.dtype}"
    why = held if found else overflow
    what = f"{metrics.not_finite} of {metrics.examples} examples have scores that are not finite"
    return f"{what}, so there is no {metrics.metric} of this model: {why}"
