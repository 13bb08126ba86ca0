"""The names of the stopping rules. They carry no number, so that a new name makes no finished training out of date."""

RULES = (
    "worst_case",
    "balance",
    "sure",
    "gcv",
    "loo",
    "loo_shortcut",
    "bayes",
    "discrepancy",
    "holdout",
    "oracle",
)
# They read a measured curve and choose nothing before training.
MEASURED = ("holdout", "oracle")
NEED_SIGMA = ("worst_case", "balance", "sure", "discrepancy")
# The stops of a run that no prediction decides.
MEASURED_STOPS = ("none", "holdout")
# The rules that follow training on cross-entropy by replaying its steps on the kernel.
REPLAYING_RULES = ("loo", "bayes")
