"""Training objectives as functions of the outputs f: loss, and gradient with respect to f (numpy, no torch).

The network only ever sees the gradient of the loss in its outputs, so both objectives fit in a few lines and a batch
can be cut into pieces of any size without changing its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stopwise.linearized.coding import coding_matrix, predicted_class, squared_loss, targets


@dataclass(frozen=True, eq=False)
class Objective:
    """Squared loss (1/(2m)) |y - b - f|^2 with m = n columns, or cross-entropy (1/n) sum log-loss over the classes.

    ``labels`` int64 [n]; ``intercept`` b float64 [columns], added to f before anything is computed. Outputs f are
    [n, columns]; class logits are recovered as B^T f, which for contrasts differ from the raw ones by a constant only.
    """

    kind: str
    labels: np.ndarray
    classes: int
    outputs: str
    scale: float
    intercept: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Regression targets y, float64 [n, columns]."""
        return targets(self.labels, self.classes, self.outputs, self.scale)

    @property
    def offset(self) -> np.ndarray:
        """The intercept as an array that broadcasts against outputs."""
        return self.intercept

    def fitted_intercept(self, f0: np.ndarray) -> np.ndarray:
        """Return b_hat, the column means of y - f0; float64 [columns]."""
        return (self.targets - np.asarray(f0, dtype=np.float64)).mean(axis=0)

    def with_intercept(self, intercept: np.ndarray) -> Objective:
        """Return the same objective with another intercept."""
        return Objective(self.kind, self.labels, self.classes, self.outputs, self.scale, np.asarray(intercept))

    def rows(self, index: np.ndarray) -> Objective:
        """Return the objective of a batch of examples."""
        return Objective(self.kind, self.labels[index], self.classes, self.outputs, self.scale, self.intercept)

    def loss(self, f: np.ndarray) -> float:
        """Return the reported loss: mean over rows of (y - b - f)^2 (no half), or the mean log-loss."""
        f = np.asarray(f, dtype=np.float64)
        if self.kind == "squared":
            return squared_loss(f + self.intercept, self.targets)
        return float(-np.mean(self.log_probabilities(f)[np.arange(len(f)), self.labels]))

    def accuracy(self, f: np.ndarray) -> float:
        """Return the share of examples whose predicted class, with the intercept, is the label; NaN for such f."""
        f = np.asarray(f, dtype=np.float64)
        if not np.isfinite(f).all():
            return float("nan")
        return float(np.mean(predicted_class(f + self.intercept, self.classes, self.outputs) == self.labels))

    def gradient(self, f: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return d loss / d f for the examples ``index`` of this batch; f holds just their rows, as does the result.

        f is [..., rows, columns]: outputs of several models at once share their leading axes with the result.
        """
        f = np.asarray(f, dtype=np.float64)
        part = self.rows(index)
        if self.kind == "squared":
            return (f + self.intercept - part.targets) / (len(self.labels) * f.shape[-1])
        coding = coding_matrix(self.classes, self.outputs)
        errors = np.exp(part.log_probabilities(f)) - np.eye(coding.shape[1])[part.labels]
        return errors @ coding.T / len(self.labels)

    def log_probabilities(self, f: np.ndarray) -> np.ndarray:
        """Return the log-probability of every class, float64 [..., classes], from outputs f [..., columns].

        Under ``vocabulary`` a last one is that of all other tokens together.
        """
        logits = (f + self.intercept) @ coding_matrix(self.classes, self.outputs)
        with np.errstate(invalid="ignore", over="ignore"):
            logits = logits - logits.max(axis=-1, keepdims=True)
            return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
