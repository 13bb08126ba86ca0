"""stopwise: when to stop fine-tuning a language model, read off its empirical neural tangent kernel."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# The public names, by the module that holds them: loaded on first use, so that a figure never imports torch.
_PUBLIC = {
    "GradientDescent": "linearized.filters",
    "HeavyBall": "linearized.filters",
    "Nesterov": "linearized.filters",
    "Ridge": "linearized.filters",
    "Spectrum": "linearized.spectrum",
    "StopwiseCallback": "integrations.callback",
    "Task": "tasks.task",
    "TaskVector": "network.task_vectors",
    "advise": "advice.api",
    "answer_example": "integrations.losses",
    "answer_loss": "integrations.losses",
    "empirical_ntk": "kernel.ntk",
    "linearized_path": "linearized.paths",
    "load_classifier": "network.classifiers",
    "load_model": "network.loading",
    "predict_stop": "integrations.preview",
    "preview": "integrations.preview",
    "shortest_fit": "integrations.shortest_fit",
    "stopping_time": "stopping.stops",
    "targets": "linearized.coding",
}
__all__ = [
    "GradientDescent",
    "HeavyBall",
    "Nesterov",
    "Ridge",
    "Spectrum",
    "StopwiseCallback",
    "Task",
    "TaskVector",
    "advise",
    "answer_example",
    "answer_loss",
    "empirical_ntk",
    "linearized_path",
    "load_classifier",
    "load_model",
    "predict_stop",
    "preview",
    "shortest_fit",
    "stopping_time",
    "targets",
]


def __getattr__(name: str):
    """Import a public name from its module on first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"stopwise.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'stopwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names beside what is loaded."""
    return sorted({*globals(), *__all__})
