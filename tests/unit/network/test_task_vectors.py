"""Task vectors: algebra, order, dtype, round trips, ties, refusals, and the memory that laziness saves."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stopwise.network.pico import pico_model
from stopwise.network.task_vectors import TaskVector
from training_reference import made_up_batch, outputs_one_by_one, same_weights, weights

SHAPES = {"model.layers.0.q.weight": (3, 4), "model.layers.1.q.weight": (4,), "head.weight": (2, 2), "scale": ()}
floats = st.floats(-8, 8, width=32)


@st.composite
def vectors(draw, dtype=torch.float32):
    tensors = {}
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        tensors[name] = torch.tensor(draw(st.lists(floats, min_size=size, max_size=size)), dtype=dtype).reshape(shape)
    return TaskVector(tensors, {"task": draw(st.sampled_from("ab"))})


def close(a, b):
    """Equal but for the one rounding to float32 that each side makes of its float64 sum."""
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2**-23, atol=1e-13)


def equal(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@given(vectors(), vectors(), vectors(), st.floats(-3, 3), st.floats(-3, 3))
def test_vectors_form_a_vector_space(a, b, c, x, y):
    equal(a + b, b + a)
    close((a + b) + c, a + (b + c))
    close(x * (a + b), x * a + x * b)
    close((x + y) * a, x * a + y * a)
    close(x * (y * a), (x * y) * a)
    equal(a - b, a + (-b))
    negative = -a
    equal(-negative, a)
    equal(1.0 * a, a)
    assert (a - a).norm() == 0
    close(sum([a, b, c]), a + b + c)
    close((a + b) / 2, 0.5 * a + 0.5 * b)


@given(st.permutations(range(4)), st.lists(vectors(), min_size=4, max_size=4))
def test_the_order_of_a_sum_does_not_matter(order, terms):
    close(sum(terms), sum(terms[i] for i in order))


@given(vectors(), vectors())
def test_norm_dot_and_cosine_are_those_of_the_flat_vectors(a, b):
    flat = [np.concatenate([v[name].double().numpy().ravel() for name in v]) for v in (a, b)]
    assert a.norm() == pytest.approx(np.linalg.norm(flat[0]), rel=1e-12)
    assert a.dot(b) == pytest.approx(flat[0] @ flat[1], rel=1e-12, abs=1e-12)
    if a.norm() and b.norm():
        assert a.cosine(b) == pytest.approx(flat[0] @ flat[1] / a.norm() / b.norm(), abs=1e-12)
    else:
        assert math.isnan(a.cosine(b))
    assert math.hypot(*a.layer_norms().values()) == pytest.approx(a.norm(), rel=1e-12)


def test_layers_group_by_the_first_number():
    vector = TaskVector({name: torch.ones(shape) for name, shape in SHAPES.items()})
    assert vector.layers() == {
        "head": ["head.weight"],
        "model.layers.0": ["model.layers.0.q.weight"],
        "model.layers.1": ["model.layers.1.q.weight"],
        "": ["scale"],
    }


@settings(max_examples=20)
@given(vectors(), vectors(), st.floats(-3, 3), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_saving_and_loading_changes_no_bit(tmp_path_factory, a, b, x, dtype):
    path = tmp_path_factory.mktemp("v") / "vector.safetensors"
    typed = TaskVector({name: a[name].to(dtype) for name in a}, {"task": "a", "intercept": [0.1], "n": 3})
    typed.save(path)
    loaded = TaskVector.load(path)
    equal(loaded, typed)
    assert loaded.metadata == typed.metadata
    combination = typed + x * b
    combination.save(path)  # over a file that nothing reads any more
    equal(TaskVector.load(path), combination)
    assert [term["coefficient"] for term in TaskVector.load(path).metadata["terms"]] == [1.0, x]
    assert load_file(path).keys() == SHAPES.keys()  # the stock reader agrees


def test_a_vector_may_be_saved_over_a_file_that_it_reads(tmp_path):
    path = tmp_path / "vector.safetensors"
    TaskVector({"w": torch.tensor([1.0, 2.0])}, {"task": "a"}).save(path)
    vector = TaskVector.load(path)
    doubled = 2 * vector
    doubled.save(path)
    assert TaskVector.load(path)["w"].tolist() == [2.0, 4.0]
    assert vector["w"].tolist() == [1.0, 2.0]  # still the bytes that were opened
    assert list(tmp_path.iterdir()) == [path]


def test_a_stock_safetensors_delta_loads(tmp_path):
    save_file({"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16)}, tmp_path / "delta.safetensors")
    vector = TaskVector.load(tmp_path / "delta.safetensors")
    assert list(vector) == ["a", "b"]
    assert vector["b"].tolist() == [0, 1, 2]
    assert (vector + vector)["a"].dtype == torch.float16


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_between_and_apply_are_inverse(arch, dtype):
    base, tuned = pico_model(arch, dtype=dtype), pico_model(arch, dtype=dtype, seed=1)
    before = weights(base)
    vector = TaskVector.between(base, tuned)
    again = vector.apply_to(base)
    precision = {"float32": 2**-23, "float64": 2**-52, "bfloat16": 2**-8}[dtype]
    for (name, p), q in zip(again.named_parameters(), tuned.parameters(), strict=True):
        # base + round(tuned - base) is off by the rounding of the difference: one unit of the larger of the two.
        limit = precision * torch.maximum(before[name].abs(), q.abs()).double()
        assert bool(((p.double() - q.double()).abs() <= limit).all())
    assert same_weights(base, before)
    half = vector.apply_to(base, scaling_coef=0.5)
    name = next(iter(vector))
    wanted = (before[name].double() + 0.5 * vector.double(name)).to(before[name].dtype)
    assert torch.equal(dict(half.named_parameters())[name], wanted)


def test_only_changed_parameters_are_in_the_vector_and_copied():
    base = pico_model("llama", dtype="float32")
    tuned = pico_model("llama", dtype="float32")
    name = "model.layers.1.self_attn.q_proj.weight"
    with torch.no_grad():
        dict(tuned.named_parameters())[name].add_(0.01)
    vector = TaskVector.between(base, tuned, metadata={"task": "a", "intercept": [0.25]})
    assert list(vector) == [name]
    assert vector.intercept() == vector.intercept("a") == [0.25]
    applied = vector.apply_to(base)
    for key, p in base.named_parameters():
        assert (dict(applied.named_parameters())[key].data_ptr() == p.data_ptr()) == (key != name)
    assert applied.lm_head.weight is applied.model.embed_tokens.weight  # ties survive


def test_ties_of_a_state_dict_stay_tied():
    base = pico_model("gpt2", dtype="float32")
    state = base.state_dict()
    assert "lm_head.weight" in state
    vector = TaskVector({"transformer.wte.weight": torch.ones_like(base.transformer.wte.weight)})
    new = vector.apply_to(state, scaling_coef=2.0)
    assert torch.equal(new["lm_head.weight"], new["transformer.wte.weight"])
    assert torch.equal(new["lm_head.weight"], (state["lm_head.weight"].double() + 2).float())
    assert new["transformer.wpe.weight"] is state["transformer.wpe.weight"]


def test_applying_a_sum_gives_the_outputs_of_the_summed_weights():
    base = pico_model("gpt2")
    a, b = (TaskVector.between(base, pico_model("gpt2", seed=seed)) for seed in (1, 2))
    merged = ((a + b) * 0.5).apply_to(base)
    by_hand = pico_model("gpt2")
    first, second = pico_model("gpt2", seed=1), pico_model("gpt2", seed=2)
    with torch.no_grad():
        for p, q, r in zip(by_hand.parameters(), first.parameters(), second.parameters(), strict=True):
            p.add_(0.5 * (q - p) + 0.5 * (r - p))
    batch = made_up_batch(6)
    np.testing.assert_allclose(outputs_one_by_one(merged, batch), outputs_one_by_one(by_hand, batch), rtol=1e-9)


def test_combinations_remember_their_terms_and_each_tasks_intercept():
    a = TaskVector({"w": torch.ones(1)}, {"task": "a", "intercept": [0.1]})
    b = TaskVector({"w": torch.ones(1)}, {"task": "b", "intercept": [0.2]})
    merged = (a - 2 * b) * 0.5
    assert merged.intercept("b") == [0.2]
    assert merged.intercept("c") is None
    assert [(term["task"], term["coefficient"]) for term in merged.metadata["terms"]] == [("a", 0.5), ("b", -1.0)]
    assert json.loads(json.dumps(merged.metadata)) == merged.metadata


def test_mismatches_are_refused_with_their_list(tmp_path):
    a = TaskVector({"x": torch.ones(2), "y": torch.ones(3), "z": torch.ones(1)})
    b = TaskVector({"x": torch.ones(2), "y": torch.ones(4), "w": torch.ones(1)})
    for combine in (lambda: a + b, lambda: a - b, lambda: a.dot(b), lambda: a.cosine(b)):
        with pytest.raises(
            ValueError, match=r"3 parameters: z \(only left\), w \(only right\), y \(\(3,\) against \(4,\)\)"
        ):
            combine()
    with pytest.raises(ValueError, match="does not fit the base weights: y, z"):
        a.apply_to({"x": torch.ones(2), "y": torch.ones(4)})
    with pytest.raises(ValueError, match=r"w \(only tuned\)"):
        TaskVector.between({"x": torch.ones(2)}, {"x": torch.ones(2), "w": torch.ones(1)})
    with pytest.raises(ValueError, match="no parameter q"):
        TaskVector.between({"x": torch.ones(2)}, {"x": torch.ones(2)}, names=["q"])
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(TypeError):
        a * a


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "vector.safetensors"
    TaskVector({"w": torch.ones(100)}).save(path)
    whole = path.read_bytes()
    for name, content in {"cut": whole[:-10], "head": whole[:20], "empty": b"", "other": b"PK" + whole[2:]}.items():
        bad = tmp_path / f"{name}.safetensors"
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.safetensors: not a whole safetensors file"):
            TaskVector.load(bad)
    with pytest.raises(ValueError, match="no such safetensors file"):
        TaskVector.load(tmp_path / "absent.safetensors")


MEMORY = """
import resource, sys, torch
from stopwise.network.task_vectors import TaskVector
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vectors = [TaskVector.load(path) for path in sys.argv[1:-1]]
(0.5 * sum(vectors)).save(sys.argv[-1])
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_large_vectors_combine_in_less_than_the_memory_of_one(tmp_path):
    """Three vectors of 80 MB each, saved combined; the process may grow by less than half of one."""
    names = [f"model.layers.{i}.w" for i in range(20)]
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(3)]
    for path in paths:
        TaskVector({name: torch.full((1_000_000,), 1.5) for name in names}).save(path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, *paths, str(tmp_path / "sum.safetensors")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert grown < 40e6
    assert TaskVector.load(tmp_path / "sum.safetensors")[names[-1]][-1] == 2.25
