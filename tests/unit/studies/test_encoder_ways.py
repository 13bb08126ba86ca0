"""The study on real training, on runs made up: what every way answers, how it is judged, and what partial runs give."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.figures.registry import figure
from stopwise.stopping.folds import stratified_folds
from stopwise.studies.encoder_cells import Labels, read_cells
from stopwise.studies.encoder_design import Design
from stopwise.studies.encoder_judge import calibration_error, ceiling, cell_rows, judged_rows, worth_rows
from stopwise.studies.encoder_rows import (
    ALL,
    LEFT_OUT,
    PARTS,
    Cell,
    Recipe,
    fold_steps,
    output_rows,
    own_test_rows,
    step_rows,
)
from stopwise.studies.encoder_tables import grouped_table, label_rows, report, way_table
from stopwise.studies.encoder_ways import Settings, answers, ways

DESIGN = Design(
    seeds=(0, 1),
    sizes=(16, 32),
    recipes={name: Recipe(name, 1e-4, None, "constant") for name in ("usual", "other")}
    | {"decay": Recipe("decay", 1e-4, None, "decay", start="probe")},
    primary=("usual",),
    usual="usual",
    others_size=16,
    steps=40,
    epochs=2,
    lengths=(1, 2, 5, 10),
    evaluations=5,
    fixed_epochs=(1, 3),
    folds_size=None,
    batch_size=8,
    set_aside=("later",),
    test_rows={},
)
SETTINGS = Settings(DESIGN, weight_decay=0.0, patience=2)
LABELS = {"train": np.arange(32) % 2, "validation": np.arange(8) % 2, "test": np.arange(60) % 2}


def test_the_first_stage_is_the_primary_recipes_at_small_sizes_with_the_first_seed():
    cells = DESIGN.first_cells(["movie", "later"])
    assert cells == [Cell(task, 0, 16, "usual") for task in ("movie", "later")]
    assert set(cells) < set(DESIGN.cells(["movie", "later"]))


def logits(labels, losses):
    """Outputs whose log-loss on every example is the given number, at each evaluation; [evaluations, n, 1]."""
    probable = np.exp(-np.asarray(losses, dtype=float))
    contrast = np.log(probable / (1 - probable)) / np.sqrt(2)
    return np.where(labels == 1, 1, -1)[None, :, None] * contrast[:, None, None]


def cell_tables(cell, test, left_out, parts=(ALL, *PARTS)):
    """The outputs of one cell: the same loss on every example of a split; ``left_out`` of each fold by its number."""
    steps = DESIGN.evaluation_steps(cell.n, cell.recipe)
    labels = LABELS["train"][: cell.n]
    rows = []
    if ALL in parts:
        for split, losses in (("train", test), ("validation", test), ("test", test)):
            own = LABELS[split][: cell.n] if split == "train" else LABELS[split]
            rows += output_rows(cell, ALL, 0, steps, split, logits(own, losses))
    for part in set(parts) - {ALL}:
        count, own = PARTS[part]
        folds = stratified_folds(labels, count, cell.seed)
        for fold in own:
            rows += output_rows(cell, part, fold, steps, LEFT_OUT, logits(labels[folds == fold], left_out(fold)))
        if part == "holdout":
            rows += output_rows(cell, part, 0, steps, "test", logits(LABELS["test"], np.asarray(test) + 0.1))
    return artifacts.table_of(rows, "study_outputs")


def label_table(*tasks):
    rows = [
        {"task": task, "seed": seed, "classes": 2, "split": split, "labels": labels.tolist()}
        for task in tasks
        for seed in (0, 1)
        for split, labels in LABELS.items()
    ]
    return artifacts.table_of(rows, "study_labels")


def valley(place, cell, depth=0.3):
    """A curve of losses with its least at one of the evaluations."""
    count = len(DESIGN.evaluation_steps(cell.n, cell.recipe))
    return 0.7 - depth + depth * np.abs(np.arange(count) - place) / count


def recorded(tables, *tasks, **others):
    return list(read_cells(tables, [label_table(*tasks)], **others))


def chosen(found, cell):
    return {way: own[cell].step for way, own in found.items() if cell in own}


def test_every_way_answers_as_its_own_curve_says():
    cell = Cell("a", 0, 32, "usual")
    steps = DESIGN.evaluation_steps(32, "usual")
    # Of eight folds, the first alone says what hold-out's fold does.
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2 if fold == 0 else 4, cell))
    found = chosen(answers(recorded([table], "a"), SETTINGS), cell)
    assert found["best"] == found["more_labels"] == steps[3]
    assert found["holdout"] == found["holdout_refit"] == steps[2]
    assert found["folds_8"] == steps[4]
    assert found["epochs_1"] == 4
    assert found["epochs_3"] == 12
    assert found["all_steps"] == steps[-1]
    assert "constant" not in found  # there is no other data set


@pytest.mark.parametrize(("losses", "place"), [((0.7, 0.3, 0.139, 0.1), 3), ((0.7, 0.1386, 0.3), 1), ((0.7,), -1)])
def test_the_shortest_length_that_fits_has_a_fifth_of_the_loss_of_guessing(losses, place):
    cell = Cell("a", 0, 32, "usual")
    steps = DESIGN.evaluation_steps(32, "usual")
    train = [*losses, *[losses[-1]] * (len(steps) - len(losses))]  # a fifth of log 2 is 0.13863
    found = chosen(answers(recorded([cell_tables(cell, train, lambda fold: train, (ALL,))], "a"), SETTINGS), cell)
    assert found["fitted"] == steps[place]
    judged = {
        row["way"]: row for row in judged_rows(recorded([cell_tables(cell, train, lambda fold: train)], "a"), SETTINGS)
    }
    assert judged["fitted"]["trainings"] == steps[place] / steps[-1]  # one training, under this constant rate


def test_under_a_decaying_rate_every_length_up_to_the_first_that_fits_is_trained():
    cell = Cell("a", 0, 16, "decay")
    steps = DESIGN.evaluation_steps(16, "decay")
    train = [0.7, 0.6, 0.1, *[0.05] * (len(steps) - 3)]
    judged = {
        row["way"]: row for row in judged_rows(recorded([cell_tables(cell, train, lambda fold: train)], "a"), SETTINGS)
    }
    assert judged["fitted"]["step"] == steps[2]
    assert judged["fitted"]["trainings"] == pytest.approx((steps[1] + steps[2]) / steps[-1])


def test_losses_and_regrets_are_those_of_what_is_delivered():
    cell = Cell("a", 0, 32, "usual")
    test = valley(3, cell)
    table = cell_tables(cell, test, lambda fold: valley(2, cell))
    judged = {row["way"]: row for row in judged_rows(recorded([table], "a"), SETTINGS)}
    # Outputs are kept in half precision, which moves a loss by less than 1e-3.
    assert judged["best"]["loss"] == pytest.approx(test[3], abs=1e-3)
    assert judged["best"]["regret"] == 0
    assert judged["best"]["hit"]
    assert judged["holdout_refit"]["loss"] == pytest.approx(test[2], abs=1e-3)
    assert judged["holdout"]["loss"] == pytest.approx(test[2] + 0.1, abs=1e-3)  # the model of three quarters
    assert judged["holdout"]["trainings"] == 0.75
    assert judged["more_labels"]["labels"] == 40
    assert judged["folds_8"]["labels"] == 32
    assert judged["best"]["accuracy"] == 1.0


def test_a_part_that_has_not_run_takes_away_its_own_ways_only():
    cell = Cell("a", 0, 32, "usual")
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell), parts=(ALL, "holdout"))
    found = chosen(answers(recorded([table], "a"), SETTINGS), cell)
    assert {"best", "more_labels", "holdout", "holdout_refit"} <= set(found)
    assert not {"folds_8", "bayes", "loo"} & set(found)
    alone = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell), parts=("holdout",))
    assert recorded([alone], "a") == []


def test_the_constant_of_a_data_set_is_learnt_on_the_others():
    cells = [Cell("a", 0, 32, "usual"), Cell("b", 0, 32, "usual"), Cell("c", 0, 32, "usual")]
    places = {"a": 1, "b": 4, "c": 4}
    tables = [cell_tables(cell, valley(places[cell.task], cell), lambda fold: [0.5] * 8, (ALL,)) for cell in cells]
    found = answers(recorded(tables, "a", "b", "c"), SETTINGS)["constant"]
    assert found[cells[0]].step == DESIGN.evaluation_steps(32, "usual")[4]


def test_answers_from_elsewhere_are_judged_as_any_way():
    cell = Cell("a", 0, 32, "usual")
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell))
    row = {**cell._asdict(), "way": "anchored", "step": float(DESIGN.evaluation_steps(32, "usual")[3])}
    judged = judged_rows(recorded([table], "a"), SETTINGS, [row])
    assert [own["regret"] for own in judged if own["way"] == "anchored"] == [0]


def kernel_records(cell, lengths, left_out=None):
    """A kernel whose labels follow one direction without noise, and what the steps of each length took."""
    rng = np.random.default_rng(0)
    y = np.where(LABELS["train"][: cell.n] == 1, 1.0, -1.0)
    features = np.column_stack([y * 2 + 0.1 * rng.normal(size=cell.n), rng.normal(size=(cell.n, 3))])
    zero = np.zeros((cell.n, 1))
    blocks = {"train": features @ features.T, "outputs": zero, "weights_move": zero}
    blocks |= {} if left_out is None else {LEFT_OUT: left_out}
    about = {"task": cell.task, "seed": cell.seed, "n": cell.n, "start": DESIGN.start(cell)}
    rows = [{**about, **row} for name, block in blocks.items() for row in artifacts.matrix_rows(block, block=name)]
    order = [rng.permutation(cell.n)[:8] for _ in range(max(lengths))]
    taken = []
    for length in lengths:
        taken += step_rows(cell, length, [(0.02, batch, np.zeros((8, 1))) for batch in order[:length]])
    return {
        "kernels": [artifacts.table_of(rows, "study_kernel")],
        "steps": [artifacts.table_of(taken, "study_steps")],
    }


def test_the_kernel_rules_read_the_recorded_batches_and_rates():
    cell = Cell("a", 0, 16, "usual")
    last = DESIGN.run_steps(16)
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell))
    found = chosen(answers(recorded([table], "a", **kernel_records(cell, [last])), SETTINGS), cell)
    # The labels follow one direction without noise: leaving examples out says that training longer is better.
    assert found["loo"] == last
    assert 0 < found["bayes"] <= last


def test_under_a_decaying_rate_the_kernel_rules_name_a_length_and_start_where_the_head_does():
    cell = Cell("a", 0, 16, "decay")
    lengths = DESIGN.evaluation_steps(16, "decay")[1:]
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell))

    def found(logits):
        own = recorded([table], "a", **kernel_records(cell, lengths, logits))
        return chosen(answers(own, SETTINGS), cell)

    zero = np.zeros((16, 32))
    assert found(zero)["loo"] == lengths[-1]
    # A head that is certain and right, also of the example that it has not seen, has nothing to learn.
    sure = np.where(np.eye(2)[LABELS["train"][:16]] == 1, 800.0, 0.0)
    assert found(np.tile(sure.ravel(), (16, 1)))["loo"] == 0


def test_a_search_over_lengths_costs_all_of_them_and_one_training_holds_all_its_evaluations():
    steps = DESIGN.evaluation_steps(32, "decay")
    assert steps == [0, 4, 8, 20, 40]
    own = ways(DESIGN)
    decay, constant = Cell("a", 0, 32, "decay"), Cell("a", 0, 32, "usual")
    assert own["folds_8"].trainings(DESIGN, decay) == pytest.approx(1 + 7 * 72 / 40)
    assert own["folds_8"].trainings(DESIGN, constant) == 8
    assert own["holdout_refit"].trainings(DESIGN, constant) == 1.75
    assert own["bayes"].trainings(DESIGN, decay) == own["epochs_3"].trainings(DESIGN, decay) == 1


def test_lengths_end_with_the_longest_run():
    longer = dataclasses.replace(DESIGN, steps=160, epochs=10, lengths=(1, 2, 3, 5, 10, 20, 40), sizes=(32, 64, 256))
    epochs = {n: [t * 8 / n for t in longer.evaluation_steps(n, "decay")] for n in longer.sizes}
    assert epochs == {
        32: [0, 1, 2, 3, 5, 10, 20, 40],
        64: [0, 1, 2, 3, 5, 10, 20],
        256: [0, 1, 2, 3, 5, 10],
    }


def test_folds_take_as_many_epochs():
    assert fold_steps([0, 1, 4, 40], 24, 32) == [0, 1, 3, 30]
    assert fold_steps([1], 1, 32) == [1]


def test_other_seeds_and_other_recipes_have_one_size_and_folds_the_first_seed():
    cells = DESIGN.cells(["a"])
    assert cells == [
        Cell("a", 0, 16, "usual"),
        Cell("a", 0, 32, "usual"),
        Cell("a", 1, 16, "usual"),
        Cell("a", 0, 16, "other"),
        Cell("a", 0, 16, "decay"),
    ]
    assert [DESIGN.folded(cell) for cell in cells] == [True, True, False, False, False]
    none = dataclasses.replace(DESIGN, folds_size=0)
    assert not any(none.folded(cell) for cell in none.cells(["a"]))
    sized = dataclasses.replace(DESIGN, folds_size=32)
    assert [sized.folded(cell) for cell in cells] == [False, True, False, False, False]


def test_a_judge_without_noise_has_the_ceiling_1_and_a_noisy_one_less():
    assert ceiling(np.tile(np.array([[0.5], [0.3], [0.6]]), 50), np.ones(50)) == 1.0
    rng = np.random.default_rng(0)
    assert ceiling(rng.exponential(size=(20, 30)), np.ones(30)) < 1.0


def test_test_rows_count_by_the_shares_of_their_classes_in_training():
    labels = Labels(2, {"train": np.array([0, 1] * 8), "test": np.array([0, 0, 0, 1])})
    assert labels.test_weights == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    even = Labels(2, {"train": np.array([0, 1] * 8), "test": np.array([0, 1])})
    assert even.test_weights.tolist() == [1, 1]


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    assert calibration_error(np.full(10, 0.8), np.array([1] * 8 + [0] * 2)) == pytest.approx(0)
    assert calibration_error(np.full(10, 0.9), np.zeros(10)) == pytest.approx(0.9)
    assert calibration_error(np.full(2, 0.5), np.array([1, 0]), np.array([1.5, 0.5])) == pytest.approx(0.25)


def test_the_facts_of_a_cell_say_what_there_was_to_choose():
    cell = Cell("a", 0, 32, "usual")
    table = cell_tables(cell, valley(3, cell), lambda fold: valley(2, cell))
    (row,) = cell_rows(recorded([table], "a"))
    assert row["constant_loss"] == pytest.approx(np.log(2))
    assert row["informative"]
    assert row["last_misses"]
    assert not row["censored"]
    assert row["best_step"] == DESIGN.evaluation_steps(32, "usual")[3]


def study(seeds=(0,), tasks=("a", "b", "c")):
    """The judged rows of a finished study on made-up data sets, more examples giving a lower loss."""
    tables, cells = [], [cell for cell in DESIGN.cells(tasks) if cell.seed in seeds]
    for cell in cells:
        depth = 0.2 + 0.1 * (cell.n == 32) + 0.02 * "abc".index(cell.task)
        tables.append(cell_tables(cell, valley(3, cell, depth), lambda fold, c=cell: valley(2, c)))
    found = recorded(tables, *tasks)
    return found, judged_rows(found, SETTINGS), cells


def test_tables_have_intervals_over_data_sets_and_none_over_one():
    _, judged, _ = study()
    primary = [row for row in judged if row["recipe"] == "usual"]
    table = {(row["way"], row["measure"]): row for row in way_table(primary, DESIGN)}
    assert table["best", "hits"]["value"] == 1
    assert table["folds_8", "regret"]["data_sets"] == 3
    assert np.isfinite(table["folds_8", "regret"]["low"])
    assert ("folds_8", "over_folds") not in table  # it is not compared with itself
    assert table["holdout_refit", "over_folds"]["value"] == pytest.approx(0, abs=1e-9)  # the same step here
    assert table["folds_8", "better"]["value"] == 0.5  # and a tie counts one half
    one = way_table([row for row in primary if row["task"] == "a"], DESIGN)
    assert all(np.isnan(row["low"]) for row in one)


def test_worth_in_labels_is_read_off_the_curve_of_holdout_with_refit():
    rows = [
        {"task": "a", "seed": 0, "recipe": "r", "n": n, "way": "holdout_refit", "loss": loss, "labels": n}
        for n, loss in ((32, 0.8), (64, 0.4), (128, 0.2))
    ]
    at = {"task": "a", "seed": 0, "recipe": "r", "n": 32, "way": "x", "labels": 32}
    worth = {row["way"]: row for row in worth_rows([*rows, {**at, "loss": 0.4}])}
    assert worth["x"]["factor"] == pytest.approx(2)
    assert worth["x"]["censored"] == ""
    better = next(row for row in worth_rows([*rows, {**at, "loss": 0.1}]) if row["way"] == "x")
    assert better["censored"] == "above"
    assert better["factor"] == pytest.approx(4)


def test_labels_spent_has_data_sets_with_every_size_only_and_f11_draws_them():
    _, judged, _ = study()
    partial = [row for row in judged if (row["task"], row["n"]) != ("c", 32)]
    rows = label_rows(partial, DESIGN)
    assert {row["data_sets"] for row in rows} == {2}
    assert {row["labels"] for row in rows if row["way"] == "more_labels"} == {24, 40}
    drawn = figure("F11")
    table = drawn.table([artifacts.table_of(rows, "study_labels_spent")])
    picture = drawn.draw(table)
    assert [ax.get_ylabel() for ax in picture.axes] == ["test log-loss", "test accuracy, %"]
    assert drawn.draw(drawn.table([])).axes  # a study without a finished data set has a figure that says so


def test_the_page_says_how_much_is_finished():
    found, judged, cells = study()
    expected = DESIGN.cells(["a", "b", "c"])
    text = report(judged, cell_rows(found), expected, DESIGN, grouped_table(judged, DESIGN))
    assert f"{len(cells)} of {len(expected)} runs are finished, of 3 data sets (a, b, c)." in text
    assert "| 8 folds of real training | 6 of 6 |" in text
    assert "| all steps | 6 of 9 |" in text
    assert "Recipes: others." in text


def test_evaluations_hold_the_fixed_epochs_and_both_ends():
    for n in DESIGN.sizes:
        steps = DESIGN.evaluation_steps(n, "usual")
        assert steps[0] == 0
        assert steps[-1] == DESIGN.run_steps(n)
        assert {DESIGN.epoch_step(n, k) for k in DESIGN.fixed_epochs} <= set(steps)
        assert steps == sorted(set(steps))


def test_a_decaying_rate_warms_up_over_a_tenth_and_ends_near_zero():
    rates = Recipe("r", 1e-4, None, "decay").rates(100)
    assert rates.argmax() in (9, 10)
    assert rates.max() == pytest.approx(1e-4)
    assert rates[-1] < 2e-6
    assert Recipe("k", None, 4.0, "constant").rates(3, 2.0).tolist() == [2.0] * 3
    with pytest.raises(ValueError, match=r"study\.recipes\.k: step_size needs"):
        Recipe("k", None, 4.0, "constant").rates(3)


def test_seeds_share_no_test_row():
    splits, positions = ["train", *["test"] * 6], [0, *range(6)]
    kept = [own_test_rows(splits, positions, place, 3) for place in (0, 1)]
    assert kept[0].tolist() == [True, True, True, True, False, False, False]
    assert not (kept[0] & kept[1])[1:].any()


def test_a_way_is_one_function_and_the_yardstick_comes_last():
    names = list(ways(DESIGN))
    assert names[:2] == ["epochs_1", "epochs_3"]
    assert names[-1] == "best"
    shorter = dataclasses.replace(DESIGN, fixed_epochs=())
    assert "epochs_1" not in ways(shorter)


def test_a_record_of_many_cells_reads_as_its_parts_do():
    cells = [Cell("a", 0, 16, "usual"), Cell("a", 1, 16, "usual")]
    tables = [cell_tables(cell, valley(3, cell), lambda fold, c=cell: valley(2, c)) for cell in cells]
    apart, together = recorded(tables, "a"), recorded([pa.concat_tables(tables)], "a")
    assert [one.cell for one in apart] == [one.cell for one in together] == cells
    assert all((x.test == y.test).all() for x, y in zip(apart, together, strict=True))
