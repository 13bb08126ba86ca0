"""The claims of the paper (arXiv 2602.13942) with the criterion of each, fixed before any run was judged by it."""

from __future__ import annotations

import math

from stopwise.claims import measures
from stopwise.claims.verdicts import Claim

NOTHING = -math.inf
FEW_EPOCHS = 5.0
RATE_MARGIN = 0.25
SAME = (1 / 1.1, 1.1)
_RATES = {
    "finite_rank": "finite rank",
    "beta1": "eigenvalues k⁻²",
    "beta2": "eigenvalues k⁻⁴",
    "exponential": "exponential decay",
}
_HALF = (
    "every rate that theory allows lies between -1/2 and -1, and half of that range is the most by which a measured"
    " slope may be off and still tell them apart."
)
_TEN = "two procedures that differ by less than 10 % of the loss are the same for any practical choice between them."

TRAINING = [
    Claim(
        "few epochs",
        "A few epochs of fine-tuning suffice",
        "epochs until the test loss of real training from the pretrained start is within 5 % of its lowest",
        "finetune/*/*/*/trajectory.parquet",
        "F2",
        NOTHING,
        FEW_EPOCHS,
        "the paper speaks of a few epochs without a number; common recipes for fine-tuning take 3 to 5.",
        measures.few_epochs,
    ),
    Claim(
        "pretrained against mixed",
        "A pretrained start reaches a lower test loss than a mixed one",
        "lowest test loss from the mixed start over that from the pretrained start, same examples",
        "finetune/*/*/*/trajectory.parquet",
        "F2",
        1.0,
        math.inf,
        "any advantage, as long as its interval excludes none.",
        measures.start_against("mixed"),
        factor=True,
    ),
    Claim(
        "pretrained against random",
        "A pretrained start reaches a lower test loss than a random one",
        "lowest test loss from the random start over that from the pretrained start, same examples",
        "finetune/*/*/*/trajectory.parquet",
        "F2",
        1.0,
        math.inf,
        "any advantage, as long as its interval excludes none.",
        measures.start_against("random"),
        factor=True,
    ),
    Claim(
        "linear training",
        "Fine-tuning stays close to training of the linearised network",
        "factor between the real test loss and that of the linearised network, where the real one is lowest",
        "finetune/*/*/*/trajectory.parquet",
        "F6",
        NOTHING,
        1.1,
        _TEN,
        measures.linearity,
        factor=True,
    ),
    Claim(
        "kernel drift",
        "The kernel hardly changes during fine-tuning",
        "‖K_t − K_0‖/‖K_0‖ at the last step at which the kernel was computed again",
        "figures/F6.parquet",
        "F6",
        NOTHING,
        0.1,
        "the same tenth as for the losses: a smaller change cannot be told from none by its effect.",
        measures.drift,
    ),
    Claim(
        "convergence guarantee",
        "The training loss of real fine-tuning stays below its guarantee",
        "largest training loss over its guarantee, all steps after the start",
        "figures/F6.parquet",
        "F6",
        NOTHING,
        1.0,
        "a guarantee that one step breaks does not hold.",
        measures.guarantee,
    ),
]
KERNEL = [
    Claim(
        "eigenvalue decay",
        "The kernel's eigenvalues decay fast enough for a rate: λᵢ ~ i^(−2β) with β > ½",
        "fitted exponent 2β of the kernel at the pretrained start",
        "decay/*/*/*.parquet",
        "F1",
        1.0,
        math.inf,
        "the theory's condition on the decay.",
        measures.decay_exponent,
    ),
    Claim(
        "rate in n",
        "The test error falls in n at the rate that the eigenvalue decay gives",
        "slope of log(test loss − noise) in log n at the hold-out stop, minus the slope that the spectrum predicts",
        "figures/F4.parquet",
        "F4",
        -RATE_MARGIN,
        RATE_MARGIN,
        _HALF,
        measures.rate,
    ),
    Claim(
        "ridge, linearised",
        "Early stopping of the linearised network equals kernel ridge regression",
        "lowest test loss of ridge at μ = 1/η over the lowest of the linearised path, at the same times η",
        "gram/*/*/*.parquet",
        "F5",
        *SAME,
        _TEN,
        measures.ridge_over_linearised,
        factor=True,
    ),
    Claim(
        "ridge, real training",
        "Early stopping of real fine-tuning equals kernel ridge regression",
        "lowest test loss of ridge at μ = 1/η over the lowest of real training, at the same times η",
        "gram/*/*/*.parquet",
        "F2",
        *SAME,
        _TEN,
        measures.ridge_over_training,
        factor=True,
    ),
    Claim(
        "bound",
        "The bound on the risk at the worst-case stop holds, σ and R estimated",
        "largest of (test loss − σ̂²) / (12 R̂²/η*) over all runs in which the rule has an answer",
        "stopping/*/*/*.parquet",
        "F3",
        NOTHING,
        1.0,
        "a bound that one run exceeds does not hold.",
        measures.bound,
    ),
    Claim(
        "worst-case stop",
        "The stopping time read off the kernel is as good as the best one",
        "relative regret of the rule worst_case against the oracle's test loss, all sizes",
        "evaluation/*/*/*.parquet",
        "F3",
        NOTHING,
        0.05,
        "the margin within which a stop counts as a hit everywhere in this project.",
        measures.regret_of("worst_case"),
    ),
    Claim(
        "hold-out stop",
        "Stopping on a hold-out set, the paper's practice, is as good as the best stop",
        "relative regret of the rule holdout against the oracle's test loss, all sizes",
        "evaluation/*/*/*.parquet",
        "F3",
        NOTHING,
        0.05,
        "the margin within which a stop counts as a hit everywhere in this project.",
        measures.regret_of("holdout"),
    ),
]
VECTORS = [
    Claim(
        "cosine of task vectors",
        "The kernel predicts the angle between task vectors",
        "|measured − predicted| cosine over the pairs of tasks",
        "figures/F7.parquet",
        "F7",
        NOTHING,
        0.1,
        "a twentieth of the range of a cosine.",
        measures.prediction_error("cosine"),
    ),
    Claim(
        "interference",
        "The kernel predicts by how much one task's vector disturbs another task",
        "|measured − predicted| interference, in units of the residual of the disturbed task",
        "figures/F7.parquet",
        "F7",
        NOTHING,
        0.1,
        "a tenth of what the disturbed task has left to learn.",
        measures.prediction_error("interference"),
    ),
    Claim(
        "accuracy of merged models",
        "The kernel predicts the accuracy of merged models",
        "|measured − predicted| test accuracy at the coefficient that validation chose",
        "figures/F8.parquet",
        "F8",
        NOTHING,
        0.05,
        "five points of accuracy, about what a test set of a hundred examples can tell apart.",
        measures.merged_accuracy,
    ),
    Claim(
        "addition",
        "The sum of two task vectors serves both tasks",
        "test accuracy of the sum over that of the task's own vector alone",
        "figures/F8.parquet",
        "F8",
        0.9,
        math.inf,
        "a sum that keeps nine tenths of what each vector gives alone serves both.",
        measures.addition,
        factor=True,
    ),
]
SYNTHETIC = [
    *(
        Claim(
            f"synthetic rate, {words}",
            f"Where the truth is known, the risk falls in m at theory's rate: {words}",
            "slope of log risk in log m at the worst-case stop, σ and R known, minus the slope of theory",
            "figures/F10.parquet",
            "F10",
            -RATE_MARGIN,
            RATE_MARGIN,
            _HALF,
            measures.synthetic_rate(decay),
        )
        for decay, words in _RATES.items()
    ),
    Claim(
        "synthetic bound",
        "Where the truth is known, the bound on the risk holds",
        "largest risk over its bound at the worst-case stop, σ and R known",
        "figures/F10.parquet",
        "F10",
        NOTHING,
        1.0,
        "a bound that one data set exceeds does not hold.",
        measures.synthetic_bound,
    ),
    Claim(
        "synthetic ridge",
        "Where the truth is known, ridge at its best equals early stopping at its best",
        "lowest risk of ridge over the lowest of early stopping, each data set at its own best",
        "figures/F5.parquet",
        "F5",
        *SAME,
        _TEN,
        measures.synthetic_ridge,
        factor=True,
    ),
]
CLAIMS = [*TRAINING, *KERNEL, *VECTORS, *SYNTHETIC]
