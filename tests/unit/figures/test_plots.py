"""Figures: pure functions of their table, with equal bytes, readable from one task to many."""

import functools
import os
import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from matplotlib.text import Text

import made_up_tables as made_up
from stopwise import stats
from stopwise.artifacts import tables as artifacts
from stopwise.figures import registry, style, tables
from stopwise.report import interactive

SMALL = {"tasks": 1, "seeds": 1, "sizes": (16,)}
LARGE = {"tasks": 6, "seeds": 3, "sizes": (16, 64, 256)}
STARTS = {"tasks": 2, "seeds": 2, "starts": ("pretrained", "mixed", "random")}
SHAPES = {"small": SMALL, "large": LARGE, "starts": STARTS}
DRAWN = ("F1", "F2", "F3", "F4", "F6", "F7", "F8", "F9")

RULES = ("bayes", "holdout")


def make(name, **shape):
    return registry.figure(name).table(*made_up.upstream(name, **shape))


@functools.cache
def painted(name, shape):
    return registry.figure(name).draw(make(name, **SHAPES[shape]))


@functools.cache
def drawn(name, shape):
    figure = painted(name, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # constrained layout warns when the panels do not fit
        figure.draw_without_rendering()
    return figure


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.slow
def test_figure_has_no_empty_panel_and_no_small_text(name, shape):
    figure = drawn(name, shape)
    for ax in figure.axes:
        if ax.get_visible() and not (name == "F7" and shape == "small"):  # one task has no pair
            assert any(len(line.get_xdata()) for line in ax.lines)
    assert min(t.get_fontsize() for t in texts(figure)) >= style.SMALL_FONT_SIZE
    assert figure.get_size_inches()[0] in style.WIDTHS.values()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DRAWN)
def test_no_two_labels_overlap_and_none_leaves_the_figure(name, shape):
    figure, inside = drawn(name, shape), drawn(name, shape).bbox
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown(figure)]
    for text, box in boxes:
        # one pixel of tolerance: extents are rounded to pixels
        assert box.x0 >= inside.x0 - 1, text
        assert box.x1 <= inside.x1 + 1, text
        assert box.y0 >= inside.y0 - 1, text
        assert box.y1 <= inside.y1 + 1, text
    for i, (text, box) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            width = min(box.x1, b.x1) - max(box.x0, b.x0)
            height = min(box.y1, b.y1) - max(box.y0, b.y0)
            # the boxes of two lines of text may touch: ascenders and descenders take a quarter of the height
            assert width <= 1 or height <= 0.3 * min(box.height, b.height), (text, other)


def shown(figure):
    """Texts that are drawn: tick labels outside the limits of their axis exist but are not."""
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            drawn = {id(t) for t in ticks if low <= t.get_loc() <= high and t.label1.get_visible()}
            hidden |= {id(label) for t in ticks if id(t) not in drawn for label in (t.label1, t.label2)}
            hidden |= {id(t.label2) for t in ticks}
    return [t for t in texts(figure) if id(t) not in hidden]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.slow
def test_equal_tables_give_equal_bytes(name, tmp_path):
    table = make(name, **SMALL | {"tasks": 2 if name in ("F7", "F8") else 1})
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    first = style.save(registry.figure(name).draw(table), tmp_path / "a" / name)
    # Neither the order of the rows nor the caller's settings may reach the figure.
    with mpl.rc_context({"font.size": 20, "axes.grid": False}):
        second = style.save(registry.figure(name).draw(shuffled), tmp_path / "b" / name)
    assert [p.suffix for p in first] == [".svg", ".png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{name}.png", f"{name}.svg"]


