"""A kernel says how much of its work is done, and how long the rest takes."""

import re

import pytest
import torch

from stopwise.kernel.ntk import empirical_ntk
from stopwise.network.pico import pico_model


@pytest.mark.parametrize("memory_gb", [1.0, 1e-6])
def test_the_bar_goes_from_nothing_to_the_whole(memory_gb, capsys):
    model = pico_model("llama", dtype="float32", seed=0)
    ids = torch.arange(24).reshape(6, 4) % model.config.vocab_size
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    empirical_ntk(model, batch, verbalizers=[3, 5, 7], progress=True, memory_gb=memory_gb, tokens_per_batch=8)
    told = [int(share) for share in re.findall(r"kernel: +(\d+)%", capsys.readouterr().err)]
    assert (told[0], told[-1]) == (0, 100)
    assert told == sorted(told)


def test_nothing_is_said_where_no_bar_is_wanted(capsys):
    model = pico_model("llama", dtype="float32", seed=0)
    ids = torch.arange(8).reshape(2, 4)
    empirical_ntk(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, verbalizers=[3, 5])
    assert not capsys.readouterr().err
