"""Arithmetic in the kernel's space: exact where the network is linear, and its parts add up to the whole."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from stopwise.artifacts.gram import AssembledKernel
from stopwise.artifacts.tables import ArtifactError, table_of
from stopwise.artifacts.task_blocks import TaskBlocks
from stopwise.kernel.between_tasks import cross_kernels
from stopwise.kernel.ntk import empirical_ntk, kernel_layers, train_and_new_kernels
from stopwise.linearized.spectrum import Spectrum
from stopwise.merging.effects import effects, predicted_rows
from stopwise.merging.linearised import tangent_outputs
from stopwise.merging.tangent_space import TangentSpace, TangentTask, filter_weights, fitted_weights, outside_theory
from stopwise.network.pico import pico_model
from stopwise.training.finetune import FinetuneSettings, finetune
from training_reference import made_up_batch

SETTINGS = {"optimizer": "heavy_ball", "steps": 6, "evaluate_every": 6, "stop": "none", "tangent": True}
CLASSES = {"movie": 2, "trec": 3, "spam": 2}


@pytest.fixture(scope="module")
def model():
    return pico_model("gpt2")


@pytest.fixture(scope="module")
def batches():
    return {
        name: {split: made_up_batch(n, seed=10 * i + s, classes=CLASSES[name]) for s, (split, n) in enumerate(SIZES)}
        for i, name in enumerate(CLASSES)
    }


SIZES = (("train", 9), ("validation", 4), ("test", 6))


def joined(*parts):
    import torch

    return {k: v if k == "verbalizers" else torch.cat([p[k] for p in parts]) for k, v in parts[0].items()}


@pytest.fixture(scope="module")
def new(batches):
    return {name: joined(own["validation"], own["test"]) for name, own in batches.items()}


@pytest.fixture(scope="module")
def blocks(model, batches, new):
    return cross_kernels(model, {name: own["train"] for name, own in batches.items()}, new)


@pytest.fixture(scope="module", params=["full batches", "mini-batches"])
def trained(request, model, batches, new):
    """The tasks trained in the tangent space, and as their kernels see them: (vectors, tangent tasks)."""
    size = None if request.param == "full batches" else 4
    settings = FinetuneSettings.from_config(SETTINGS | {"batch_size": size}, target_scale=1.0)
    vectors, tasks = {}, {}
    for name, own in batches.items():
        train, cross = train_and_new_kernels(model, own["train"], new[name])
        kernel = AssembledKernel(train.matrix, cross.matrix, train.outputs, cross.outputs, {})
        spec = kernel.spectrum("fitted")
        labels = {split: batch["labels"].numpy() for split, batch in own.items()}
        result = finetune(model, own["train"], None, None, settings, spectrum=_Step(spec, size), progress=False)
        task = TangentTask(kernel, labels, CLASSES[name], np.zeros(spec.m), result.intercept)
        c = filter_weights(spec, task.residual("train") + result.intercept, settings, 6)
        vectors[name], tasks[name] = result.vector, TangentTask(kernel, labels, CLASSES[name], c, result.intercept)
    return vectors, tasks


class _Step:
    """What training reads the step size from: the eigenvalue that the prediction uses."""

    def __init__(self, spec, size):
        from stopwise.training.prediction import step_eigenvalue

        self.lambda_max = step_eigenvalue(spec, size)


@pytest.fixture(scope="module")
def space(trained, blocks):
    return TangentSpace(trained[1], blocks)


def test_cross_blocks_are_those_of_the_pairwise_kernel(model, batches, new, blocks):
    for a, b in itertools.permutations(CLASSES, 2):
        for block, left in (("train", batches[a]["train"]), ("new", new[a])):
            wanted = empirical_ntk(model, left, batches[b]["train"])
            np.testing.assert_allclose(blocks.whole(block, a, b), wanted.matrix, rtol=1e-9, atol=1e-9)
            layers = blocks.split("layer", block, a, b)
            assert layers.keys() == wanted.by_layer.keys()
            for name, part in layers.items():
                np.testing.assert_allclose(part, wanted.by_layer[name], rtol=1e-9, atol=1e-9)


def test_layers_and_types_both_add_up_to_the_whole(blocks, space):
    for a, b in itertools.permutations(CLASSES, 2):
        for grouping in ("layer", "type"):
            total = sum(blocks.split(grouping, "new", a, b).values())
            np.testing.assert_allclose(total, blocks.whole("new", a, b), rtol=1e-12, atol=1e-12)
            for split, n in SIZES:
                parts = space.parts(grouping, a, b, split)
                change = space.change(a, b, split)
                assert change.shape == (n, CLASSES[a] - 1)
                np.testing.assert_allclose(sum(parts.values()), change, rtol=1e-9, atol=1e-12)
    assert len(blocks.parts["type"]) == 2  # attn.c_attn and attn.c_proj
    rows = {}
    for row in predicted_rows(space, "filter"):
        key = row["quantity"], row["split"], row["task_a"], row["task_b"]
        rows.setdefault(key, {}).setdefault(row["grouping"], []).append(row["value"])
    assert len(rows) == 6 * 3 * 2 + 3
    for values in rows.values():
        (whole,) = values["whole"]
        assert sum(values["layer"]) == pytest.approx(whole, rel=1e-9, abs=1e-12)
        assert sum(values["type"]) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_shards_and_the_artifact_hold_the_same_blocks(model, batches, new, blocks):
    train = {name: own["train"] for name, own in batches.items()}
    shards = [cross_kernels(model, train, new, layers=[layer]) for layer in kernel_layers(model)]
    tables = {f"shard{i}": table_of(shard.rows(), "task_kernels") for i, shard in enumerate(shards)}
    again = TaskBlocks.of_tables(tables)
    for grouping, named in blocks.parts.items():
        assert again.parts[grouping].keys() == named.keys()
        for name, found in named.items():
            for key, matrix in found.items():
                np.testing.assert_allclose(again.parts[grouping][name][key], matrix, rtol=1e-12, atol=1e-12)
    with pytest.raises(ArtifactError, match="is in another shard too"):
        TaskBlocks.of_tables({"first": tables["shard0"], "again": tables["shard0"]})
    with pytest.raises(ArtifactError, match="no kernel block 'new' of tasks 'movie' and 'amazon'"):
        again.whole("new", "movie", "amazon")


def test_predicted_merges_are_those_of_the_tangent_model(model, batches, trained, space):
    """Tangent training of pico models in float64: the filter, the blocks and the vectors are one and the same thing."""
    vectors, tasks = trained
    for point in ({"movie": 1.0, "trec": 1.0}, {"movie": -0.5, "trec": 0.3, "spam": 2.0}, {}):
        vector = sum(x * vectors[name] for name, x in point.items()) if point else 0.0 * vectors["spam"]
        for task, (split, _) in itertools.product(CLASSES, SIZES):
            f0, change = tangent_outputs(model, batches[task][split], vector)
            found = space.outputs(point, task, split)
            np.testing.assert_allclose(found, f0 + change, rtol=1e-7, atol=1e-9)  # the step size is rounded once
            loss, accuracy = space.judge(point, task, split)
            y = tasks[task].objective(split).targets
            assert loss == pytest.approx(np.mean((y - tasks[task].intercept - f0 - change) ** 2))
            assert 0 <= accuracy <= 1
    for a, b in itertools.combinations(CLASSES, 2):
        assert space.cosine(a, b) == pytest.approx(vectors[a].cosine(vectors[b]), abs=1e-8)
        assert space.norm(a) == pytest.approx(vectors[a].norm(), rel=1e-7)


def test_least_squares_finds_the_vector_from_its_training_outputs(trained, space, blocks):
    tasks = trained[1]
    fitted = {
        name: TangentTask(
            task.kernel,
            task.labels,
            task.classes,
            fitted_weights(task.kernel.train, space.change(name, name, "train")),
            task.intercept,
        )
        for name, task in tasks.items()
    }
    again = TangentSpace(fitted, blocks)
    for a, b in itertools.permutations(CLASSES, 2):
        # Directions under a millionth of the largest eigenvalue are left out: their share of the outputs is missing.
        np.testing.assert_allclose(again.change(a, b, "test"), space.change(a, b, "test"), rtol=1e-3, atol=1e-4)


def test_disentanglement_is_zero_where_nothing_is_added(space):
    assert space.disentanglement("movie", "trec", 0.0, 0.0) == 0
    assert all(0 <= space.disentanglement("movie", "spam", x, y) <= 2 for x in (-1, 1, 50) for y in (0, 1, 50))
    point = {"movie": 50.0, "spam": 50.0}
    by_hand = 0.0
    for task in point:
        offset = space.tasks[task].intercept
        alone, both = (space.outputs(p, task, "test") + offset for p in ({task: 50.0}, point))
        by_hand += np.mean((alone > 0) != (both > 0))
    assert space.disentanglement("movie", "spam", 50.0, 50.0) == pytest.approx(by_hand)


def test_transfer_is_one_when_the_change_is_the_residual():
    r = np.array([[1.0], [-2.0]])
    assert effects(r, r) == {"interference": pytest.approx(1), "transfer": pytest.approx(1)}
    assert effects(-2 * r, r) == {"interference": pytest.approx(2), "transfer": pytest.approx(-2)}
    assert effects(0 * r, r) == {"interference": 0, "transfer": 0}
    assert effects(r, 0 * r) == {"interference": None, "transfer": None}


def test_a_vector_that_never_left_the_start_has_no_cosine(trained, blocks):
    tasks = dict(trained[1])
    still = tasks["movie"]
    tasks["movie"] = TangentTask(
        still.kernel, still.labels, still.classes, np.zeros_like(still.weights), still.intercept
    )
    space = TangentSpace(tasks, blocks)
    assert np.isnan(space.cosine("movie", "trec"))
    cosines = [row for row in predicted_rows(space, "filter") if row["quantity"] == "cosine"]
    assert [row["value"] for row in cosines if "movie" in (row["task_a"], row["task_b"])] == [None] * (2 * 5)
    assert isinstance(table_of(cosines, "interference"), pa.Table)


def test_what_lies_outside_the_theory_is_named():
    inside = FinetuneSettings.from_config({"optimizer": "nesterov"})
    assert outside_theory(inside, "attention", "sgd") is None
    adamw = FinetuneSettings.from_config({"optimizer": "adamw", "learning_rate": 0.1, "objective": "cross_entropy"})
    assert outside_theory(adamw, "attention", "sgd") == "objective cross_entropy; optimizer adamw"
    assert outside_theory(inside, {"peft": {"rank": 2}}, "signgd") == "kernel of formula signgd; adapters"


def test_spectrum_of_the_blocks_is_a_gram_matrix(blocks, trained):
    """All blocks together are one positive semi-definite matrix: its smallest eigenvalue is rounding."""
    from stopwise.linearized.spectrum import stack_blocks

    tasks = trained[1]
    stacked = {(name, name): task.kernel.train for name, task in tasks.items()}
    stacked |= {(a, b): blocks.whole("train", a, b) for a, b in itertools.combinations(tasks, 2)}
    assert Spectrum.of(stack_blocks(stacked)).smallest > -1e-9 * np.trace(tasks["movie"].kernel.train)