@pytest.mark.parametrize("name", DRAWN)
def test_missing_and_mistyped_columns_are_named(name):
    table, module = make(name, **SMALL | {"tasks": 2}), registry.figure(name)
    required = next(f.name for f in module.COLUMNS if not f.nullable)
    with pytest.raises(ValueError, match=f"{name}.*{required!r} is missing"):
        module.draw(table.drop_columns([required]))
    number = next(f.name for f in module.COLUMNS if pa.types.is_float64(f.type))
    words = pa.array(["many"] * table.num_rows)
    with pytest.raises(ValueError, match=f"{name}.*{number!r} is string"):
        module.draw(table.set_column(table.schema.get_field_index(number), number, words))


@pytest.mark.parametrize("name", DRAWN)
def test_an_empty_table_says_so_in_the_figure(name):
    figure = registry.figure(name).draw(registry.figure(name).COLUMNS.empty_table())
    assert any(t.get_text().startswith("no ") for t in texts(figure))


def test_drawing_imports_neither_torch_nor_mlflow():
    code = (
        "import sys; from stopwise.figures import registry; "
        "[registry.figure(n) for n in registry.FIGURES if n not in ('F5', 'F10')]; "
    )
    code += "print({'torch', 'mlflow', 'transformers', 'matplotlib.pyplot'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_an_unknown_figure_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'F12' is not one of F1, F2"):
        registry.figure("F12")
    with pytest.raises(ValueError, match="'wide' is not one of one-column, two-column"):
        style.new_figure("wide")


def test_f1_joins_each_exponent_to_its_own_spectrum():
    spectra, decays = made_up.spectra(tasks=3, seeds=2)
    table = registry.figure("F1").table(spectra, decays)
    assert table.num_rows == sum(t.num_rows for _, t in spectra)
    for wildcards, decay in decays:
        rows = table.filter((pc.field("task") == wildcards["task"]) & (pc.field("seed") == int(wildcards["seed"])))
        assert set(rows["exponent"].to_pylist()) == set(decay["exponent"].to_pylist())


def test_f1_without_fits_and_with_zero_eigenvalues_still_draws():
    spectra, _ = made_up.spectra(**SMALL)
    wildcards, spectrum = spectra[0]
    spectrum = spectrum.drop_columns(["fitted"])
    figure = registry.figure("F1").draw(registry.figure("F1").table([(wildcards, spectrum)]))
    drawn = figure.axes[0].lines[0].get_ydata()
    assert len(drawn) == 15  # of 16: the last one is zero and has no logarithm
    assert "no fit" in figure.axes[0].get_legend().get_texts()[0].get_text()


def strips(figure):
    """The axes below the panels of F2, where the rules stop, and the marks on each."""
    found = [ax for ax in figure.axes[len(figure.axes) // 2 :] if ax.get_visible()]
    return [(ax, [line for line in ax.lines if line.get_marker() not in ("None", None, "")]) for ax in found]


def test_f2_keeps_every_measured_loss_and_gives_every_rule_a_row():
    runs, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16,))
    table = registry.figure("F2").table(runs, evaluations)
    test = table.filter((pc.field("kind") == "measured") & (pc.field("split") == "test"))
    assert test["loss"].to_pylist() == runs[0][1]["test_loss"].to_pylist()
    assert test["accuracy"].to_pylist() == runs[0][1]["test_accuracy"].to_pylist()
    ((ax, marks),) = strips(registry.figure("F2").draw(table))
    silent = [t for t in ax.texts if t.get_text() == "no answer"]
    assert len(marks) + len(silent) == len(made_up.RULES)
    assert [t.get_text() for t in ax.get_yticklabels()] == [style.rule_label(rule) for rule in made_up.RULES]


@pytest.mark.parametrize(
    ("objective", "loss"), [(None, "loss"), ("squared", "squared loss"), ("cross_entropy", "cross-entropy")]
)
def test_f2_names_the_loss_that_was_minimised(objective, loss):
    runs, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16,))
    known = [({**wildcards, "objective": objective}, run) for wildcards, run in runs]
    figure = registry.figure("F2").draw(registry.figure("F2").table(known, evaluations))
    assert figure.axes[0].get_ylabel() == loss


