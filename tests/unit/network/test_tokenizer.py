"""A job that only tokenises imports no torch, and its token ids are those of a process that has torch."""

import json
import subprocess
import sys

import pytest

from stopwise.network.folders import prepare_model
from stopwise.network.tokenizer import load_tokenizer

TEXTS = ["The movie was good, <eos> and bad.", "a sea of [MASK] ink: déjà vu 12\n", "", "Review: rain\nSentiment:"]
CODE = """
import json, sys
from stopwise.network.tokenizer import tokenizer_alone
tokenizer = tokenizer_alone(sys.argv[1])
texts = json.loads(sys.argv[2])
seen = {"torch": "torch" in sys.modules, "class": type(tokenizer).__name__, "ids": tokenizer(texts)["input_ids"]}
seen["pairs"] = tokenizer(texts, texts[::-1], truncation=True, max_length=9)["input_ids"]
seen["plain"] = tokenizer(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
print(json.dumps(seen))
"""


def wordpieces(folder):
    """Give a folder the tokenizer of BERT, which is a class of its own, over a few words."""
    from transformers import BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "movie",
        "was",
        "good",
        "bad",
        "a",
        "sea",
        "ink",
        "##s",
    ]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["byte pairs", "word pieces"])
def test_tokens_without_torch_are_those_with_it(kind, tmp_path):
    folder = prepare_model("pico-bert" if kind == "word pieces" else "pico-gpt2", tmp_path)
    if kind == "word pieces":
        wordpieces(folder)
    tokenizer = load_tokenizer(folder)
    command = [sys.executable, "-c", CODE, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["torch"]
    assert "PyTorch" not in done.stderr
    assert found["class"] == type(tokenizer).__name__
    assert found["ids"] == tokenizer(TEXTS)["input_ids"]
    assert found["pairs"] == tokenizer(TEXTS, TEXTS[::-1], truncation=True, max_length=9)["input_ids"]
    plain = tokenizer(TEXTS, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert found["plain"] == plain
    assert len({tuple(ids) for ids in plain}) == len(TEXTS)
