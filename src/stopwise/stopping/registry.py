"""The registry of stopping rules: one row a rule, from which everything that lists rules is read.

A row says what a rule is called, what it needs and where it is shown. It holds no number and no formula: the function
that computes a rule stands in ``closed_form`` or ``left_out_rules``, under the name of its row, and how it is drawn in
``stopwise.figures.style``. So a new row makes no finished training out of date. To change what an existing rule
computes, change its function, not its row.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a rule may need beside the kernel's spectrum and the residual y - f0.
SIGMA = "sigma"  # the noise of the labels
RADIUS = "radius"  # the size R of what is to be learned, |f* - f0|
SCALE = "scale"  # the same number as the scale of a prior on f* - f0, which no single f* has
TARGETS = "targets"  # y by itself
VALIDATION = "validation"  # a measured validation curve
TEST = "test"  # a measured test curve


@dataclass(frozen=True)
class Rule:
    """One stopping rule.

    ``words``: what it does, in plain English; ``stops``: where it stops, in the notation of the docs; ``needs``: what
    it reads beside spectrum and residual (constants above). ``refits``: it trains again without each example, which
    takes long. ``replays``: on cross-entropy it follows training step by step. ``estimates_error``: it stops at the
    least estimate of the error itself, so that such rules ought to agree. ``compared``: advice shows its answer.
    """

    name: str
    words: str
    stops: str
    needs: tuple[str, ...] = ()
    refits: bool = False
    replays: bool = False
    estimates_error: bool = False
    compared: bool = True

    @property
    def measured(self) -> bool:
        """Whether it reads a measured curve, and so chooses nothing before training."""
        return VALIDATION in self.needs or TEST in self.needs

    @property
    def yardstick(self) -> bool:
        """Whether it reads the test curve: other rules are judged by it, and nobody can follow it."""
        return TEST in self.needs


# In the order of all tables and figures: predicted rules first.
ROWS = (
    Rule(
        "worst_case",
        words="a guarantee against the worst case; cautious by design",
        stops="where the local complexity of the kernel meets the noise: Σ min(λ̂ᵢ, 1/η)/m = R²/(4e²σ²η²); the paper's"
        " bound holds there",
        needs=(SIGMA, RADIUS),
    ),
    Rule(
        "balance",
        words="stops when noise fitted outweighs signal left",
        stops="where the variance (σ²/m) Σ s_i² overtakes the squared bias (1/m) Σ (1 − s_i)² R² λ̂_i",
        needs=(SIGMA, SCALE),
    ),
    Rule(
        "sure",
        words="Stein's unbiased estimate of the error",
        stops="at the least unbiased estimate of the risk: (1/m) Σ (1 − s_i)² z_i² + (2σ²/m) df − σ² (Stein, Mallows)",
        needs=(SIGMA,),
        estimates_error=True,
    ),
    Rule(
        "gcv",
        words="generalised cross-validation",
        stops="at the least (1/m) Σ (1 − s_i)² z_i² / (1 − df/m)² (generalised cross-validation)",
        estimates_error=True,
    ),
    Rule(
        "loo",
        words="the error on each example, left out of the fit",
        stops="at the least leave-one-out error of the path, refitted without each example",
        refits=True,
        replays=True,
        estimates_error=True,
    ),
    Rule(
        "loo_shortcut",
        words="the error on each example left out, by a formula that is exact for ridge regression only",
        stops="at the least leave-one-out error by the shortcut that is exact for ridge regression only",
        estimates_error=True,
        compared=False,
    ),
    Rule(
        "bayes",
        words="the expected error on a new example, averaged over all noise levels that the labels allow",
        stops="at the least expected loss on a new example, the unknown noise, signal and slope of the labels on f0"
        " averaged over",
        needs=(TARGETS,),
        refits=True,
        replays=True,
        estimates_error=True,
    ),
    Rule(
        "discrepancy",
        words="stops when the training error has come down to the noise",
        stops="at the first step whose training residual has come down to σ² (Morozov)",
        needs=(SIGMA,),
        compared=False,
    ),
    Rule(
        "holdout",
        words="the best validation loss of the real run",
        stops="at the best validation loss of the real run so far, with patience: the paper's practice",
        needs=(VALIDATION,),
        compared=False,
    ),
    Rule(
        "oracle",
        words="the best test loss of the real run: a yardstick, never a rule",
        stops="at the evaluation with the lowest test loss",
        needs=(TEST,),
        compared=False,
    ),
)
ROW = {rule.name: rule for rule in ROWS}
RULES = tuple(ROW)
# They read a measured curve and choose nothing before training; the others are predicted.
MEASURED = tuple(rule.name for rule in ROWS if rule.measured)
PREDICTED = tuple(rule.name for rule in ROWS if not rule.measured)
NEED_SIGMA = tuple(rule.name for rule in ROWS if SIGMA in rule.needs)
# The stops of a run that no prediction decides.
MEASURED_STOPS = ("none", *(rule.name for rule in ROWS if VALIDATION in rule.needs))
# The stops that training on a part of the examples names, for a training on all of them that reads no validation data.
FOLDED_STOPS = ("cross_validation", "holdout_refit")
# The stop after a fixed number of epochs.
FIXED_STOP = "epochs"
# The rules that follow training on cross-entropy by replaying its steps on the kernel.
REPLAYING_RULES = tuple(rule.name for rule in ROWS if rule.replays)
REFITTED = tuple(rule.name for rule in ROWS if rule.refits)
# The rules that advice shows beside the one it follows, and those among them that ought to agree.
COMPARED = tuple(rule.name for rule in ROWS if rule.compared)
AGREEING = tuple(rule.name for rule in ROWS if rule.compared and rule.estimates_error)