def test_f2_marks_of_one_step_do_not_cover_each_other():
    runs, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16,))
    wildcards, judged = evaluations[0]
    same = judged.set_column(judged.schema.get_field_index("t"), "t", pa.array([4] * judged.num_rows))
    figure = registry.figure("F2").draw(registry.figure("F2").table(runs, [(wildcards, same)]))
    figure.draw_without_rendering()
    ((_, marks),) = strips(figure)
    heights = sorted(float(line.get_transform().transform(line.get_xydata())[0][1]) for line in marks)
    assert len(heights) == len(made_up.RULES)
    assert min(np.diff(heights)) >= marks[0].get_markersize() / 72 * figure.dpi


def test_f2_shows_a_rule_beyond_the_run_as_an_open_mark_at_its_end():
    runs, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16,))
    wildcards, judged = evaluations[0]
    late = judged.slice(0, 1)
    late = late.set_column(late.schema.get_field_index("t"), "t", pa.array([10_000]))
    late = late.set_column(late.schema.get_field_index("loss"), "loss", pa.array([None], pa.float64()))
    figure = registry.figure("F2").draw(registry.figure("F2").table(runs, [(wildcards, late)]))
    ((_, (mark,)),) = strips(figure)
    assert mark.get_xdata()[0] == max(runs[0][1]["step"].to_pylist())
    assert mark.get_markerfacecolor() == "white"
    assert "open: stops after the run" in [t.get_text() for t in figure.legends[0].get_texts()]


