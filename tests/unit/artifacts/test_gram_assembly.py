"""Assembling shards: the sum does not depend on the sharding, and shards that do not belong together are refused."""

from dataclasses import replace

import numpy as np
import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import assemble, layer_shares, read_gram, shard_rows
from stopwise.artifacts.tables import ArtifactError

RNG = np.random.default_rng(0)
N, NEW = 6, 4
JACOBIANS = {f"layer{i}": RNG.normal(size=(N + NEW, 5)) * 10.0**i for i in range(5)}
TRAIN = {name: j[:N] @ j[:N].T for name, j in JACOBIANS.items()}
CROSS = {name: j[N:] @ j[:N].T for name, j in JACOBIANS.items()}
F0, F0_NEW = RNG.normal(size=(N, 1)), RNG.normal(size=(NEW, 1))


def shard(names, f0=F0):
    norms = {name: np.diag(TRAIN[name]) for name in names}
    rows = shard_rows({k: TRAIN[k] for k in names}, {k: CROSS[k] for k in names}, f0, F0_NEW, norms)
    return artifacts.table_of(rows, "jacobian")


def test_the_sum_does_not_depend_on_the_sharding():
    names = list(JACOBIANS)
    whole = assemble({"all": shard(names)})
    split = assemble({"b": shard(names[3:]), "a": shard(names[:3])})
    assert np.array_equal(whole.train, split.train)
    assert np.array_equal(whole.new, split.new)
    assert np.allclose(whole.train, sum(TRAIN.values()))


def test_a_layer_in_two_shards_is_refused():
    with pytest.raises(ArtifactError, match="'layer1' is in another shard"):
        assemble({"a": shard(["layer0", "layer1"]), "b": shard(["layer1"])})


def test_shards_of_different_models_are_refused():
    with pytest.raises(ArtifactError, match="different models"):
        assemble({"a": shard(["layer0"]), "b": shard(["layer1"], f0=F0 + 0.1)})


def test_a_gram_artifact_reads_back_and_its_leading_block_is_the_smaller_kernel(tmp_path):
    kernel = assemble({"a": shard(list(JACOBIANS))})
    artifacts.write_table(tmp_path / "g", kernel.rows(), "gram")
    small = read_gram(artifacts.read_table(tmp_path / "g", "gram")).leading(3)
    assert np.array_equal(small.train, kernel.train[:3, :3])
    assert np.array_equal(small.new, kernel.new[:, :3])
    assert small.outputs.shape == (3, 1)


def test_a_fitted_scale_is_kept_and_a_given_one_is_taken_as_it_is(tmp_path):
    kernel = replace(assemble({"a": shard(list(JACOBIANS))}), target_scale=3.7)
    artifacts.write_table(tmp_path / "g", kernel.rows(), "gram")
    back = read_gram(artifacts.read_table(tmp_path / "g", "gram"))
    assert back.scale("auto") == back.leading(3).scale("auto") == 3.7
    assert back.scale(1.0) == 1.0
    with pytest.raises(ArtifactError, match="target_scale: 'auto'"):
        assemble({"a": shard(list(JACOBIANS))}).scale("auto")


def test_layer_shares_add_up_and_centring_is_a_projection():
    kernel = assemble({"a": shard(list(JACOBIANS))})
    residual = RNG.normal(size=(N, 1))
    rows = layer_shares(kernel, residual, centred=True)
    assert sum(row["trace_share"] for row in rows) == pytest.approx(1.0)
    projection = np.eye(N) - 1 / N
    expected = np.trace(projection @ TRAIN["layer4"] @ projection)
    total = np.trace(projection @ kernel.train @ projection)
    assert {row["layer"]: row for row in rows}["layer4"]["trace_share"] == pytest.approx(expected / total)
    shifted = layer_shares(kernel, residual + 7.0, centred=True)
    assert [row["alignment"] for row in shifted] == pytest.approx([row["alignment"] for row in rows])
    assert all(0 <= row["alignment"] <= 1 for row in rows)
    assert all(1 <= row["effective_dimension"] <= 5 + 1e-9 for row in rows)
