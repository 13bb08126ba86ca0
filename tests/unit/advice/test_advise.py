"""Advice end to end on a pico model, and what it says when the numbers are made up: do not train, no answer, unsure."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from stopwise.advice import figure
from stopwise.advice import rule as advise_rule
from stopwise.advice.data import make_task, read_file
from stopwise.advice.findings import Advice, AdviceError, Settings, advise, findings, steps_to
from stopwise.advice.folder import check_folder, write_advice
from stopwise.advice.held_out import Problem
from stopwise.advice.rule import Decision
from stopwise.advice.text import document, follow_up, headline, number, points, several
from stopwise.advice.verdict import verdict_of
from stopwise.artifacts import tables as artifacts
from stopwise.linearized.filters import GradientDescent, HeavyBall
from stopwise.linearized.replay import batch_lambda_max
from stopwise.network.pico import pico_tokenizer
from stopwise.pipeline.config import validated

MOODS = Path(__file__).parents[2] / "data" / "moods.csv"


NOUNS, JOINTS = (
    ("rose", "fire", "ruby", "sea", "sky", "ocean", "ink", "tea"),
    ("a", "of", "and", "is", "in", "to", "it"),
)


def settings(data=MOODS, **changes):
    given = {"model": "pico-llama", "data": str(data), "text": ("text",), "label": "label", "max_examples": 40}
    return Settings(**given | changes)


@pytest.fixture(scope="module")
def pico():
    """Advice for 40 of the made-up sentences on a pico model."""
    return advise(settings(), device="cpu")


def made_up(problem, tmp_path, **changes):
    """Return advice on a made-up kernel, dressed as that of a file of as many rows with labels good and bad."""
    path = tmp_path / "made_up.csv"
    words = [f"{a} {b}" for a in NOUNS for b in JOINTS]
    names = np.array(["bad", "good"])[problem.labels]
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("text", "label"), *zip(words[: len(names)], names, strict=True)])
    chosen = settings(path, **changes)
    file = read_file(path, chosen.text, chosen.label)
    task = make_task(file, pico_tokenizer(), max_examples=len(names))
    return Advice(chosen, file, task, task.sample(pico_tokenizer()), findings(problem, chosen), {"config": {}})


def linear_problem(signal, noise, prior=0.0, shift=0.0, n=48, width=30, seed=0):
    """Return a problem whose labels follow a few features: ``prior`` is how much of the answer f0 already has."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * np.arange(1, width + 1) ** -0.7
    truth = x[:, :3].sum(axis=1)
    score = signal * truth + noise * rng.normal(size=n)
    labels = (score > np.median(score)).astype(int)
    f0 = prior * (2 * labels - 1) + shift + 0.1 * rng.normal(size=n)
    return Problem(x @ x.T, f0[:, None], labels, 2)


# --- a pico model, from the file to the folder


@pytest.mark.slow
def test_a_csv_becomes_a_folder_with_text_figure_and_sealed_tables(pico, tmp_path):
    folder = write_advice(pico, verdict_of(pico), tmp_path / "advice")
    tables = {"advice": "advice", "rules": "advice_rules", "recipes": "advice_recipes", "summary": "advice_summary"}
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["advice.md", "advice.png", "advice.svg", *(f"{name}.parquet" for name in tables)]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["advice"]  # no temporary leftovers
    for name, kind in tables.items():
        artifacts.read_table(folder / f"{name}.parquet", kind)
    record = artifacts.read_provenance(folder / "summary.parquet")
    assert record["config"]["label"] == "label"
    assert len(record["model"]) == len(record["data"]) == 64
    text = (folder / "advice.md").read_text(encoding="utf-8")
    assert text.startswith("# When to stop fine-tuning: advice for moods.csv")
    assert not re.search(r"\bnan\b|None", text.split("## Try it", maxsplit=1)[0])


@pytest.mark.slow
def test_equal_settings_give_equal_advice(pico, tmp_path):
    again = advise(settings(), device="cpu")
    one, two = (
        write_advice(pico, verdict_of(pico), tmp_path / "a"),
        write_advice(again, verdict_of(again), tmp_path / "b"),
    )
    for path in sorted(one.iterdir()):
        if path.suffix == ".parquet":
            assert artifacts.equal(path, two / path.name), path.name
        else:
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_learnable_sentences_are_learnt(pico):
    found = pico.findings
    # The labels follow the words (85 % of them): the kernel of even a random model tells them apart beyond the prompt.
    assert found.crossed.chosen_correct.mean() > 0.6
    assert found.zero_shot.mean() < 0.6