@pytest.mark.parametrize("shape", [*SHAPES, {"tasks": 3, "seeds": 1}, {"tasks": 2, "seeds": 1}])
@pytest.mark.slow
def test_f2_has_at_most_six_panels_and_no_dashed_line_without_a_prediction(shape):
    named = isinstance(shape, str)
    table = make("F2", **SHAPES[shape] if named else shape)
    figure = painted("F2", shape) if named else registry.figure("F2").draw(table)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) <= 2 * 6  # each with its strip
    measured = table.filter(pc.field("kind") != "linearised")
    figure = registry.figure("F2").draw(measured)
    looks = {line.get_linestyle() for ax in figure.axes for line in ax.lines if len(line.get_xdata()) > 2}
    assert looks == {"-", "None"}  # curves, and the dots of the evaluations
    assert not [t for t in figure.legends[0].get_texts() if "predicted" in t.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_says_one_sentence_above_its_panels(name):
    table = make(name, **LARGE)
    said = registry.figure(name).says(table)
    assert said.endswith(".")
    assert said.count(". ") == 0
    title = drawn(name, "large").get_suptitle()
    assert " ".join(title.split()) == style.plain(said, 400)


@pytest.mark.parametrize("name", [name for name in DRAWN if hasattr(registry.figure(name), "views")])
@pytest.mark.slow
def test_every_number_of_a_drawn_line_is_a_number_of_the_page(name):
    """One description: the lines of the printed figure are among those of the page's panels."""
    table = make(name, tasks=2, seeds=2)
    kept = {
        tuple(np.asarray(line.y, dtype=float).round(9))
        for panel in registry.figure(name).views(table).panels.values()
        for line in panel.lines
    }
    figure = registry.figure(name).draw(table)
    axes = figure.axes[: len(figure.axes) // 2] if name == "F2" else figure.axes
    lines = [line for ax in axes if ax.get_visible() for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(lines) > 5
    for line in lines:
        assert tuple(np.asarray(line.get_ydata(), dtype=float).round(9)) in kept


def test_f2_has_a_dot_at_each_evaluation_of_each_seed():
    runs, evaluations = made_up.runs(tasks=1, seeds=2, sizes=(16,))
    module = registry.figure("F2")
    shown = module.views(module.table(runs, evaluations)).panels
    dots = [line for line in shown["movie", "16", "pretrained", "all", "loss"].lines if line.dash == "none"]
    (every,) = dots
    values = [value for _, run in runs for value in run["test_loss"].to_pylist() if value is not None]
    assert sorted(every.y) == pytest.approx(sorted(values))


def test_f3_names_the_better_way_first():
    rows = [("pretrained", "movie", seed, 16, rule, rule != "bayes" or seed == 0) for seed in (0, 1) for rule in RULES]
    judged = made_up.table(rows, "start task seed n rule hit")
    wildcards = ({"start": "pretrained", "task": "movie", "seed": 0}, judged)
    said = registry.figure("F3").says(registry.figure("F3").table([wildcards]))
    assert said.endswith("hold-out (with one) in 2 of 2 runs, bayes (the best without a validation set) in 1.")


def test_f3_counts_what_the_table_holds_and_leaves_the_oracle_out():
    _, evaluations = made_up.runs(tasks=3, seeds=2)
    table = registry.figure("F3").table(evaluations)
    figure = registry.figure("F3").draw(table)
    counts = [t.get_text() for t in figure.axes[0].texts]
    for rule, count in zip([r for r in made_up.RULES if r != "oracle"], counts, strict=True):
        hits = table.filter(pc.field("rule") == rule)["hit"].to_pylist()
        answered = [h for h in hits if h is not None]
        silent = f" (+{len(hits) - len(answered)})" if len(answered) < len(hits) else ""
        assert count == f"{sum(answered)}/{len(answered)}{silent}"


def test_f3_counts_a_run_without_a_row_of_a_rule_as_no_answer():
    table = registry.figure("F3").table(made_up.runs(tasks=3, seeds=2)[1])
    dropped = table.filter((pc.field("rule") != "sure") | (pc.field("n") != 16))
    figure = registry.figure("F3").draw(dropped)
    place = [r for r in made_up.RULES if r != "oracle"].index("sure")
    assert figure.axes[0].texts[place].get_text().endswith("/12 (+6)")


def test_f3_has_a_place_for_zero_times_and_leaves_undefined_ratios_out():
    _, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16, 32), rules=("sure", "oracle"))
    wildcards, judged = evaluations[0]
    ratio = pa.array([0.0, None, None, 1.0])
    judged = judged.set_column(judged.schema.get_field_index("ratio"), "ratio", ratio)
    figure = registry.figure("F3").draw(registry.figure("F3").table([(wildcards, judged)]))
    dots = figure.axes[2].lines[0].get_xdata()
    assert list(dots) == [0.0]
    low, high = figure.axes[2].get_xlim()
    assert low <= 0.0 <= high


@pytest.mark.parametrize("ratios", [(0.0, 1000.0), (0.15, 2.0), (-0.05, 30.0), (1.5, 40.0)])
def test_f3_fills_its_width_and_labels_it(ratios):
    _, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16, 32), rules=("sure", "oracle"))
    wildcards, judged = evaluations[0]
    ratio = pa.array([ratios[0], None, ratios[1], None])
    judged = judged.set_column(judged.schema.get_field_index("ratio"), "ratio", ratio)
    ax = registry.figure("F3").draw(registry.figure("F3").table([(wildcards, judged)])).axes[2]
    scale = ax.xaxis.get_transform()
    low, high = scale.transform(ax.get_xlim())
    first, last = scale.transform([min(1.0, ratios[0]), ratios[1]])  # the oracle's own time is always shown
    assert low < first < last < high
    assert last - first > 0.85 * (high - low)
    assert np.count_nonzero((low <= scale.transform(ax.get_xticks())) & (scale.transform(ax.get_xticks()) <= high)) >= 2


def test_f8_draws_the_test_split_and_marks_the_chosen_coefficient():
    table = registry.figure("F8").table(*made_up.arithmetic(2))
    validation = pc.equal(table["split"], "validation")
    spoiled = pc.if_else(validation, -1.0, table["accuracy"])
    table = table.set_column(table.schema.get_field_index("accuracy"), "accuracy", spoiled)
    figure = registry.figure("F8").draw(table)
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert len(visible) == 3  # one pair and two negations
    for ax in visible:
        assert min(np.min(line.get_ydata()) for line in ax.lines) >= 0
        assert any(list(line.get_xdata()) == [0.6, 0.6] for line in ax.lines)


