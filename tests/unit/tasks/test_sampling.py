"""Samples are nested, balanced, grouped, and depend on the content of the rows alone."""

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stopwise.tasks.splits import Rows, SplitError, split_rows


@st.composite
def populations(draw, grouped=True):
    """Return rows of 2 to 5 classes of uneven sizes, in groups of uneven sizes (or each row its own group)."""
    classes = draw(st.integers(2, 5))
    size = draw(st.integers(40, 160))
    weights = draw(st.lists(st.integers(1, 8), min_size=classes, max_size=classes))
    wheel = [c for c, weight in enumerate(weights) for _ in range(weight)]
    labels = [*range(classes), *draw(st.lists(st.sampled_from(wheel), min_size=size, max_size=size))]
    keys = [f"text {i}" for i in range(len(labels))]
    count = draw(st.integers(12, 40)) if grouped else 0
    groups = [f"group {draw(st.integers(0, count))}" for _ in labels] if grouped else keys
    return Rows(labels, groups, keys)


def split(rows, seed=0, train=12, validation=6, test=8):
    try:
        return split_rows(rows, train=train, validation=validation, test=test, seed=seed)
    except SplitError:
        assume(False)


@given(populations(), st.integers(0, 5))
def test_no_row_and_no_group_is_on_two_sides(rows, seed):
    parts = split(rows, seed)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [12, 6, 8]
    groups = [{rows.groups[i] for i in parts[name]} for name in parts]
    assert sum(len(found) for found in groups) == len(set.union(*groups))
    chosen = [i for part in parts.values() for i in part]
    assert len(set(chosen)) == len(chosen)


@given(populations())
def test_the_test_set_is_the_same_for_every_seed_size_and_validation(rows):
    first = split(rows, seed=0)["test"]
    assert split(rows, seed=1)["test"] == first
    assert split(rows, seed=2, train=3)["test"] == first
    assert split(rows, seed=0, validation=2)["test"] == first


@given(populations(), st.integers(1, 11))
def test_a_smaller_training_set_is_a_prefix_of_a_larger_one(rows, n):
    large, small = split(rows), split(rows, train=n)
    assert small["train"] == large["train"][:n]
    assert small["validation"] == large["validation"]


@given(populations(grouped=False), st.integers(0, 3))
def test_every_prefix_of_every_split_is_balanced_while_no_class_has_run_out(rows, seed):
    parts = split(rows, seed)
    for name, part in parts.items():
        total = Counter(rows.labels[i] for i in part)
        counts = Counter()
        for i in part:
            counts[rows.labels[i]] += 1
            # A class that the split takes no more of than this may have run out: only the others are compared.
            open_classes = [c for c in set(rows.labels) if counts[c] < total[c]]
            if open_classes:
                behind = min(counts[c] for c in open_classes)
                assert max(counts.values()) - behind <= 1, name


@given(populations(grouped=False))
def test_a_rare_class_is_left_over_for_training(rows):
    parts = split(rows)
    rare, size = min(Counter(rows.labels).items(), key=lambda item: item[1])
    assume(size >= 12)
    assert any(rows.labels[i] == rare for i in parts["train"])


@given(populations(), st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_order_of_the_file_does_not_matter(rows, random, seed):
    order = list(range(len(rows.labels)))
    random.shuffle(order)
    shuffled = Rows(*([column[i] for i in order] for column in (rows.labels, rows.groups, rows.keys)))
    parts, again = split(rows, seed), split(shuffled, seed)
    assert parts == {name: [order[i] for i in part] for name, part in again.items()}


def test_different_seeds_train_on_different_rows():
    rows = Rows([i % 2 for i in range(400)], [str(i) for i in range(400)], [str(i) for i in range(400)])
    first, second = (set(split(rows, seed, train=64)["train"]) for seed in (0, 1))
    # Two independent halves of 64 among 386 share about 11; 30 would be six standard deviations away.
    assert len(first & second) < 30


def test_classes_that_suffice_are_exactly_balanced_everywhere():
    labels = [0] * 300 + [1] * 60 + [2] * 60
    rows = Rows(labels, [str(i) for i in range(420)], [str(i) for i in range(420)])
    for part in split(rows, train=30, validation=15, test=30).values():
        assert len(set(Counter(labels[i] for i in part).values())) == 1


def test_held_out_rows_come_from_many_groups():
    groups = [str(i // 10) for i in range(600)]
    rows = Rows([i % 2 for i in range(600)], groups, [str(i) for i in range(600)])
    parts = split(rows, train=64, validation=24, test=48)
    assert len({groups[i] for i in parts["test"]}) >= 15  # of the 20 in the third that it draws from


@pytest.mark.parametrize(
    ("sizes", "name"),
    [({"train": 30}, "train"), ({"validation": 93}, "validation"), ({"test": 101}, "test")],
)
def test_too_few_rows_name_the_split_that_fails(sizes, name):
    rows = Rows([i % 2 for i in range(100)], [str(i) for i in range(100)], [str(i) for i in range(100)])
    wanted = (
        {"train": 4, "validation": 8, "test": 8} | sizes | ({"validation": 40, "test": 40} if name == "train" else {})
    )
    with pytest.raises(SplitError) as caught:
        split_rows(rows, seed=0, **wanted)
    assert caught.value.split == name
    assert caught.value.available < caught.value.wanted


def test_groups_that_cover_everything_leave_nothing_to_train_on():
    rows = Rows([0, 1] * 20, ["one"] * 40, [str(i) for i in range(40)])
    with pytest.raises(SplitError, match="validation: 4 rows wanted, 0 available"):
        split_rows(rows, train=4, validation=4, test=4, seed=0)


@given(populations(), st.integers(0, 5), st.integers(2, 9))
def test_no_two_rows_of_a_sample_look_the_same(rows, seed, looks):
    """Every ``looks``-th row shares its look with others: the first that is drawn stands for them."""

    def look(i):
        return ("shared", i % looks) if i % 3 == 0 else i

    asked = []

    def asking(i):
        asked.append(i)
        return look(i)

    try:
        parts = split_rows(rows, train=12, validation=6, test=8, seed=seed, look=asking)
        other = split_rows(rows, train=12, validation=6, test=8, seed=seed + 1, look=look)
        shorter = split_rows(rows, train=7, validation=6, test=8, seed=seed, look=look)
    except SplitError:
        assume(False)
    chosen = [i for part in parts.values() for i in part]
    assert len({look(i) for i in chosen}) == len(chosen) == 26
    assert parts["test"] == other["test"]
    assert shorter["train"] == parts["train"][:7]
    assert set(chosen) <= set(asked)
    groups = [{rows.groups[i] for i in parts[name]} for name in parts]
    assert sum(len(found) for found in groups) == len(set.union(*groups))


def test_rows_that_look_different_are_sampled_as_ever_and_only_those_drawn_are_looked_at():
    rows = Rows([0, 1] * 200, [f"g{i}" for i in range(400)], [f"k{i}" for i in range(400)])
    asked = []
    parts = split_rows(rows, train=12, validation=6, test=8, seed=3, look=lambda i: asked.append(i) or i)
    assert parts == split_rows(rows, train=12, validation=6, test=8, seed=3)
    assert len(asked) == 26


def test_too_few_different_rows_are_counted():
    rows = Rows([0, 1] * 30, [f"g{i}" for i in range(60)], [f"k{i}" for i in range(60)])
    with pytest.raises(SplitError) as caught:
        split_rows(rows, train=12, validation=2, test=2, seed=0, look=lambda i: i % 8)
    assert (caught.value.split, caught.value.wanted, caught.value.available) == ("train", 12, 4)
