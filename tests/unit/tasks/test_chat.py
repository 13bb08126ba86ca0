"""Prompts in a chat template: the tokenizer's own tokens around a message that is text."""

from pathlib import Path

import pytest

from stopwise.network.pico import pico_tokenizer
from stopwise.tasks.batch import TaskError, verbalizers_of
from stopwise.tasks.chat import ChatTask

DATA = Path(__file__).resolve().parents[2] / "data" / "colours.csv"
TASK = {
    "source": {"csv": str(DATA)},
    "text": "text",
    "label": "label",
    "template": "Text: {text}",
    "verbalizers": {"red": " red", "blue": " blue"},
}
SIZES = {"max_tokens": 16, "validation": 4, "test": 4, "train": 8}


@pytest.fixture
def tokenizer():
    made = pico_tokenizer()
    turn = "{{ m.role }}\n{{ m.content }}" + made.eos_token
    made.chat_template = (
        "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}The answer is{% endif %}"
    )
    return made


def task():
    return ChatTask.from_config(TASK, SIZES, name="colours")


def test_tokens_are_those_of_the_tokenizers_own_chat(tokenizer):
    table = task().sample(tokenizer)
    for row in table.to_pylist():
        message = row["prompt"].removeprefix("user\n").removesuffix(tokenizer.eos_token + "The answer is")
        asked = [{"role": "user", "content": message}]
        chat = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert row["input_ids"] == chat
    words = tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert verbalizers_of(table)[0] == words[0]


def test_the_chats_own_tokens_are_no_part_of_the_texts_budget(tokenizer):
    plain, chat = task().max_tokens, task().resolved(tokenizer).max_tokens
    empty = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True, return_dict=False
    )
    assert chat == plain + len(empty)


def test_a_message_that_spells_a_special_token_is_text(tokenizer):
    known = task().resolved(tokenizer)
    example = known.examples[0]
    spelled = type(example)(0, {"text": f"one {tokenizer.eos_token} fire"}, 0, "", "")
    (encoded,) = known._encoded(tokenizer, [spelled])
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_a_chat_template_is_one_line():
    with pytest.raises(TaskError, match=r"^data.chat_template: .* has no chat template"):
        task().sample(pico_tokenizer())