def test_f7_keeps_whole_vectors_on_test_examples_of_one_method():
    rows = [
        {"seed": 0, "quantity": quantity, "split": split, "method": method, "task_a": "a", "task_b": "b"}
        for quantity, splits in {"cosine": (None,), "transfer": ("validation", "test"), "loss": ("test",)}.items()
        for split in splits
        for method in ("filter", "least_squares")
    ]
    values = [float(i) for i in range(len(rows))]
    check = pa.Table.from_pylist([row | {"predicted": v, "measured": v} for row, v in zip(rows, values, strict=True)])
    table = registry.figure("F7").table([({}, check)])
    assert table.select(["quantity", "predicted"]).to_pylist() == [
        {"quantity": "cosine", "predicted": 0.0},
        {"quantity": "transfer", "predicted": 4.0},
    ]
    only_fitted = check.filter(pc.field("method") == "least_squares")
    assert registry.figure("F7").table([({}, only_fitted)])["predicted"].to_pylist() == [1.0, 5.0]


def test_f8_joins_predictions_and_joint_training_by_seed_and_point():
    ((_kind, added),), _ = made_up.arithmetic(2)
    added = added.drop_columns(["predicted_accuracy", "accuracy_joint"])
    added = added.append_column("kind", pa.array(["addition"] * added.num_rows))
    points = added.select(list(registry.figure("F8").POINT)).to_pylist()
    predicted = [row | {"method": "filter", "accuracy": 0.5 + row["coefficient"] / 10} for row in points]
    predicted += [row | {"method": "least_squares", "accuracy": 0.0} for row in points]
    joint = [
        {"step": step, "task": task, "split": split, "loss": abs(step - 2.0), "accuracy": step / 10}
        for step in (0, 2, 4)
        for task in ("movie", "amazon", None)  # null: all tasks together
        for split in ("train", "validation", "test")
    ]
    seeds = [({"seed": 0}, added), ({"seed": 1}, added)]
    table = (
        registry.figure("F8")
        .table(
            seeds, (), [({"seed": 0}, pa.Table.from_pylist(predicted))], [({"seed": 1}, pa.Table.from_pylist(joint))]
        )
        .to_pylist()
    )
    for row in table[: added.num_rows]:
        assert row["predicted_accuracy"] == pytest.approx(0.5 + row["coefficient"] / 10)
        assert row["accuracy_joint"] is None
    for row in table[added.num_rows :]:
        assert row["predicted_accuracy"] is None
        assert row["accuracy_joint"] == (0.2 if row["task"] in ("movie", "amazon") else None)


def test_names_are_shown_letter_by_letter():
    name = r"_prices in $ and \alpha$ <b>"
    spectra, decays = made_up.spectra(**SMALL)
    renamed = [[({**w, "task": name}, t) for w, t in pairs] for pairs in (spectra, decays)]
    figure = registry.figure("F1").draw(registry.figure("F1").table(*renamed))
    figure.draw_without_rendering()
    label = figure.axes[0].get_legend().get_texts()[0].get_text()
    assert label.replace("\\$", "$").lstrip("\u200a").startswith(name)
    assert len(style.plain("long " * 50)) <= 28


def test_looks_depend_on_the_set_of_names_and_do_not_repeat():
    names = ["movie", "zeta", "alpha", "beta", "gamma", "delta"]
    chosen = style.looks(names)
    assert chosen == style.looks(reversed(names))
    assert chosen["movie"] == style.TASKS["movie"]
    assert len({look.color for look in chosen.values()}) == len(names)
    many = style.looks([f"task {i}" for i in range(40)])
    assert len({(look.color, look.marker) for look in many.values()}) == 40


