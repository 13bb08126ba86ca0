"""What is kept from one start to the next is what would be worked out anew, or it is worked out anew."""

import pytest

from stopwise.pipeline.remembered import Remembered


class Work:
    """Gives the answer and counts how often it was asked."""

    def __init__(self, answer):
        self.answer, self.times = answer, 0

    def __call__(self):
        self.times += 1
        return self.answer


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "library" / "rules.py"
    path.parent.mkdir()
    path.write_text("a = 1\n", encoding="utf-8")
    return path


def test_an_answer_is_worked_out_once_for_the_same_sources(tmp_path, source):
    kept, work = tmp_path / "state" / "kept.json", Work("abc")
    assert Remembered(kept, [source]).get("stopping", work) == "abc"
    assert Remembered(kept, [source]).get("stopping", work) == "abc"
    assert work.times == 1
    assert Remembered(kept, [source]).get("gram", Work("def")) == "def"
    assert [path.name for path in kept.parent.iterdir()] == ["kept.json"]


def test_an_edited_an_added_or_a_renamed_source_makes_every_answer_anew(tmp_path, source):
    kept = tmp_path / "kept.json"
    Remembered(kept, [source]).get("stopping", Work("old"))
    other = source.with_name("loo.py")
    other.write_text("", encoding="utf-8")
    assert Remembered(kept, [source, other]).get("stopping", Work("added")) == "added"
    source.write_text("a = 2\n", encoding="utf-8")
    assert Remembered(kept, [source, other]).get("stopping", Work("edited")) == "edited"
    renamed = source.rename(source.with_name("stops.py"))
    assert Remembered(kept, [renamed, other]).get("stopping", Work("renamed")) == "renamed"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sources": 1}', '{"known": null}'])
def test_a_damaged_memory_is_worked_out_anew(tmp_path, source, damage):
    kept = tmp_path / "kept.json"
    Remembered(kept, [source]).get("stopping", Work("abc"))
    kept.write_text(damage, encoding="utf-8")
    assert Remembered(kept, [source]).get("stopping", Work("abc")) == "abc"
    assert Remembered(kept, [source]).get("stopping", Work("never asked")) == "abc"


def test_where_nothing_can_be_written_the_answers_are_the_same(tmp_path, source):
    (tmp_path / "file").write_text("")
    kept = tmp_path / "file" / "kept.json"
    for _ in range(2):
        assert Remembered(kept, [source]).get("stopping", Work("abc")) == "abc"
