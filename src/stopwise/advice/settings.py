"""What a person asks of ``stopwise advise`` for training on squared loss, checked before anything slow is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from stopwise.linearized.filters import Filter
    from stopwise.linearized.spectrum import Spectrum

OPTIMIZERS = ("heavy_ball", "nesterov", "gradient_descent", "adamw")
PARAMETERS = ("attention", "linear", "all", "lora")
# The longest path looked at, in full-batch steps: with momentum 0.9 one step counts for ten of plain descent. Real runs
# with momentum were flat after 24; the kernel of the start says little about what comes later. AdamW's are of batches.
STEPS = {"heavy_ball": 24, "nesterov": 24, "gradient_descent": 240, "adamw": 96}


class AdviceError(ValueError):
    """Advice that cannot be given; the message names the option of the command line."""


@dataclass(frozen=True)
class Settings:
    """What a person asks for; every field is an option of ``stopwise advise``.

    ``steps``: the longest time considered (None: 24 with momentum, 240 without, 96 of AdamW). ``step_size``: c in
    alpha = c/lambda_1 of the kernel. ``batch_size``: the mini-batch that the recipes speak of; AdamW's, whose kernel
    depends on it, is at most half of the examples. ``target_scale``: of the regression targets (None: fitted to the
    start, ``bayes.fitted_target_scale``). ``encoding``, ``delimiter``, ``header`` and ``strict``: how the file is read
    (None: recognised). Raises AdviceError for a wrong value.
    """

    model: str
    data: str
    text: tuple[str, ...]
    label: str
    template: str | None = None
    verbalizers: tuple[str, ...] = ()
    max_examples: int = 64
    max_tokens: int = 64
    parameters: str = "attention"
    seed: int = 0
    optimizer: str = "heavy_ball"
    momentum: float = 0.9
    steps: int | None = None
    step_size: float = 1.0
    batch_size: int = 16
    target_scale: float | None = None
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    strict: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise AdviceError(f"--optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        if self.parameters not in PARAMETERS:
            raise AdviceError(f"--parameters: {self.parameters!r} is not one of {', '.join(PARAMETERS)}")
        ranges = {
            "max_examples": (self.max_examples >= 8, "8 or more"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "steps": (self.steps is None or 1 <= self.steps <= 100_000, "1 to 100000"),
            "step_size": (0 < self.step_size <= 1, "in (0, 1]"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "target_scale": (self.target_scale is None or 0 < self.target_scale <= 1000, "in (0, 1000]"),
        }
        for name, (right, allowed) in ranges.items():
            if not right:
                raise AdviceError(f"--{name.replace('_', '-')}: found {getattr(self, name)}, must be {allowed}")
        if self.adam and self.parameters == "lora":
            raise AdviceError("--optimizer: 'adamw' has no kernel for adapters (--parameters lora); choose another")
        check_text(self)
        if len(set(self.text)) != len(self.text):
            raise AdviceError(f"--text: {', '.join(self.text)} names a column twice")

    @property
    def reading(self) -> dict[str, Any]:
        """The options of the source that were given."""
        given: dict[str, Any] = {"encoding": self.encoding, "delimiter": self.delimiter, "header": self.header}
        return {k: v for k, v in given.items() if v is not None} | ({"strict": True} if self.strict else {})

    @property
    def adam(self) -> bool:
        """Whether the advice is for AdamW, which has a kernel, a step and a clock of its own."""
        return self.optimizer == "adamw"

    def adam_batch(self, n: int) -> int:
        """AdamW's mini-batch of n examples: several in each epoch, or its kernel is that of sign descent."""
        return min(self.batch_size, n // 2)

    @property
    def t_max(self) -> int:
        """The longest time considered, in full-batch steps (AdamW: in its steps)."""
        return self.steps or STEPS[self.optimizer]

    def filter(self, lambda_1: float, momentum: float | None = None) -> Filter:
        """Return the filter of training with alpha = c/lambda_1; ``momentum`` 0 is plain descent, AdamW has its own."""
        from stopwise.linearized.filters import GradientDescent, HeavyBall, Nesterov
        from stopwise.training.settings import FinetuneSettings

        if self.adam:
            own = FinetuneSettings(optimizer="adamw", formula="adam", step_size=self.step_size, steps=self.t_max)
            return own.filter(lambda_1)
        beta, alpha = self.beta if momentum is None else momentum, self.step_size / lambda_1
        if beta == 0:
            return GradientDescent(alpha)
        return Nesterov(alpha, beta) if self.optimizer == "nesterov" else HeavyBall(alpha, beta)

    def scale(self, spec: Spectrum, targets: np.ndarray, start: np.ndarray) -> float:
        """Return the scale of the targets: the one asked for, or the one fitted to targets of scale 1 and f0."""
        from stopwise.stopping.bayes import fitted_target_scale

        return fitted_target_scale(spec, targets, start) if self.target_scale is None else self.target_scale

    @property
    def beta(self) -> float:
        """The momentum that training really has: 0 for plain descent, that of AdamW's mean."""
        from stopwise.training.settings import ADAM_BETAS

        return {"gradient_descent": 0.0, "adamw": ADAM_BETAS[0]}.get(self.optimizer, self.momentum)


def check_text(asked: Any) -> None:
    """Raise AdviceError for columns, a template or words that hold bytes which are no text."""
    for name in ("text", "label", "template", "verbalizers"):
        value = getattr(asked, name)
        if any(not _is_text(part) for part in ((value,) if isinstance(value, str) else value or ())):
            raise AdviceError(f"--{name}: holds bytes that are not text; check the encoding of your terminal")


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