def test_all_colours_of_rules_and_tasks_differ():
    for known in (style.RULES, style.TASKS, style.SPLITS, style.STARTS):
        assert len({(look.color, look.marker) for look in known.values()}) == len(known)
        assert {look.color for look in known.values()} <= set(style.COLORS.values())


def test_a_failed_save_leaves_no_file(tmp_path, monkeypatch):
    figure, _ = style.new_figure()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        style.save(figure, tmp_path / "F1")
    assert list(tmp_path.iterdir()) == []


def test_wilson_interval_equals_the_root_of_its_definition():
    for hits, trials in ((0, 5), (3, 7), (40, 90), (6, 6)):
        for p in stats.wilson(hits, trials):
            # the ends solve (p - hits/trials)^2 = z^2 p (1 - p) / trials, z = 1.959964; 0 and 1 solve it at the corners
            assert (p - hits / trials) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / trials, abs=1e-6)
    assert np.isnan(stats.wilson(0, 0)).all()


def test_mean_interval_covers_a_normal_mean_at_its_level():
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, low, high in (stats.mean_interval(rng.normal(size=3)) for _ in range(2000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)  # four standard errors of 2000 trials
    assert np.isnan(stats.mean_interval([2.0, np.nan])[1:]).all()


def test_spread_keeps_the_ends():
    assert tables.spread([16, 32, 64, 128, 256], 3) == [16, 64, 256]
    assert tables.spread([16, 32], 3) == [16, 32]
    assert tables.ordered(["b", None, "test", "a"], style.SPLITS) == ["test", "a", "b"]


def test_slope_recovers_a_power_law_and_covers_it():
    n = np.array([16, 32, 64, 128] * 3)
    assert stats.slope(n, 3.0 * n**-0.7) == pytest.approx((-0.7, -0.7, -0.7), abs=1e-12)
    rng = np.random.default_rng(1)
    runs = [stats.slope(n, n**-0.7 * np.exp(0.3 * rng.normal(size=n.size))) for _ in range(1000)]
    assert np.mean([low <= -0.7 <= high for _, low, high in runs]) == pytest.approx(
        0.95, abs=0.03
    )  # four standard errors
    assert np.isnan(stats.slope([16, 16], [1.0, 2.0])).all()
    assert stats.slope([16, 32, 64], [1.0, 0.5, -0.1])[0] == pytest.approx(-1.0)  # negative: no logarithm


def test_rank_correlation_sees_order_only():
    x = np.array([0.1, 0.4, 0.2, 0.9])
    assert stats.rank_correlation(x, np.exp(5 * x)) == pytest.approx(1.0)
    assert stats.rank_correlation(x, -x) == pytest.approx(-1.0)
    assert np.isnan(stats.rank_correlation(x, np.ones(4)))


def test_f4_takes_the_noise_off_and_predicts_the_slope_of_the_largest_n():
    args = made_up.upstream("F4", tasks=2, seeds=1)
    rows = registry.figure("F4").table(*args).to_pandas()
    assert set(rows["rule"]) == {"holdout"}
    assert rows["excess"].to_numpy() == pytest.approx(rows["loss"].to_numpy() - 0.45**2)
    movie = rows[rows["task"] == "movie"]
    assert set(np.round(movie["predicted_slope"], 6)) == {round(-1.4 / 2.4, 6)}  # -e / (e + 1), e = 2 beta = 1.4
    assert (rows["predicted_low"] < rows["predicted_slope"]).all()


def test_f4_takes_a_noise_at_its_boundary_for_none():
    evaluations, decays, stoppings = made_up.upstream("F4", tasks=2, seeds=1)

    def silenced(names, value):
        out = []
        for wildcards, table in stoppings:
            sigma = table["sigma"].to_pandas().where(~table["rule"].to_pandas().isin(names), value)
            column = pa.array(sigma, pa.float64())
            out.append((wildcards, table.set_column(table.column_names.index("sigma"), "sigma", column)))
        return registry.figure("F4").table(evaluations, decays, out).to_pandas()

    rules = stoppings[0][1]["rule"].to_pandas().unique()
    assert len(rules) > 2
    assert silenced(rules, 0.0)["excess"].isna().all()
    one = silenced(rules[1:], 0.0)  # the others at the boundary, one with an estimate
    assert one["excess"].to_numpy() == pytest.approx(one["loss"].to_numpy() - 0.45**2)


def test_f4_without_noise_or_law_still_shows_the_loss():
    evaluations, _, _ = made_up.upstream("F4", tasks=1, seeds=1)
    figure = registry.figure("F4").draw(registry.figure("F4").table(evaluations))
    assert "no noise estimate" in [t.get_text() for t in figure.axes[1].texts]
    assert len(figure.axes[0].lines) == 2


def test_f6_keeps_measured_and_predicted_apart():
    trajectories, directions, drifts = made_up.upstream("F6", **SMALL)
    rows = registry.figure("F6").table(trajectories, directions, drifts).to_pandas()
    loss = rows[rows["quantity"] == "loss"]
    run = trajectories[0][1].to_pandas()
    assert loss["measured"].to_numpy() == pytest.approx(run["train_loss"].to_numpy())
    assert loss["predicted"].to_numpy() == pytest.approx(run["linearised_train_loss"].to_numpy())
    assert rows.loc[rows["quantity"] == "drift", "predicted"].isna().all()
    alone = registry.figure("F6").draw(registry.figure("F6").table(trajectories))
    assert [ax.get_title(loc="left").split()[0] for ax in alone.axes] == ["training", "distance"]


def test_f6_draws_the_guarantee_and_names_a_smaller_n():
    trajectories, directions, drifts = made_up.upstream("F6", **SMALL)
    guarantees = [
        (w, one.select(["n", "step"]).append_column("guarantee", one["train_loss"])) for w, one in trajectories
    ]
    fewer = [(w, one.set_column(one.column_names.index("n"), "n", pa.array([8] * len(one)))) for w, one in drifts]
    plain = registry.figure("F6").draw(registry.figure("F6").table(trajectories, directions, fewer))
    bound = registry.figure("F6").draw(registry.figure("F6").table(trajectories, directions, fewer, guarantees))
    panel = [ax.get_title(loc="left") for ax in plain.axes].index("training loss")
    assert len(bound.axes[panel].lines) == len(plain.axes[panel].lines) + 1
    assert "guarantee" in [text.get_text() for text in bound.legends[0].get_texts()]
    drift = [ax.get_title(loc="left").split()[0] for ax in plain.axes].index("drift")
    assert [text.get_text() for text in plain.axes[drift].texts] == ["n = 8"]
    assert not plain.axes[panel].texts


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", (3, "q_proj")),
        ("model.layers.12.self_attn.q_proj.weight", (12, "q_proj")),
        ("transformer.h.0.attn.attention.out_proj", (0, "out_proj")),
        ("model.layers.29", (29, "block")),
        ("lm_head.weight", (None, "lm_head")),
        ("model.embed_tokens", (None, "embed_tokens")),
    ],
)
def test_f9_reads_block_and_module_from_a_name(layer, expected):
    assert registry.figure("F9").place(layer) == expected


