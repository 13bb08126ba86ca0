"""The configuration keys of a study on real training: ways of choosing a stop, on an encoder or a language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stopwise.pipeline.config_fields import LEFT_OUT, Distinct, Section, key


class Recipe(Section):
    """A way of training in the study: learning rate, given or read off the kernel, its schedule, the head's start."""

    learning_rate: Annotated[float, LEFT_OUT] = key(
        None, "a number > 0 (left out where step_size is given)", "the absolute learning rate", gt=0
    )
    step_size: Annotated[float, LEFT_OUT] = key(
        None, "a number > 0 (left out where learning_rate is given)", "c in c / lambda_1 of AdamW's own kernel", gt=0
    )
    schedule: Literal["constant", "decay"] = key(
        "constant",
        "constant or decay",
        "a constant rate, looked at along the way, or 10 % of warm-up and linear decay, a training for each length",
    )
    start: Annotated[Literal["random", "probe", "pretrained"], LEFT_OUT] = key(
        None,
        "random, probe or pretrained (random when left out, pretrained where words answer)",
        "how the head starts: drawn, or as the logistic regression on the features (words have no new head)",
    )
    clip_norm: Annotated[float, LEFT_OUT] = key(
        None,
        "a number > 0 (finetune.clip_norm when left out)",
        "the norm that the gradient of a step is cut down to",
        gt=0,
    )


class Study(Section):
    """The targets `encoder_study` and `language_model_study`: ways of choosing a stop, judged on real training."""

    set_aside: Annotated[Distinct[str], LEFT_OUT] = key(
        [], "a list of names of tasks ([] when left out)", "the tasks that no choice is made with"
    )
    recipes: Annotated[dict[str, Recipe], LEFT_OUT] = key(
        {"1e-4-constant": {"learning_rate": 1e-4}},
        "a mapping from names to recipes (one of 1e-4, constant, when left out)",
        "the ways of training",
        min_length=1,
    )
    primary: Annotated[Distinct[str] | None, LEFT_OUT] = key(
        None,
        "a list of names of recipes (all when left out)",
        "the recipes that run at every size with the first seed, and at others_size with the other seeds",
    )
    others_size: Annotated[int, LEFT_OUT] = key(
        None, "one of sizes (the smallest when left out)", "the size of the other seeds and of the other recipes"
    )
    usual: Annotated[str, LEFT_OUT] = key(
        None,
        "the name of a primary recipe (the last when left out)",
        "the recipe whose last step is the usual recipe that accuracies are compared with",
    )
    steps: Annotated[int, LEFT_OUT] = key(
        160, "an integer >= 4 (160 when left out)", "the least length of a run, under decay of the longest", ge=4
    )
    epochs: Annotated[int, LEFT_OUT] = key(12, "an integer >= 1 (12 when left out)", "the least epochs of a run", ge=1)
    lengths: Annotated[Distinct[Annotated[int, Field(ge=1)]], LEFT_OUT] = key(
        [1, 2, 3, 5, 10, 20, 40],
        "a list of integers >= 1 ([1, 2, 3, 5, 10, 20, 40] when left out)",
        "the lengths in epochs of the trainings under decay, as far as a run goes",
    )
    evaluations: Annotated[int, LEFT_OUT] = key(
        8,
        "an integer >= 1 (8 when left out)",
        "evaluations under a constant rate spaced evenly in logarithm, beside the fixed epochs",
        ge=1,
    )
    fixed_epochs: Annotated[Distinct[Annotated[int, Field(ge=1)]], LEFT_OUT] = key(
        [1, 3, 5, 10], "a list of integers >= 1 ([1, 3, 5, 10] when left out)", "the fixed lengths that are compared"
    )
    folds_size: Annotated[int | None, LEFT_OUT] = key(
        None,
        "one of sizes, 0 or null (null when left out)",
        "the size at which eight folds are trained, with the first seed and the usual recipe; null: at every size; 0:"
        " at none",
    )
    kernel_rows: Annotated[int, LEFT_OUT] = key(
        256, "an integer >= 4 (256 when left out)", "rows of a kernel, at most: examples times classes less 1", ge=4
    )
    test_rows: Annotated[dict[str, Annotated[int, Field(ge=2)]], LEFT_OUT] = key(
        {}, "a mapping from names of tasks to integers >= 2", "test rows of a seed where data.test is too many"
    )
