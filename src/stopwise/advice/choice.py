"""Which advice is asked for: a head or words, cross-entropy under a schedule or squared loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stopwise.advice.door import check_model
from stopwise.advice.settings import AdviceError

OBJECTIVES = ("cross_entropy", "squared")
Options = Mapping[str, Any]


def chosen(
    options: Options,
    scheduled: Options,
    squared: Options,
    *,
    head: bool | None = None,
    objective: str | None = None,
    assets: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return the objective and the options that belong to it, of which None are left out.

    ``head`` None: whatever the model is made for; ``objective`` None: cross_entropy with a head, and where an option of
    its schedule is given. AdviceError for options that do not go together, in one line.
    """
    if objective not in (None, *OBJECTIVES):
        raise AdviceError(f"--objective: {objective!r} is not one of {', '.join(OBJECTIVES)}")
    given, other = ({key: value for key, value in part.items() if value is not None} for part in (scheduled, squared))
    if head is None:
        head = objective != "squared" and not other and _made_for_head(options["model"], options["revision"], assets)
    if objective is None:
        objective = "cross_entropy" if head or (given and not other) else "squared"
    wrong = other if objective == "cross_entropy" else given
    if head and objective == "squared":
        raise AdviceError("--head: a head is trained on cross_entropy; leave --objective out, or give --no-head")
    if wrong:
        name = next(iter(wrong)).replace("_", "-")
        one = "squared" if objective == "cross_entropy" else "cross_entropy"
        raise AdviceError(f"--{name}: belongs to --objective {one}, and this is --objective {objective}: leave it out")
    return objective, {**given, "head": head} if objective == "cross_entropy" else other


def _made_for_head(model: str, revision: str | None, assets: str | None) -> bool:
    """Tell whether a model has no words of its own; built-in ones are known, of others the configuration is read."""
    known = {"minilm": True, "pico-bert": True, "smollm2-135m": False}
    if model in known or model.startswith("pico-"):
        return known.get(model, False)
    check_model(model, revision)
    from stopwise.network.loading import prepare_model
    from stopwise.network.model_cache import cached_model, takes_head

    return takes_head(prepare_model(model, assets, revision=revision) if assets else cached_model(model, revision))