def test_f9_names_the_tasks_of_every_start():
    shares = made_up.layer_shares(tasks=2, seeds=1)
    one = [({**wildcards, "start": "random"}, table) for wildcards, table in shares if wildcards["task"] == "movie"]
    figure = registry.figure("F9").draw(registry.figure("F9").table([*shares, *one]))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [wildcards["task"] for wildcards, _ in shares]


def test_f2_has_a_row_of_all_starts_for_a_task_that_has_several_and_no_empty_panel():
    runs, evaluations = made_up.upstream("F2", tasks=3, seeds=1)
    more = [({**w, "start": start}, t) for start in ("mixed", "random") for w, t in runs if w["task"] == "movie"]
    figure = registry.figure("F2").draw(registry.figure("F2").table([*runs, *more], evaluations))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == [
        *(f"movie, {start}, n = 64" for start in ("pretrained", "mixed", "random")),
        *(f"{task}, pretrained, n = 64" for task in ("amazon", "spam")),
    ]
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_title(loc="left")]
    assert all(ax.lines for ax in panels)


def test_f6_cuts_no_line_off():
    trajectories, directions, drifts = made_up.upstream("F6", **SMALL)
    far = [
        (w, t.set_column(t.column_names.index("measured"), "measured", pc.multiply(t["measured"], 37.0)))
        for w, t in directions
    ]
    figure = registry.figure("F6").draw(registry.figure("F6").table(trajectories, far, drifts))
    figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = sorted(ax.get_ylim())
        for line in ax.lines:
            values = np.asarray(line.get_ydata(), dtype=float)
            assert low <= values.min()
            assert values.max() <= high


