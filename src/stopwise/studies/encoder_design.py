"""The design of the study on real training: its cells, how long they run, when they are evaluated (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stopwise.studies.encoder_rows import ALL, FOLDS, HOLDOUT, RANDOM, Cell, Recipe

DEFAULT_BATCH = 8
NO_FOLDS = 0  # the folds_size of a study without folds
PRETRAINED = "pretrained"  # the start of a language model whose words answer, beside those of a head
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
    lengths: tuple[int, ...]
    evaluations: int
    fixed_epochs: tuple[int, ...]
    folds_size: int | None
    batch_size: int
    set_aside: tuple[str, ...]
    test_rows: Mapping[str, int]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Design:
        """Return the design of a configuration whose study section is complete (``config.completed_study``).

        Raises ValueError naming the key for what contradicts itself.
        """
        given, clip_norm = config["study"], config["finetune"].get("clip_norm")
        recipes = {name: _recipe(name, own, clip_norm) for name, own in given["recipes"].items()}
        primary = tuple(given["primary"] or recipes)
        usual = given["usual"] or primary[-1]
        sizes = tuple(sorted(config["sizes"]))
        others = given["others_size"] or sizes[0]
        for key, found, allowed in (
            *(("primary", name, recipes) for name in primary),
            ("usual", usual, primary),
            ("others_size", others, sizes),
            ("folds_size", given["folds_size"], (None, NO_FOLDS, *sizes)),
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
            tuple(sorted(given["lengths"])),
            given["evaluations"],
            tuple(sorted(given["fixed_epochs"])),
            given["folds_size"],
            config["finetune"]["batch_size"] or DEFAULT_BATCH,
            tuple(given["set_aside"]),
            given["test_rows"],
        )

    def cells(self, tasks: Iterable[str]) -> list[Cell]:
        """Return the cells of some tasks.

        Primary recipes have every size with the first seed, and one size with the other seeds; other recipes have that
        size and the first seed.
        """
        first, size = self.seeds[0], self.others_size
        pairs = [(first, n) for n in self.sizes] + [(seed, size) for seed in self.seeds[1:]]
        others = [name for name in self.recipes if name not in self.primary]
        out = []
        for task in tasks:
            out += [Cell(task, seed, n, name) for seed, n in pairs for name in self.primary]
            out += [Cell(task, first, size, name) for name in others]
        return out

    def first_cells(self, tasks: Iterable[str]) -> list[Cell]:
        """Return the cells of the first stage: primary recipes, the first seed, sizes up to that of the others."""
        small = [n for n in self.sizes if n <= self.others_size]
        first = self.seeds[0]
        return [c for c in self.cells(tasks) if c.n in small and c.seed == first and c.recipe in self.primary]

    def folded(self, cell: Cell) -> bool:
        """Return whether the eight folds of a cell are trained."""
        sized = self.folds_size in (None, cell.n)
        return sized and cell.seed == self.seeds[0] and cell.recipe == self.usual

    def followed(self, cell: Cell) -> bool:
        """Return whether the networks without each example are followed beside a cell: in the first stage."""
        return self.recipes[cell.recipe].followed and cell in self.first_cells([cell.task])

    def parts(self, cell: Cell) -> tuple[str, ...]:
        """Return the jobs that train a cell."""
        return (ALL, HOLDOUT, FOLDS) if self.folded(cell) else (ALL, HOLDOUT)

    def start(self, cell: Cell) -> str:
        """Return how the head of a cell starts, ``pretrained`` where words answer."""
        return self.recipes[cell.recipe].start

    def batch(self, n: int) -> int:
        """Return the examples of a step of a run on n examples."""
        return min(self.batch_size, n)

    def run_steps(self, n: int) -> int:
        """Return the number of steps of a run on n examples."""
        return max(self.steps, -(-self.epochs * n // self.batch(n)))

    def epoch_step(self, n: int, epochs: int) -> int:
        """Return the step at which so many epochs of n examples are done, at most the last of the run."""
        return min(self.run_steps(n), round(epochs * n / self.batch(n)))

    def evaluation_steps(self, n: int, recipe: str) -> list[int]:
        """Return the steps at which a run on n examples is evaluated, ascending, 0 and the last among them.

        Under a decaying rate they are the lengths of its trainings, and the start.
        """
        last = self.run_steps(n)
        if self.recipes[recipe].decays:
            return sorted({0, last, *(self.epoch_step(n, k) for k in self.lengths)})
        fixed = {0, last, *(self.epoch_step(n, k) for k in self.fixed_epochs)}
        spaced = np.unique(np.round(np.geomspace(min(FIRST_STEP, last), last, self.evaluations)).astype(int))
        far = [t for t in spaced if all(max(t, f) > NEAR * min(t, f) for f in fixed if f)]
        return sorted(fixed | {int(t) for t in far})

    def searched(self, n: int, recipe: str) -> float:
        """Return what looking at every evaluation costs, in trainings of the longest length.

        Under a decaying rate every length is trained, else one training holds all evaluations.
        """
        steps = self.evaluation_steps(n, recipe)
        return sum(steps) / steps[-1] if self.recipes[recipe].decays else 1.0

    def test_count(self, task: str, default: int) -> int:
        """Return how many test rows a seed of this task has."""
        return self.test_rows.get(task, default)


def _recipe(name: str, given: Mapping[str, Any], clip_norm: float | None) -> Recipe:
    rate, size = given.get("learning_rate"), given.get("step_size")
    if (rate is None) == (size is None):
        raise ValueError(f"config key study.recipes.{name}: needs one of learning_rate and step_size")
    start, clipped = given.get("start", RANDOM), given.get("clip_norm", clip_norm)
    return Recipe(name, rate, size, given.get("schedule", "constant"), start, clipped)
