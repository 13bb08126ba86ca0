"""Prompts as the chat template of an instruct model has them: a user's message, and the beginning of the answer.

The template's own tokens are special ones; the message is text, even where it spells one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stopwise.tasks.answers import single_tokens
from stopwise.tasks.batch import TaskError
from stopwise.tasks.prompts import Encoder, PromptError, Template
from stopwise.tasks.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGE = "\ue000"  # a private character that stands for the message while the chat template is read


@dataclass(frozen=True)
class ChatTask(Task):
    """A task whose prompts are messages; ``before`` and ``after`` are the chat's text around them, once it is known."""

    before: str = ""
    after: str = ""

    def resolved(self, tokenizer: PreTrainedTokenizerBase, positions: int | None = None) -> Task:
        """Return the task with its words chosen and the chat's text around its template.

        The chat's tokens are not taken from the texts' budget ``max_tokens``. Words lose their leading space where the
        answer begins a line and they are single tokens without it. Raises TaskError for a tokenizer without a chat
        template.
        """
        task = super().resolved(tokenizer, positions)
        if self.before or self.after:
            return task
        before, after = chat_texts(tokenizer)
        literals = list(task.template.literals)
        plain, _ = Encoder(tokenizer).batch([task.template.render(dict.fromkeys(task.text, "x"))[0]])
        literals[0], literals[-1] = before + literals[0], literals[-1] + after
        template = Template(tuple(literals), task.template.columns)
        whole = template.render(dict.fromkeys(task.text, "x"))[0]
        encoder = ChatEncoder(tokenizer, before, after)
        more = len(encoder.batch([whole])[0][0]) - len(plain[0])
        bare = {label: word.strip() for label, word in task.verbalizers.items()}
        words = bare if after[-1:].isspace() and single_tokens(bare, encoder, [whole]) else task.verbalizers
        assert isinstance(task, ChatTask)
        made = replace(
            task, before=before, after=after, template=template, verbalizers=words, max_tokens=task.max_tokens + more
        )
        kept = ("read", "rows", "_distinct", "classes", "examples")
        made.__dict__.update({name: value for name, value in task.__dict__.items() if name in kept})
        return made

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Any]:
        try:
            encoder = ChatEncoder(tokenizer, self.before, self.after)
            return encoder.encode(self.template, [e.texts for e in examples], self.max_tokens)
        except PromptError as error:
            raise TaskError(f"{error} (task {self.name!r})") from None

    def verbalizer_ids(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = ()) -> list[int]:
        """Return the token id of each label's word as it begins the answer."""
        prompts = list(prompts) or [found.prompt for found in self._encoded(tokenizer, self.examples[:4])]
        try:
            encoder = ChatEncoder(tokenizer, self.before, self.after)
            return encoder.verbalizer_ids(self.verbalizers, prompts, f"tasks.{self.name}.verbalizers")
        except PromptError as error:
            raise TaskError(str(error)) from None


def chat_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the text that the chat template puts before a user's message, and after it up to the answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            "data.chat_template: the model's tokenizer has no chat template; allowed: false, or an instruct model"
        )
    message: list[dict[str, str]] = [{"role": "user", "content": _MESSAGE}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    before, found, after = text.partition(_MESSAGE)
    if not found:
        raise TaskError(
            "data.chat_template: the tokenizer's chat template leaves the user's message out; allowed: false"
        )
    return before, after


class ChatEncoder(Encoder):
    """An encoder that takes special tokens for such in the chat's text only, and adds no opening tokens of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> None:
        super().__init__(tokenizer)
        self.before, self.after = before, after
        if before or after:
            self.opening = []

    def batch(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the ids of each prompt, the chat's text included, and the character span of each id."""
        if not (self.before or self.after):
            return super().batch(prompts)
        pairs = [self._one(prompt) for prompt in prompts]
        return [ids for ids, _ in pairs], [spans for _, spans in pairs]

    def _one(self, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode in pieces that end and begin at special tokens, where no token of text can reach across."""
        start = prompt.rfind(self.after) if self.after else len(prompt)
        special = [*self._special(prompt, 0, len(self.before)), *self._special(prompt, start, start + len(self.after))]
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for begin, end, token in [*special, (len(prompt), len(prompt), None)]:
            if begin > at:
                found, offsets = super().batch([prompt[at:begin]])
                ids += found[0]
                spans += [(a + at, b + at) for a, b in offsets[0]]
            if token is not None:
                ids.append(token)
                spans.append((begin, end))
            at = end
        return ids, spans

    def _special(self, prompt: str, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return (begin, end, id) of each special token in a part of the chat's own text."""
        found = self.tokenizer(prompt[start:end], add_special_tokens=False, return_offsets_mapping=True)
        known = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [(a + start, b + start, token) for token, (a, b) in pairs if token in known]