def test_f1_averages_no_laws_of_two_kinds():
    f1 = registry.figure("F1")
    spectra, decays = made_up.upstream("F1", tasks=1, seeds=3)
    kinds = {0: "finite_rank", 1: "power", 2: "power"}
    changed = []
    for wildcards, table in decays:
        kind = pa.array([kinds[int(wildcards["seed"])]] * len(table), pa.string())
        changed.append((wildcards, table.set_column(table.column_names.index("kind"), "kind", kind)))
    rows = f1.largest(f1.table(spectra, changed).to_pandas())
    assert set(f1.usual_law(rows)["seed"]) == {1, 2}
    assert f1.law(rows).startswith("power ")
    assert f1.law(rows).endswith("(2 of 3 seeds)")
    assert f1.law(rows[rows["seed"] == 0]) == "finite rank"


def test_f9_draws_a_line_a_module_and_marks_what_is_outside_the_blocks():
    shares = made_up.layer_shares(tasks=1, seeds=2, modules=("q_proj", "k_proj"))
    wildcards, one = shares[0]
    head = one.slice(0, 1).set_column(one.schema.get_field_index("layer"), "layer", pa.array(["lm_head"]))
    head = head.set_column(head.schema.get_field_index("n"), "n", pa.array([64]))
    figure = registry.figure("F9").draw(registry.figure("F9").table([*shares, (wildcards, head)]))
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["k_proj", "q_proj", "outside the blocks"]


@pytest.mark.parametrize("name", [kind for kind in artifacts.kinds() if kind in registry.FIGURES])
def test_the_declared_artifact_has_the_columns_that_the_figure_draws(name):
    assert artifacts.schema(name).equals(registry.figure(name).COLUMNS)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.slow
def test_broken_numbers_do_not_stop_a_figure(name):
    table = make(name, tasks=2, seeds=2, sizes=(16, 32))
    bad = [float("nan"), float("inf"), 0.0, -1.0, None]
    for field in registry.figure(name).COLUMNS:
        if pa.types.is_float64(field.type):
            values = table[field.name].to_pylist()
            found = [v for v in bad if v is not None or field.nullable]
            # spread over the table, so that they meet every kind of row
            for i, value in enumerate(found * (1 if len(values) < 20 else 3)):
                values[(i * 7919 + 3) % len(values)] = value
            place = table.schema.get_field_index(field.name)
            table = table.set_column(place, field, pa.array(values, pa.float64()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.figure(name).draw(table).draw_without_rendering()
    if name in interactive.INTERACTIVE:
        interactive.sections({name: table})


@pytest.mark.parametrize("name", DRAWN)
def test_columns_without_any_number_do_not_stop_a_figure(name):
    table = make(name, tasks=2, seeds=2, sizes=(16, 32))
    for field in registry.figure(name).COLUMNS:
        if field.nullable:
            empty = pa.nulls(table.num_rows, field.type)
            table = table.set_column(table.schema.get_field_index(field.name), field, empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.figure(name).draw(table).draw_without_rendering()
    if name in interactive.INTERACTIVE:
        interactive.sections({name: table})