def test_the_figure_is_drawn_from_its_table_alone(pico, tmp_path):
    folder = write_advice(pico, verdict_of(pico), tmp_path / "advice")
    drawn = figure.draw(artifacts.read_table(folder / "advice.parquet", "advice"))
    training, data = drawn.axes
    assert training.get_xlabel() == "training steps"
    assert [label.get_text() for label in data.get_xticklabels()] == ["10", "20", "36"]
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert sum("(followed)" in text for text in legend) == 1
    assert "the prompt alone" in legend


def test_the_follow_up_configuration_is_valid_and_trains_the_same_task(pico):
    config = validated(yaml.safe_load(yaml.safe_dump(follow_up(pico))))
    task = config["tasks"]["mine"]
    assert Path(task["source"]["csv"]).is_absolute()
    assert (task["template"], task["verbalizers"]) == (
        "Text: {text}\nLabel:",
        {"negative": " negative", "positive": " positive"},
    )
    assert config["sizes"] == [40]
    assert config["finetune"]["steps"] >= pico.findings.decision.t


def test_several_classes_have_advice_too(tmp_path):
    found = advise(settings(MOODS.with_name("feelings.csv"), max_examples=24), device="cpu")
    assert found.findings.problem.outputs.shape == (24, 2)
    text = document(found, verdict_of(found))
    assert "orthonormal contrasts" in text
    assert "happy = ` happy`" in text
    write_advice(found, verdict_of(found), tmp_path / "three")


@pytest.mark.slow
def test_adamw_has_a_step_and_a_time_of_its_own(pico, tmp_path):
    found = advise(settings(optimizer="adamw", batch_size=8), device="cpu")
    recipe, problem = found.findings.recipes[0], found.findings.problem
    assert len(found.findings.recipes) == 1
    assert recipe.steps == found.findings.decision.t
    assert (recipe.batch_size, recipe.epochs) == (8, recipe.steps * 8 / 40)
    assert recipe.learning_rate == pytest.approx(1 / batch_lambda_max(problem.matrix, 1, 8))
    assert not np.allclose(problem.matrix, pico.findings.problem.matrix)
    text = document(found, verdict_of(found))
    assert "AdamW (betas 0.9 and 0.999)" in text
    assert "full-batch" not in text
    write_advice(found, verdict_of(found), tmp_path / "adamw")
    completed = validated(follow_up(found))
    assert (completed["kernel"]["formula"], completed["finetune"]["batch_size"]) == ("adam", 8)
    assert completed["stopping"]["target_scale"] == problem.scale


def test_the_batches_of_adamw_are_at_most_half_of_the_examples():
    assert settings(optimizer="adamw", batch_size=64).adam_batch(40) == 20


# --- the folder


