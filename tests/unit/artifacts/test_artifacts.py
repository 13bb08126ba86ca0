"""Artifacts: what is written is read back, damage is named, nothing is left half-written."""

import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stopwise.artifacts import tables as artifacts
from stopwise.artifacts.tables import ArtifactError


def rows(matrix=None):
    return artifacts.matrix_rows(np.eye(3) if matrix is None else matrix, block="train")


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(width=64)))
def test_a_matrix_survives_a_round_trip_to_the_last_bit(tmp_path_factory, matrix):
    path = tmp_path_factory.mktemp("a") / "m.parquet"
    artifacts.write_table(path, rows(matrix), "gram")
    back = artifacts.read_matrix(artifacts.read_table(path, "gram"), block="train")
    assert back.tobytes() == np.ascontiguousarray(matrix).tobytes()


def test_equal_ignores_volatile_provenance_only(tmp_path):
    for name, seed, host in (("a", 0, "x"), ("b", 0, "y"), ("c", 1, "x")):
        artifacts.write_table(tmp_path / name, rows(), "gram", {"seed": seed, "volatile": {"host": host}})
    assert artifacts.equal(tmp_path / "a", tmp_path / "b")
    assert not artifacts.equal(tmp_path / "a", tmp_path / "c")
    artifacts.write_table(tmp_path / "d", rows(2 * np.eye(3)), "gram", {"seed": 0})
    assert not artifacts.equal(tmp_path / "a", tmp_path / "d")


def test_a_table_with_nan_equals_itself(tmp_path):
    for name in ("a", "b"):
        artifacts.write_table(tmp_path / name, rows(np.full((2, 2), np.nan)), "gram")
    nan = pa.table({"x": [float("nan")]})
    assert not nan.equals(nan.take([0]))  # pyarrow's own comparison is of numbers, not of bits
    assert artifacts.equal(tmp_path / "a", tmp_path / "b")


def test_the_content_digest_does_not_depend_on_how_the_table_was_cut():
    table = artifacts.table_of(rows(np.arange(12.0).reshape(4, 3)), "gram")
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert artifacts.content_digest(pieces) == artifacts.content_digest(table)
    assert artifacts.content_digest(table.slice(1)) != artifacts.content_digest(table)


@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_flipped_bit_is_never_read_silently(tmp_path, where):
    path = tmp_path / "m.parquet"
    artifacts.write_table(path, rows(np.random.default_rng(0).normal(size=(40, 40))), "gram")
    raw = bytearray(path.read_bytes())
    raw[int(where * len(raw))] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"m\.parquet"):
        artifacts.read_table(path, "gram")


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    # Pages have checksums, the table a digest, the record a seal: a flip is refused or touches nothing that is read.
    path = tmp_path / "m.parquet"
    artifacts.write_table(path, rows(np.random.default_rng(0).normal(size=(8, 8))), "gram", {"seed": 3})
    raw, record, table = path.read_bytes(), artifacts.read_provenance(path), artifacts.read_table(path, "gram")
    refused = []
    for bit in np.random.default_rng(1).choice(8 * len(raw), size=600, replace=False):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        try:
            assert artifacts.read_provenance(path) == record
            assert artifacts.read_table(path, "gram").equals(table)
        except ArtifactError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert all("m.parquet" in message for message in refused)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "m.parquet"
    artifacts.write_table(path, rows(), "gram")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"m\.parquet.*remove it"):
        artifacts.read_table(path, "gram")


def test_another_kind_of_artifact_is_refused(tmp_path):
    artifacts.write_table(tmp_path / "m", rows(), "gram")
    with pytest.raises(ArtifactError, match="kind 'gram', expected 'data'"):
        artifacts.read_table(tmp_path / "m", "data")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "m.parquet"
    artifacts.write_table(path, rows(), "gram")
    before = path.read_bytes()

    def interrupted_write():
        with artifacts.atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted_write()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.parquet"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([{"block": "train", "row": 0, "values": b"", "extra": 1}], "no column extra"),
        ([{"block": "train", "row": "zero", "values": b""}], "do not fit the schema"),
        ([{"block": "train", "row": 0}], "'values' holds null"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_refused(tmp_path, bad, message):
    with pytest.raises(ArtifactError, match=message):
        artifacts.write_table(tmp_path / "m", bad, "gram")
    assert not list(tmp_path.iterdir())


def test_every_declared_kind_has_a_valid_schema():
    for kind in artifacts.kinds():
        assert len(artifacts.schema(kind)) > 0
