"""Coding of class logits into regression outputs: contrasts, targets and decoding (numpy, no torch).

A task with C classes gives C verbalizer logits per example. ``contrast`` keeps the C - 1 differences that decide the
class, ``logits`` keeps all C columns, ``vocabulary`` adds the rest of the vocabulary as one more class. Everything
here is a C x C sized computation.
"""

from __future__ import annotations

import numpy as np
import scipy

OUTPUTS = ("contrast", "head", "logits", "vocabulary")


def coding_matrix(classes: int, outputs: str = "contrast") -> np.ndarray:
    """Return the matrix B that maps class logits to output columns, f = B logits.

    Shape [C - 1, C] for ``contrast`` and ``head`` (B = -helmert(C): orthonormal rows, orthogonal to the vector of
    ones; for two classes f = (f1 - f0)/sqrt(2)), the identity [C, C] for ``logits``, and [C, C + 1] for ``vocabulary``:
    contrasts of the C words and the log-sum-exp of all other tokens, whose softmax is the one over the vocabulary.
    Raises ValueError for fewer than two classes or an unknown coding.
    """
    if classes < 2:
        raise ValueError(f"a task needs at least 2 classes, found {classes}")
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs: {outputs!r} is not one of {', '.join(OUTPUTS)}")
    if outputs == "vocabulary":
        return -scipy.linalg.helmert(classes + 1)
    return np.eye(classes) if outputs == "logits" else -scipy.linalg.helmert(classes)


def columns(classes: int, outputs: str = "contrast") -> int:
    """Return the number of output columns per example: C - 1 for contrasts, C for logits and for vocabulary."""
    return coding_matrix(classes, outputs).shape[0]


def targets(labels: np.ndarray, classes: int, outputs: str = "contrast", scale: float = 1.0) -> np.ndarray:
    """Return regression targets y = scale * B e_label, float64 [n, columns].

    For two classes under ``contrast`` the targets are -scale/sqrt(2) and +scale/sqrt(2). Raises ValueError when a
    label is outside 0..C-1 or ``scale`` is not positive.
    """
    labels = np.asarray(labels)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"labels must lie in 0..{classes - 1}, found {labels.min()}..{labels.max()}")
    if not scale > 0:
        raise ValueError(f"target_scale must be positive, found {scale}")
    return scale * coding_matrix(classes, outputs).T[labels]


def predicted_class(f: np.ndarray, classes: int, outputs: str = "contrast") -> np.ndarray:
    """Return argmax_c (B^T f)_c for outputs f [n, columns]; int64 [n]. Ties go to the lower class.

    The rest of the vocabulary is never predicted.
    """
    return np.argmax((np.asarray(f) @ coding_matrix(classes, outputs))[:, :classes], axis=1)


def accuracy(f: np.ndarray, labels: np.ndarray, classes: int, outputs: str = "contrast") -> float:
    """Return the share of examples whose predicted class is the label; f [n, columns], labels [n]."""
    return float(np.mean(predicted_class(f, classes, outputs) == np.asarray(labels)))


def squared_loss(f: np.ndarray, y: np.ndarray) -> float:
    """Return the mean over rows (example x column) of (y - f)^2: the test loss of every table."""
    return float(np.mean((np.asarray(y) - np.asarray(f)) ** 2))
