"""What a person asks of advice for the training that most people do: AdamW and cross-entropy under a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stopwise.advice.settings import AdviceError

SCHEDULES = ("linear", "cosine", "constant")
STARTS = ("probe", "random")
# The longest training looked at when none is named, in epochs.
LONGEST = 20.0
FEWEST_EXAMPLES = 8


@dataclass(frozen=True)
class Plan:
    """A training as it is planned; every field is an option of ``stopwise advise`` but ``data``, which may be named so.

    ``head``: a new classification head, else the labels are words of a language model. ``learning_rate``: the largest
    of the schedule (None: 4/lambda_1, the largest whose predictions were compared with runs). ``warmup``: in which the
    rate rises, a share of the steps, or from 1 on a number of them. ``epochs``: the training that is planned (None:
    none in particular; up to 20 are looked at, or twice as many as planned). ``head_start``: ``probe``, a logistic
    regression on the features, or ``random``. Raises AdviceError for a wrong value.
    """

    model: str
    data: str
    text: tuple[str, ...]
    label: str
    head: bool = True
    learning_rate: float | None = None
    schedule: str = "linear"
    warmup: float = 0.1
    epochs: float | None = None
    batch_size: int = 16
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_examples: int = 64
    max_tokens: int = 64
    head_start: str = "probe"
    seed: int = 0
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    strict: bool = False
    revision: str | None = None
    template: str | None = None
    verbalizers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in {"schedule": SCHEDULES, "head_start": STARTS}.items():
            if getattr(self, name) not in choices:
                raise AdviceError(f"{_option(name)}: {getattr(self, name)!r} is not one of {', '.join(choices)}")
        ranges = {
            "learning_rate": (self.learning_rate is None or 0 < self.learning_rate < 1, "in (0, 1), such as 2e-5"),
            "warmup": (
                0 <= self.warmup < 1 or self.warmup == int(self.warmup) > 0,
                "a share of the steps in [0, 1), or a whole number of them",
            ),
            "epochs": (self.epochs is None or 0 < self.epochs <= 1000, "in (0, 1000]"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "max_grad_norm": (self.max_grad_norm >= 0, "0 (none) or more"),
            "max_examples": (FEWEST_EXAMPLES <= self.max_examples <= 1024, f"{FEWEST_EXAMPLES} to 1024"),
            "max_tokens": (self.max_tokens >= 4, "4 or more"),
        }
        for name, (right, allowed) in ranges.items():
            if not right:
                raise AdviceError(f"{_option(name)}: found {getattr(self, name)}, must be {allowed}")
        if self.head and (self.verbalizers or self.template is not None):
            name = "verbalizers" if self.verbalizers else "template"
            raise AdviceError(f"{_option(name)}: a classification head has no words; leave it out, or give --no-head")
        if self.random_head and self.learning_rate is None:
            raise AdviceError(
                "--learning-rate: a head that starts at random needs one: the kernel there says next to nothing of"
                " training, and its own rate is far too large; or leave --head-start out"
            )
        if self.head and not 1 <= len(self.text) <= 2:
            raise AdviceError(
                f"--text: a classification head reads one column or a pair, found {len(self.text)}: join the others"
            )

    @property
    def reading(self) -> dict[str, Any]:
        """How the file is read."""
        return {key: getattr(self, key) for key in ("encoding", "delimiter", "header", "strict")}

    @property
    def random_head(self) -> bool:
        """Whether a new head starts at random, where the kernel is not that of the training that follows."""
        return self.head and self.head_start == "random"

    @property
    def longest(self) -> float:
        """The longest training that is looked at, in epochs."""
        return LONGEST if self.epochs is None else max(LONGEST, 2 * self.epochs)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
