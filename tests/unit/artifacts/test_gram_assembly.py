"""Assembling shards: the sum does not depend on the sharding, and shards that do not belong together are refused."""

from dataclasses import replace

import numpy as np
import pytest

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.gram import (
    SUM,
    assemble,
    keeps_layers,
    layer_shares,
    read_gram,
    shard_table,
    shares_of_moments,
)
from stopwise.artifacts.tables import ArtifactError

RNG = np.random.default_rng(0)
N, NEW = 6, 4
JACOBIANS = {f"layer{i}": RNG.normal(size=(N + NEW, 5)) * 10.0**i for i in range(5)}
TRAIN = {name: j[:N] @ j[:N].T for name, j in JACOBIANS.items()}
CROSS = {name: j[N:] @ j[:N].T for name, j in JACOBIANS.items()}
F0, F0_NEW = RNG.normal(size=(N, 1)), RNG.normal(size=(NEW, 1))


def shard(names, f0=F0):
    norms = {name: np.diag(TRAIN[name]) for name in names}
    return shard_table({k: TRAIN[k] for k in names}, {k: CROSS[k] for k in names}, f0, F0_NEW, norms)


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
    artifacts.write_table(tmp_path / "g", kernel.table(), "gram")
    small = read_gram(artifacts.read_table(tmp_path / "g", "gram")).leading(3)
    assert np.array_equal(small.train, kernel.train[:3, :3])
    assert np.array_equal(small.new, kernel.new[:, :3])
    assert small.outputs.shape == (3, 1)


def test_a_fitted_scale_is_kept_and_a_given_one_is_taken_as_it_is(tmp_path):
    kernel = replace(assemble({"a": shard(list(JACOBIANS))}), target_scale=3.7)
    artifacts.write_table(tmp_path / "g", kernel.table(), "gram")
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


def test_a_matrix_table_is_the_table_of_its_rows():
    """The same content, digest included, built without a copy of the numbers."""
    blocks = [({"block": "train", "layer": "a"}, TRAIN["layer0"]), ({"block": "outputs", "layer": ""}, F0)]
    rows = [row for labels, matrix in blocks for row in artifacts.matrix_rows(matrix, **labels)]
    plain, found = artifacts.table_of(rows, "jacobian"), artifacts.matrix_table(blocks, "jacobian")
    assert found.equals(plain)
    assert artifacts.content_digest(found) == artifacts.content_digest(plain)


@pytest.mark.parametrize("large", [0, 1 << 26])
def test_a_digest_is_the_same_with_and_without_copies(monkeypatch, large):
    """Large tables are not copied to be hashed; neither their size nor how they were cut shows in the digest."""
    rows = [row for i in range(3) for row in artifacts.matrix_rows(RNG.normal(size=(4, 4)) + i, block=f"b{i}")]
    whole = artifacts.table_of(rows, "gram")
    wanted = artifacts.content_digest(whole)
    monkeypatch.setattr(artifacts, "LARGE", large)
    pieces = [whole.slice(0, 5), whole.slice(5, 3), whole.slice(8)]
    longer = artifacts.pa.concat_tables([whole, whole])
    for same in (whole, artifacts.pa.concat_tables(pieces), longer.slice(12), longer.slice(0, 12)):
        assert artifacts.content_digest(same) == wanted


def test_a_large_table_is_written_in_groups_and_reads_back(tmp_path, monkeypatch):
    kernel = assemble({"a": shard(list(JACOBIANS))})
    artifacts.write_table(tmp_path / "one", kernel.table(), "gram")
    monkeypatch.setattr(artifacts, "LARGE", 200)
    artifacts.write_table(tmp_path / "many", kernel.table(), "gram")
    assert artifacts.pq.ParquetFile(tmp_path / "many").num_row_groups > 3
    assert artifacts.equal(tmp_path / "one", tmp_path / "many")
    assert np.array_equal(read_gram(artifacts.read_table(tmp_path / "many", "gram")).train, kernel.train)


def sums(names, y):
    """A shard that keeps no layers: the sums over them, and what is kept of each."""
    vectors = {}
    for name in names:
        v = np.stack([np.ones(N), y[:, 0], F0[:, 0]], 1)
        k = TRAIN[name]
        ones = (k @ v[:, :1]).ravel()
        vectors[name] = np.concatenate([[np.trace(k), np.sum(k**2), ones @ ones], (v.T @ k @ v).ravel()])
    train, new = ({SUM: sum(parts[name] for name in names)} for parts in (TRAIN, CROSS))
    return shard_table(train, new, F0, F0_NEW, {}, moments=vectors)


@pytest.mark.parametrize(("scale", "centred"), [(1.0, True), (3.0, False)])
def test_shards_without_layers_give_the_same_kernel_and_shares(scale, centred):
    names, y = list(JACOBIANS), RNG.normal(size=(N, 1))
    kept = assemble({"a": shard(names)})
    summed = assemble({"a": sums(names[:3], y), "b": lambda: sums(names[3:], y)})
    assert np.allclose(summed.train, kept.train, rtol=1e-14)
    assert np.allclose(summed.new, kept.new, rtol=1e-13, atol=1e-12)
    assert not summed.by_layer
    wanted = layer_shares(kept, scale * y - F0, centred=centred)
    for found, row in zip(shares_of_moments(summed, y, scale, centred=centred), wanted, strict=True):
        assert found["layer"] == row["layer"]
        for name in ("trace_share", "alignment", "effective_dimension"):
            assert found[name] == pytest.approx(row[name], rel=1e-9)  # sums in another order


def test_kept_and_summed_layers_do_not_mix_and_none_comes_twice():
    y = np.ones((N, 1))
    with pytest.raises(ArtifactError, match="'layer1' is in another shard"):
        assemble({"a": sums(["layer0", "layer1"], y), "b": sums(["layer1"], y)})
    with pytest.raises(ArtifactError, match="same layers"):
        assemble({"a": sums(["layer0"], y), "b": shard(["layer1"])})


def test_layers_are_kept_while_they_are_small():
    assert keeps_layers(None, 640, 1280, 30)
    assert not keeps_layers(None, 10_000, 10_128, 24)
    assert keeps_layers(True, 10_000, 10_128, 24)
    assert not keeps_layers(False, 6, 10, 5)
