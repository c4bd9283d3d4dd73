"""Real models and labelled tasks: `fetch("smollm2-135m")`, `load_task("mr")`.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from zograd.hub.errors import FetchError, ModelNotFoundError, TaskError
from zograd.hub.fetching import DEFAULT_MODEL, Fetched, ModelInfo, fetch, models, resolve_model
from zograd.hub.tasks import Example, Task, TaskInfo, load_task, parse_label_words, register_task, select, tasks

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
