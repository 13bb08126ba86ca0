"""The design of the study on real training: its cells, how long they run, when they are evaluated (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stopwise.studies.encoder_rows import Cell, Recipe

DEFAULT_BATCH = 8
FIRST_STEP = 4  # the first evaluation of those that are spaced evenly in logarithm
NEAR = 1.25  # such an evaluation this near to a fixed one, as a factor, is left out


@dataclass(frozen=True)
class Design:
    """The study section of a configuration, with what it takes from other sections."""

    seeds: tuple[int, ...]
    sizes: tuple[int, ...]
    recipes: dict[str, Recipe]
    primary: tuple[str, ...]
    usual: str
    others_size: int
    steps: int
    epochs: int
    evaluations: int
    fixed_epochs: tuple[int, ...]
    batch_size: int
    set_aside: tuple[str, ...]
    test_rows: Mapping[str, int]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Design:
        """Return the design of a configuration whose study section is complete (``config.completed_study``).

        Raises ValueError naming the key for what contradicts itself.
        """
        given = config["study"]
        recipes = {name: _recipe(name, own) for name, own in given["recipes"].items()}
        primary = tuple(given["primary"] or recipes)
        usual = given["usual"] or primary[-1]
        sizes = tuple(sorted(config["sizes"]))
        others = given["others_size"] or sizes[0]
        for key, found, allowed in (
            *(("primary", name, recipes) for name in primary),
            ("usual", usual, primary),
            ("others_size", others, sizes),
            *(("set_aside", name, config["tasks"]) for name in given["set_aside"]),
            *(("test_rows", name, config["tasks"]) for name in given["test_rows"]),
        ):
            if found not in allowed:
                raise ValueError(f"config key study.{key}: {found!r} is not one of {', '.join(map(str, allowed))}")
        return cls(
            tuple(config["seeds"]),
            sizes,
            recipes,
            primary,
            usual,
            others,
            given["steps"],
            given["epochs"],
            given["evaluations"],
            tuple(sorted(given["fixed_epochs"])),
            config["finetune"]["batch_size"] or DEFAULT_BATCH,
            tuple(given["set_aside"]),
            given["test_rows"],
        )

    def cells(self, tasks: Iterable[str]) -> list[Cell]:
        """Return the cells of some tasks: primary recipes everywhere, the others at one size with the first seed."""
        out = []
        for task in tasks:
            out += [Cell(task, s, n, recipe) for s in self.seeds for n in self.sizes for recipe in self.primary]
            others = [name for name in self.recipes if name not in self.primary]
            out += [Cell(task, self.seeds[0], self.others_size, name) for name in others]
        return out

    def batch(self, n: int) -> int:
        """Return the examples of a step of a run on n examples."""
        return min(self.batch_size, n)

    def run_steps(self, n: int) -> int:
        """Return the number of steps of a run on n examples."""
        return max(self.steps, -(-self.epochs * n // self.batch(n)))

    def epoch_step(self, n: int, epochs: int) -> int:
        """Return the step at which so many epochs of n examples are done, at most the last of the run."""
        return min(self.run_steps(n), round(epochs * n / self.batch(n)))

    def evaluation_steps(self, n: int) -> list[int]:
        """Return the steps at which a run on n examples is evaluated, ascending, 0 and the last among them."""
        last = self.run_steps(n)
        fixed = {0, last, *(self.epoch_step(n, k) for k in self.fixed_epochs)}
        spaced = np.unique(np.round(np.geomspace(min(FIRST_STEP, last), last, self.evaluations)).astype(int))
        far = [t for t in spaced if all(max(t, f) > NEAR * min(t, f) for f in fixed if f)]
        return sorted(fixed | {int(t) for t in far})

    def test_count(self, task: str, default: int) -> int:
        """Return how many test rows a seed of this task has."""
        return self.test_rows.get(task, default)


def _recipe(name: str, given: Mapping[str, Any]) -> Recipe:
    rate, size = given.get("learning_rate"), given.get("step_size")
    if (rate is None) == (size is None):
        raise ValueError(f"config key study.recipes.{name}: needs one of learning_rate and step_size")
    return Recipe(name, rate, size, given.get("schedule", "constant"))
