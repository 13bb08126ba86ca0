"""Which advice is asked for: a head or words, cross-entropy under a schedule or squared loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stopwise.advice.door import check_model
from stopwise.advice.settings import AdviceError
from stopwise.tasks.labels import HOW_TO

OBJECTIVES = ("cross_entropy", "squared")
# The options that belong to one objective alone, as they are named in ``Plan`` and in ``Settings``.
SCHEDULED = (
    *("dataset", "split", "learning_rate", "schedule", "warmup", "epochs", "weight_decay", "max_grad_norm"),
    *("head_start", "size", "adapter", "rank", "alpha", "rslora", "target", "verify"),
)
SQUARED = ("optimizer", "momentum", "steps", "step_size", "target_scale")
Options = Mapping[str, Any]


def asked(given: Options, assets: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the objective, and the options of its ``Plan`` or ``Settings``, of all options of the command line.

    ``given``: an option that was not given is None. AdviceError for options that do not go together, in one line.
    """
    values = dict(given)
    labels = values.pop("label") or []
    if len(labels) > 1:
        raise AdviceError(f"--label: {', '.join(labels)}: several label columns are not supported; {HOW_TO}")
    check_source(values["data"], values["dataset"], values["split"])
    own = [{key: values.pop(key) for key in names} for names in (SCHEDULED, SQUARED)]
    head, objective, parameters = (values.pop(key) for key in ("head", "objective", "parameters"))
    values |= {"text": tuple(values["text"] or ()), "label": labels[0] if labels else "", "data": values["data"] or ""}
    values["verbalizers"] = tuple(values["verbalizers"] or ())
    # A shell hands on the two characters that stand for a line break, or a tab.
    values["template"] = values["template"] and values["template"].replace("\\n", "\n")
    values["delimiter"] = values["delimiter"] and values["delimiter"].replace("\\t", "\t")
    kind, more = chosen(values, *own, head=head, objective=objective, assets=assets)
    return kind, {**values, **more} | ({} if parameters is None else {"parameters": parameters})


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

    ``head`` None: whatever the model is made for; ``objective`` None: cross_entropy. AdviceError for options that do
    not go together, in one line.
    """
    if objective not in (None, *OBJECTIVES):
        raise AdviceError(f"--objective: {objective!r} is not one of {', '.join(OBJECTIVES)}")
    given, other = ({key: value for key, value in part.items() if value is not None} for part in (scheduled, squared))
    if objective == "squared":
        if head:
            raise AdviceError("--head: a head is trained on cross_entropy; leave --objective out, or give --no-head")
        if given:
            raise AdviceError(f"{_name(given)}: belongs to --objective cross_entropy, not to squared: leave it out")
        return "squared", other
    if other.pop("optimizer", "adamw") != "adamw":
        raise AdviceError(
            f"--optimizer: {squared['optimizer']!r} has no kernel under cross_entropy, where it is adamw: leave it out,"
            " or give --objective squared"
        )
    if other:
        raise AdviceError(f"{_name(other)}: belongs to --objective squared: leave it out, or give that too")
    if head is None:
        head = made_for_head(options["model"], options["revision"], assets)
    return "cross_entropy", {**given, "head": head}


def check_source(data: str | None, dataset: str | None, split: str | None) -> None:
    """Raise AdviceError unless exactly one source of data is named."""
    if data is None and dataset is None:
        raise AdviceError("--data: name a file, or a data set of the hub with --dataset")
    if data is not None and dataset is not None:
        raise AdviceError("--dataset: a file is given with --data already; leave one of the two out")
    if split is not None and dataset is None:
        raise AdviceError("--split: belongs to --dataset, and a file has no splits: leave it out")


def _name(given: Options) -> str:
    """Return the first of some options as it is typed."""
    return f"--{next(iter(given)).replace('_', '-')}"


def made_for_head(model: str, revision: str | None, assets: str | None) -> bool:
    """Tell whether a model has no words of its own; built-in ones are known, of others the configuration is read."""
    known = {"minilm": True, "pico-bert": True, "smollm2-135m": False}
    if model in known or model.startswith("pico-"):
        return known.get(model, False)
    check_model(model, revision)
    from stopwise.network.loading import prepare_model
    from stopwise.network.model_cache import cached_model, takes_head

    return takes_head(prepare_model(model, assets, revision=revision) if assets else cached_model(model, revision))