def test_a_folder_of_somebody_else_is_never_replaced(pico, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(AdviceError, match="exists and is not advice"):
            check_folder(precious, settings(), force)


def test_other_advice_is_replaced_only_when_forced(pico, tmp_path):
    folder = write_advice(pico, verdict_of(pico), tmp_path / "advice")
    check_folder(tmp_path / "new", settings())
    check_folder(folder, settings())  # the same question again
    with pytest.raises(AdviceError, match=r"other settings .*--force"):
        check_folder(folder, settings(seed=1))
    check_folder(folder, settings(seed=1), force=True)


def test_a_failing_figure_leaves_the_old_advice_whole(pico, tmp_path, monkeypatch):
    folder = write_advice(pico, verdict_of(pico), tmp_path / "advice")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(table):
        raise RuntimeError("no ink")

    monkeypatch.setattr(figure, "draw", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        write_advice(pico, verdict_of(pico), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["advice"]


# --- the rule, and what is said about it


def test_a_noisy_task_worth_training_is_told_to_train(tmp_path):
    advice = made_up(linear_problem(signal=1.0, noise=0.3), tmp_path)
    verdict = verdict_of(advice)
    assert verdict.kind == "train"
    assert verdict.gain[1] > 0
    first = headline(advice, verdict)[0]
    recipe = advice.findings.recipes[0]
    assert first.startswith(f"Train for about {several(recipe.steps, 'full-batch step')} on the 48 examples")
    assert number(recipe.learning_rate) in first
    assert advice.findings.recipes[0].steps == advice.findings.decision.t


@pytest.mark.slow
def test_a_prompt_that_knows_the_answer_is_not_trained(tmp_path):
    problem = linear_problem(signal=0.0, noise=1.0, prior=0.7)
    advice = made_up(problem, tmp_path)
    verdict = verdict_of(advice)
    assert verdict.kind == "do_not_train"
    assert headline(advice, verdict)[0].startswith("Do not train: the prompt alone does as well.")
    assert "Use the model as it is" in document(advice, verdict)
    drawn = figure.draw(
        artifacts.read_table(write_advice(advice, verdict, tmp_path / "a") / "advice.parquet", "advice")
    )
    assert drawn.axes[0].get_title() == "No training advised"
    assert not any("(followed)" in text.get_text() for text in drawn.legends[0].get_texts())


def test_a_better_accuracy_at_another_time_is_told(pico):
    found = pico.findings
    early = replace(found.decision.stop, t=0, eta=0.0)  # as if the rule had stopped at once
    doubts = verdict_of(replace(pico, findings=replace(found, decision=Decision(early)))).doubts
    text = next(doubt.text for doubt in doubts if doubt.code == "better_accuracy")
    peak = found.crossed.correct.mean(axis=1).argmax()
    assert f"at {peak} steps" in text


def test_a_prompt_that_is_only_biased_is_given_an_offset_instead(tmp_path):
    problem = linear_problem(signal=0.0, noise=1.0, prior=0.7, shift=2.0)
    advice = made_up(problem, tmp_path)
    verdict = verdict_of(advice)
    assert (verdict.kind, verdict.baseline) == ("do_not_train", "with_offset")
    assert "the prompt with a fixed offset added to its answers does as well" in headline(advice, verdict)[0]
    # f = (l1 - l0)/sqrt(2) stands 2 too high: the words move by 2 sqrt(2) against each other.
    low, high = advice.findings.offsets
    assert high - low == pytest.approx(-2 * np.sqrt(2), abs=0.15)
    assert f"{high:+.2f} to ` good`" in document(advice, verdict)


def test_a_rule_without_an_answer_is_replaced_in_words(tmp_path):
    # Every direction is learned at the same speed: noise and signal cannot be told apart.
    problem = Problem(np.eye(40), np.zeros((40, 1)), np.arange(40) % 2, 2)
    advice = made_up(problem, tmp_path)
    decision = advice.findings.decision
    assert [stop.rule for stop in decision.passed_over][:1] == ["bayes"]
    assert decision.stop.rule in advise_rule.FALLBACKS
    doubt = next(d for d in verdict_of(advice).doubts if d.code == "fallback")
    assert re.match(r"`bayes` gave no time because .*`(gcv|loo)` was used instead\.$", doubt.text)
    assert doubt.text in document(advice, verdict_of(advice))


def test_no_answer_at_all_is_said_and_nothing_is_recommended(tmp_path, monkeypatch):
    monkeypatch.setattr(advise_rule, "FALLBACKS", ())
    problem = Problem(np.eye(40), np.zeros((40, 1)), np.arange(40) % 2, 2)
    advice = made_up(problem, tmp_path)
    verdict = verdict_of(advice)
    assert verdict.kind == "no_answer"
    assert headline(advice, verdict)[0].startswith("No rule can say when to stop")
    text = document(advice, verdict)
    assert "learning rate at most" in text
    assert "## Try it" not in text
    write_advice(advice, verdict, tmp_path / "advice")


def test_the_rule_is_chosen_in_one_place(tmp_path, monkeypatch):
    problem = linear_problem(signal=1.0, noise=0.3)
    assert findings(problem, settings()).decision.stop.rule == "bayes"
    monkeypatch.setattr(advise_rule, "DEFAULT_RULE", "gcv")
    assert findings(problem, settings()).decision.stop.rule == "gcv"


def test_a_time_beyond_the_range_is_not_passed_off_as_an_optimum(tmp_path):
    advice = made_up(linear_problem(signal=1.0, noise=0.0, width=8), tmp_path, steps=2, optimizer="gradient_descent")
    assert "beyond" in [doubt.code for doubt in verdict_of(advice).doubts]
    assert "still falling at 2 steps" in document(advice, verdict_of(advice))


def test_few_examples_and_an_uneven_file_are_reservations(tmp_path):
    problem = linear_problem(signal=1.0, noise=0.3, n=14)
    verdict = verdict_of(made_up(problem, tmp_path))
    assert {"few_examples", "rare_class"} <= {doubt.code for doubt in verdict.doubts}
    assert verdict.confidence == "low"


# --- recipes and words


def test_every_recipe_reaches_the_advised_training_time():
    problem = linear_problem(signal=1.0, noise=0.3)
    chosen = settings(batch_size=8)
    found = findings(problem, chosen)
    assert [(r.momentum, r.batch_size) for r in found.recipes] == [(0.9, 48), (0.0, 48), (0.9, 8), (0.0, 8)]
    for recipe in found.recipes:
        filter = HeavyBall(recipe.learning_rate, 0.9) if recipe.momentum else GradientDescent(recipe.learning_rate)
        step = float(filter.eta(recipe.steps) - filter.eta(recipe.steps - 1))
        later = float(filter.eta(recipe.steps + 1) - filter.eta(recipe.steps))
        assert abs(float(filter.eta(recipe.steps)) - found.decision.stop.eta) <= max(step, later) / 2 + 1e-12
        assert recipe.epochs == recipe.steps * recipe.batch_size / 48
    # A batch of a few examples has a larger top eigenvalue than all of them, so its steps must be shorter.
    assert found.recipes[2].learning_rate < found.recipes[0].learning_rate


def test_the_nearest_number_of_steps_is_found_far_away_too():
    assert steps_to(GradientDescent(0.1), 100.0) == 1000
    assert steps_to(GradientDescent(0.1), 0.01) == 1


def test_settings_out_of_range_name_their_option():
    for change, message in [
        ({"optimizer": "adam"}, "--optimizer: 'adam' is not one of heavy_ball, nesterov, gradient_descent, adamw"),
        ({"optimizer": "adamw", "parameters": "lora"}, "--optimizer: 'adamw' has no kernel for adapters"),
        ({"max_examples": 4}, "--max-examples: found 4, must be 8 or more"),
        ({"momentum": 1.0}, "--momentum: found 1.0"),
        ({"steps": 0}, "--steps: found 0"),
        ({"step_size": 1.5}, "--step-size: found 1.5"),
    ]:
        with pytest.raises(AdviceError, match=re.escape(message)):
            settings(**change)


def test_numbers_read_as_a_person_writes_them():
    assert (points(0.034), points(-0.034), points(0.0)) == ("+3", "−3", "+0")
    assert (several(1, "step"), several(12, "step"), several(0.75, "epoch")) == ("one step", "12 steps", "0.8 epochs")
    assert (number(0.00312345), number(1.5e-7)) == ("0.00312", "1.50e-07")


# --- the scale of the targets


@pytest.mark.slow
def test_an_informative_start_larger_than_the_targets_is_not_shrunk():
    """The start has the answer, too large; with targets of scale 1 training would take its size for an error."""
    problem = linear_problem(signal=1.0, noise=0.3, n=64, seed=3)
    rng = np.random.default_rng(3)
    problem = replace(problem, outputs=(2.0 * (2 * problem.labels - 1) + 2.5 * rng.normal(size=64))[:, None])
    fitted, usual = findings(problem, settings()), findings(problem, settings(target_scale=1.0))
    assert usual.problem.scale == 1.0
    assert fitted.problem.scale > 1.5
    accuracy = [found.crossed.chosen_correct.mean() for found in (usual, fitted)]
    assert accuracy[1] > accuracy[0]


@pytest.mark.slow
def test_the_answer_says_how_large_the_targets_are_and_why(tmp_path):
    problem = linear_problem(signal=3.0, noise=0.1)
    asked = made_up(problem, tmp_path, target_scale=3.0)
    text = document(asked, verdict_of(asked))
    assert "The targets are 3 times as large as usual, as you asked." in text
    assert "(±2.121 less" in text
    usual = made_up(problem, tmp_path, target_scale=1.0)
    assert "as large as usual" not in document(usual, verdict_of(usual))


def test_a_wrong_scale_is_refused():
    with pytest.raises(AdviceError, match="--target-scale: found 0, must be in"):
        settings(target_scale=0)
