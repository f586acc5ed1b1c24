"""How large a request's prompt is, where nothing has the model's tokenizer: its parts, and bounds of its tokens.

Also how much of a prompt the result of one tool call may take.

The upper bound is for reservations: no prompt may cost more than was reserved. Knows text's length, and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Audio, Image, Message

PER_MESSAGE = 8  # tokens of a template around a message, at most
# Tokens of a picture, at most: providers count 85 to 1,600 for one of usual size, Qwen's models up to 16,384.
PER_IMAGE = 16_384
# A picture costs the same with gpt-4o-mini as with gpt-4o, in cheaper tokens: 2,833, and 5,667 for each of 8 tiles.
PER_IMAGE_OF = {"gpt-4o-mini": 48_169}
# Tokens of what a provider writes beside a request: a template's own instructions, and those for tools (Anthropic's,
# some 800).
PER_REQUEST, PER_TOOLS = 128, 1_024
CHARS_PER_TOKEN = 3.0  # a cautious estimate: English and code have three to four
RESULT_SHARE = 0.15  # of a model's context: what the result of one tool call may take
_LEAST_RESULT = 600  # characters


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What a prompt is made of."""

    bytes: int  # of text
    messages: int
    images: int
    ids: int = 0  # tokens that were given as ids
    tools: int = 0

    @property
    def most(self) -> int:
        """Return a number of tokens that the prompt does not exceed.

        A byte-level tokenizer makes at most one token of a byte. Prose has three to four bytes a token; but of
        letters that are no words, such as Qx, released vocabularies make a token each, and a key's holder chooses
        the letters: two a token would let them exceed their budget.
        """
        return self.most_of("")

    def most_of(self, model: str) -> int:
        """Return `most` for a provider's model of this name."""
        named = (tokens for name, tokens in PER_IMAGE_OF.items() if name in model) if self.images else ()
        pictures = self.images * next(iter(named), PER_IMAGE)
        beside = PER_REQUEST + (PER_TOOLS if self.tools else 0)
        return self.bytes + PER_MESSAGE * self.messages + pictures + self.ids + beside

    @property
    def fewest(self) -> int:
        """Return a number of tokens that no tokenizer stays below: eight bytes a token."""
        return self.bytes // 8 + self.ids


def prompt_size(work: Job | EmbedJob) -> PromptSize:
    """Measure a request's prompt."""
    total = images = ids = 0
    for text in _texts(work):
        if isinstance(text, Image | Audio):  # 30 s of sound are 750 tokens, fewer than PER_IMAGE
            images += 1
        elif isinstance(text, str):
            total += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        else:
            ids += len(text)
    if isinstance(work, EmbedJob):
        return PromptSize(total, len(work.texts), images, ids)
    messages = len(work.messages or ()) + len(work.tools) + 1
    return PromptSize(total, messages, images, ids, len(work.tools))


def _texts(work: Job | EmbedJob) -> Iterable[str | tuple[int, ...] | Image | Audio]:
    if isinstance(work, EmbedJob):
        yield from work.texts
        return
    for message in work.messages or ():
        yield from _message(message)
    if work.prompt is not None:
        yield work.prompt
    if work.suffix:
        yield work.suffix
    for name, text in work.beside:
        yield name
        yield text
    for tool in work.tools:
        yield tool.name
        yield tool.description
        yield msgspec.json.encode(tool.parameters).decode()
    if work.format is not None and work.format.source:
        yield msgspec.json.encode(work.format.source).decode()


def _message(message: Message) -> Iterable[str | Image | Audio]:
    yield message.content
    if message.thinking:
        yield message.thinking
    if message.name or message.tool_call_id:
        yield message.name
        yield message.tool_call_id
    for part in message.parts:
        if not isinstance(part, str):
            yield part
    for call in message.tool_calls:
        yield call.id
        yield call.name
        yield call.arguments
    for block in message.signed:
        yield block.text or block.redacted


def result_chars(context: int) -> int:
    """Return how many characters the result of one tool call may have in a context of `context` tokens."""
    return max(int(context * RESULT_SHARE * CHARS_PER_TOKEN), _LEAST_RESULT)


def without_middle(text: str, most: int) -> str:
    """Return a text of about `most` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    head, tail = text[: most * 2 // 3], text[len(text) - most // 3 :]
    return f"{head}\n[{len(text) - len(head) - len(tail):,} characters are left out here]\n{tail}"
