"""What a person asks of advice for the training that most people do: AdamW and cross-entropy under a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stopwise.advice.settings import AdviceError, check_text

SCHEDULES = ("linear", "cosine", "constant")
STARTS = ("probe", "random")
PARAMETERS = ("all", "attention", "linear")
ADAPTERS = ("lora",)
# The longest training looked at when none is named, in epochs.
LONGEST = 40.0
FEWEST_EXAMPLES = 8
MOST_FOLDS = 20
# Of an adapter.
DEFAULTS = {"rank": 8, "alpha": 16.0, "target": "all-linear", "rslora": False}


@dataclass(frozen=True)
class Plan:
    """A training as it is planned; every field is an option of ``stopwise advise`` but ``data``, which may be named so.

    ``head``: a new classification head, else the labels are words of a language model. ``learning_rate``: the largest
    of the schedule (None: 4/lambda_1, the largest that is not flagged). ``warmup``: in which the
    rate rises, a share of the steps, or from 1 on a number of them. ``epochs``: the training that is planned (None:
    none in particular; up to 40 are looked at, or twice as many as planned). ``head_start``: ``probe``, a logistic
    regression on the features, or ``random``. ``max_grad_norm``: at which gradients are clipped (None: 1, as Trainers
    do, at a rate that is given, and never at the kernel's own, whose steps are small). ``parameters``: what is trained
    (None: ``all`` with a head, ``attention`` with words); ``adapter`` ``lora`` trains one of ``rank``, ``alpha``,
    ``target`` and ``rslora`` instead, and the head. ``size``: the labels that training will have (None: all distinct
    texts of the data). ``verify``: real folds. ``dataset``: a data set of the hub, ``id`` or ``id:config``, instead of
    ``data``. Raises AdviceError for a wrong value.
    """

    model: str
    data: str
    text: tuple[str, ...]
    label: str
    head: bool = True
    parameters: str | None = None
    adapter: str | None = None
    rank: int = 8
    alpha: float = 16.0
    target: str = "all-linear"
    rslora: bool = False
    learning_rate: float | None = None
    schedule: str = "linear"
    warmup: float = 0.1
    epochs: float | None = None
    batch_size: int = 16
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    max_examples: int = 64
    max_tokens: int = 64
    head_start: str = "probe"
    size: int | None = None
    verify: int | None = None
    seed: int = 0
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    strict: bool = False
    revision: str | None = None
    template: str | None = None
    verbalizers: tuple[str, ...] = ()
    dataset: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {"schedule": SCHEDULES, "head_start": STARTS}
        choices |= {} if self.parameters is None else {"parameters": PARAMETERS}
        choices |= {} if self.adapter is None else {"adapter": ADAPTERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise AdviceError(f"{_option(name)}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name, (right, allowed) in self._ranges().items():
            if not right:
                raise AdviceError(f"{_option(name)}: found {getattr(self, name)}, must be {allowed}")
        self._check_together()

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        return {
            "learning_rate": (self.learning_rate is None or 0 < self.learning_rate < 1, "in (0, 1), such as 2e-5"),
            "warmup": (
                0 <= self.warmup < 1 or self.warmup == int(self.warmup) > 0,
                "a share of the steps in [0, 1), or a whole number of them",
            ),
            "epochs": (self.epochs is None or 0 < self.epochs <= 1000, "in (0, 1000]"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "max_grad_norm": (self.max_grad_norm is None or self.max_grad_norm >= 0, "0 (none) or more"),
            "max_examples": (FEWEST_EXAMPLES <= self.max_examples <= 1024, f"{FEWEST_EXAMPLES} to 1024"),
            "max_tokens": (self.max_tokens >= 4, "4 or more"),
            "rank": (1 <= self.rank <= 1024, "1 to 1024"),
            "alpha": (self.alpha > 0, "greater than 0"),
            "size": (self.size is None or self.size >= FEWEST_EXAMPLES, f"{FEWEST_EXAMPLES} or more"),
            "verify": (self.verify is None or 2 <= self.verify <= MOST_FOLDS, f"2 to {MOST_FOLDS} folds"),
        }

    def _check_together(self) -> None:
        """Raise AdviceError for options that contradict each other."""
        check_text(self)
        if self.head and (self.verbalizers or self.template is not None):
            name = "verbalizers" if self.verbalizers else "template"
            raise AdviceError(f"{_option(name)}: a classification head has no words; leave it out, or give --no-head")
        if self.random_head and self.learning_rate is None:
            raise AdviceError(
                "--learning-rate: a head that starts at random needs one: the kernel there says next to nothing of"
                " training, and its own rate is far too large; or leave --head-start out"
            )
        if self.head and len(self.text) > 2:
            raise AdviceError(
                f"--text: a classification head reads one column or a pair, found {len(self.text)}: join the others"
            )
        lost = [name for name in ("rank", "alpha", "target", "rslora") if getattr(self, name) != DEFAULTS[name]]
        if lost and self.adapter is None:
            raise AdviceError(f"{_option(lost[0])}: belongs to --adapter lora: give that too, or leave it out")
        if self.adapter and self.parameters:
            raise AdviceError("--parameters: an adapter is trained instead of the weights; leave one of the two out")
        if len(set(self.text)) != len(self.text):
            raise AdviceError(f"--text: {', '.join(self.text)} names a column twice")

    @property
    def reading(self) -> dict[str, Any]:
        """How the file is read."""
        return {key: getattr(self, key) for key in ("encoding", "delimiter", "header", "strict")}

    @property
    def name(self) -> str:
        """What the data are called."""
        return self.dataset or self.data

    @property
    def clip(self) -> float:
        """The norm at which gradients are clipped, 0 where they are not."""
        if self.max_grad_norm is None:
            return 0.0 if self.learning_rate is None else 1.0
        return self.max_grad_norm

    @property
    def trained(self) -> str:
        """Which parameters are trained."""
        return self.parameters or ("all" if self.head else "attention")

    @property
    def lora(self) -> dict[str, Any] | None:
        """The options of the adapter, as a configuration has them; None where the weights are trained."""
        if self.adapter is None:
            return None
        target: Any = self.target if self.target in ("all-linear", "attention") else self.target.split(",")
        return {"rank": self.rank, "alpha": self.alpha, "target": target, "rslora": self.rslora}

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
