"""Real models and labelled tasks: `fetch("smollm2-135m")`, `load_task("mr")`.

Importing this package imports neither torch nor transformers.

>>> task = load_task("mr")
>>> task.label_words, len(task.splits["test"])
((' terrible', ' great'), 1000)
"""

from __future__ import annotations

from zograd.hub.errors import FetchError, ModelNotFoundError, TaskError
from zograd.hub.examples import Example
from zograd.hub.fetching import DEFAULT_MODEL, Fetched, ModelInfo, fetch, models, resolve_model
from zograd.hub.labels import parse_label_words
from zograd.hub.named_tasks import TaskInfo, tasks
from zograd.hub.task import Task, load_task, register_task, select

__all__ = [
    "DEFAULT_MODEL",
    "Example",
    "FetchError",
    "Fetched",
    "ModelInfo",
    "ModelNotFoundError",
    "Task",
    "TaskError",
    "TaskInfo",
    "fetch",
    "load_task",
    "models",
    "parse_label_words",
    "register_task",
    "resolve_model",
    "select",
    "tasks",
]
