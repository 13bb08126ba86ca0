"""The loss of an answer of one token: among the words and over the vocabulary, whole and accumulated."""

from types import SimpleNamespace

import pytest
import torch

from stopwise.integrations.examples import word_tokens
from stopwise.integrations.losses import answer_example, answer_loss, answer_places
from stopwise.network.pico import pico_tokenizer

WORDS = [5, 9, 2]
LENGTHS, ANSWERS = [3, 1, 5, 2], [9, 2, 9, 5]


def made(seed=0):
    """Logits [4, 6, 12], and labels as supervised fine-tuning has them."""
    labels = torch.full((4, 6), -100)
    for row, (length, answer) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        labels[row, length] = answer
    return torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), labels


def by_hand(logits, words):
    """-log p of each answer."""
    found = []
    for row, (length, answer) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        own = logits[row, length - 1].float()
        own, place = (own, answer) if words is None else (own[words], words.index(answer))
        found.append(-torch.log_softmax(own, 0)[place])
    return torch.stack(found)


@pytest.mark.parametrize("words", [None, WORDS])
def test_it_is_the_mean_of_the_answers_losses(words):
    logits, labels = made()
    expected = by_hand(logits, words).mean()
    for outputs in (SimpleNamespace(logits=logits), {"logits": logits}):
        assert torch.allclose(answer_loss(words)(outputs, labels), expected)


@pytest.mark.parametrize("tokens", [1, 2])
def test_accumulated_parts_add_up_to_the_whole(tokens):
    """Also where an end-of-text token follows every answer, which the Trainer counts but which has no loss here."""
    logits, labels = made()
    if tokens == 2:
        logits, labels = logits.repeat(1, 2, 1), torch.nn.functional.pad(labels, (0, 6), value=-100)
        labels[torch.arange(4), torch.tensor(LENGTHS) + 1] = 0
    whole, items = answer_loss(WORDS)(SimpleNamespace(logits=logits), labels), torch.tensor(4 * tokens)
    cuts = [slice(0, 3), slice(3, 4)]
    parts = [answer_loss(WORDS)(SimpleNamespace(logits=logits[c]), labels[c], num_items_in_batch=items) for c in cuts]
    assert torch.allclose(sum(parts), whole)


def test_over_the_vocabulary_it_is_the_language_models_own_loss():
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = made()
    expected = ForCausalLMLoss(logits.float(), labels, vocab_size=12)
    assert torch.allclose(answer_loss()(SimpleNamespace(logits=logits), labels), expected)


def test_a_row_is_labelled_at_its_answer_alone():
    row = answer_example([4, 7, 7], 9)
    assert row == {"input_ids": [4, 7, 7, 9], "attention_mask": [1] * 4, "labels": [-100, -100, -100, 9]}
    at, token = answer_places(torch.tensor([row["labels"]]))
    assert (at.tolist(), token.tolist()) == ([2], [9])


def test_words_are_tokens():
    tokenizer = pico_tokenizer()
    assert word_tokens([" spam", 7], tokenizer) == [tokenizer.convert_tokens_to_ids("Ġspam"), 7]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: answer_loss([3]), r"words: need at least 2 different token ids, found \[3\]"),
        (lambda: answer_loss([3, 3]), r"words: need at least 2 different"),
        (
            lambda: answer_loss([5, 9])(SimpleNamespace(logits=made()[0]), made()[1]),
            r"the token 2 is none of the words",
        ),
        (lambda: answer_loss()(SimpleNamespace(logits=made()[0]), None), r"the batch has no 'labels'"),
        (lambda: answer_places(torch.tensor([3, 4])), r"labels: shape \(2,\), must be \[n, tokens\]"),
        (lambda: answer_places(torch.tensor([[-100, -100]])), r"example 0 of the batch has no answer"),
        (lambda: answer_places(torch.tensor([[-100, 3], [3, -100]])), r"example 1 of the batch has its answer first"),
        (lambda: word_tokens(["zebra"], pico_tokenizer()), r"words: 'zebra' is \d+ tokens, it must be one"),
        (lambda: word_tokens(["spam"], None), r"words: 'spam' is text and the Trainer has no processing_class"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
