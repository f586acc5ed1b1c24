"""Prompts: a chat rendered and cut to fit, a text, token ids, or a gap between two texts.

Knows messages, templates and token counts; knows no engine and no answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from threading import Lock
from typing import Any, TypedDict

from freehold.base.errors import BadPrompt, ContextOverflow, UnsupportedModel, UsageError
from freehold.base.sandbox.rendering import requested
from freehold.base.serving import Job, snippets
from freehold.base.types import Audio, Image, Message, Tool, Turn
from freehold.run.local.senses import PlacedPicture, PlacedPrompt, Senses
from freehold.run.tokenizer import ChatTemplate, Rendered, Tokenizer
from freehold.run.tokenizer.core import FillTokens, fill_tokens
from freehold.run.tokenizer.dialects import Dialect

ANY_LENGTH = 1 << 40  # a context that every prompt fits, for counting
KEPT = 8  # templates of requests
REQUEST_S = 0.5  # of processor time for one of their renders; a file's template takes some milliseconds
LEAST = 16  # tokens of a picture that are worth proposing
ROOM = 512  # tokens that drop-oldest keeps free for an answer without max_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and what parsing the answer needs to know of them."""

    ids: list[int]
    tags: tuple[str, str] | None = None  # around reasoning
    inside: bool = False  # it ends within an opened thinking block
    dropped: int = 0  # messages left out
    at_start: bool = False  # the answer begins a text of its own
    ends: frozenset[int] = frozenset()  # ids that end this answer beside the model's own
    tools: tuple[Tool, ...] = ()  # that the prompt offers
    dialect: Dialect | None = None  # of the calls in the answer
    shown: frozenset[int] = frozenset()  # control tokens that are marks within the answer
    warnings: tuple[str, ...] = ()  # fields that were not honoured
    pictures: PlacedPrompt | None = None  # those among `ids`


class Prompter:
    """Makes prompts for one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        name: str,
        context: int,
        eyes: Senses | None = None,
    ) -> None:
        self._tokenizer, self._template, self._eyes = tokenizer, template, eyes
        self._name, self._context = name, context
        self._asked: OrderedDict[str, ChatTemplate] = OrderedDict()  # of requests, the latest
        self._lock = Lock()

    @property
    def template(self) -> ChatTemplate:
        """The chat template. Raises UnsupportedModel where there is none."""
        if self._template is None:
            raise UnsupportedModel(
                f"{self._name} has no chat template", "complete plain text: --raw, or LLM.generate"
            )
        return self._template

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    @cached_property
    def fill(self) -> FillTokens | None:
        """The tokens around a gap to be filled, or None."""
        return fill_tokens(self._tokenizer)

    def prompt(self, job: Job) -> Prompt:
        """Return the prompt of a job. Raises UsageError, BadPrompt, BadTemplate, ContextOverflow."""
        if (job.messages is None) == (job.prompt is None):
            raise UsageError("a job has either messages or a prompt", "give one of the two")
        if job.messages is not None:
            return self._chat(job, job.messages)
        for name in ("think", "think_tokens", "effort", "template", "tools"):
            if getattr(job, name) not in (None, (), ""):
                raise UsageError(f"{name} is for chats; a plain prompt has no template that knows it")
        if job.turn != "new":
            raise UsageError(
                "only a chat has a last message to continue from; a plain prompt is continued anyway"
            )
        if job.suffix is not None:
            return self._gap(job, job.suffix)
        ids = (
            self._tokenizer.encode(job.prompt)
            if isinstance(job.prompt, str)
            else self.checked(job.prompt or ())
        )
        if not ids:
            raise BadPrompt("the prompt is empty", "give text or token ids")
        self._check_room(len(ids), answer=job.max_tokens != 0)
        return Prompt(ids)

    def count(self, job: Job) -> int:
        """Return how many tokens the prompt has, whether or not there is room for them."""
        roomy = Prompter(self._tokenizer, self._template, self._name, ANY_LENGTH, self._eyes)
        return len(roomy.prompt(job).ids)

    def render(self, messages: Sequence[Message], think: bool | None, turn: Turn = "new") -> list[int]:
        """Return the ids of a chat, whole."""
        rendered = self._rendered(self.template, messages, think=think, **_ending(turn))
        eyes = self._eyes
        placed = None if eyes is None else eyes.place(rendered, self.template, messages)
        if eyes is None or placed is None:
            return self._tokenizer.encode_rendered(rendered)
        return eyes.marked(placed)

    def checked(self, ids: Sequence[int]) -> list[int]:
        """Return `ids` as a list. Raises UsageError for one outside the vocabulary, and for none at all."""
        checked = self.known(ids)
        if not checked:
            raise UsageError("there are no token ids", "give at least one")
        return checked

    def known(self, ids: Sequence[int]) -> list[int]:
        """Return `ids` as a list. Raises UsageError for a value that is not an integer, or outside the vocabulary."""
        try:
            known = [index(i) for i in ids]
        except TypeError:
            raise UsageError(
                f"not token ids: {str(ids)[:60]}", "give integers, as tokenize returns them, or a text"
            ) from None
        vocabulary = self._tokenizer.vocab_size
        for id in known:
            if not 0 <= id < vocabulary:
                raise UsageError(f"token id {id} is outside the vocabulary of {vocabulary:,}")
        return known

    def _gap(self, job: Job, after: str) -> Prompt:
        """Lay out prefix, suffix and the place between as the model was trained to fill it, after other files."""
        before = job.prompt
        if self.fill is None:
            raise UsageError(f"{self._name} cannot fill a gap: it has no tokens for it", "leave suffix out")
        if not isinstance(before, str):
            raise UsageError("suffix goes with a prompt that is text")
        encode, fill = self._tokenizer.encode, self.fill
        start = encode("", special=True)
        gap = [
            fill.prefix,
            *encode(before, bos=False),
            fill.suffix,
            *encode(after, bos=False),
            fill.middle,
        ]
        room = self._context - len(start) - len(gap) - (job.max_tokens or 1)
        ids = [*start, *self._files(job.beside, fill, room), *gap]
        self._check_room(len(ids))
        return Prompt(ids, ends=fill.ends)

    def _files(self, beside: Sequence[tuple[str, str]], fill: FillTokens, room: int) -> list[int]:
        """Lay out other files before a gap in at most `room` tokens: the last ones, and their ends, stay."""
        encode = self._tokenizer.encode
        if not beside:
            return []
        if fill.files is None:
            ids = encode(snippets(beside), bos=False)
            return ids[max(len(ids) - room, 0) :]
        repository, file = fill.files
        ids = [repository, *encode("project\n", bos=False)]
        for name, text in beside:
            ids += [file, *encode(f"{name or 'file'}\n{text}", bos=False)]
        ids += [file, *encode("this\n", bos=False)]  # the one with the gap
        return ids[max(len(ids) - room, 0) :]

    def _chat(self, job: Job, chat: Sequence[Message]) -> Prompt:
        """Render and tokenize; under drop-oldest leave out as few of the oldest turns as it takes."""
        if job.overflow not in ("error", "drop-oldest"):
            raise UsageError(f"overflow {job.overflow!r} is unknown", "use 'error' or 'drop-oldest'")
        self._check_senses(chat)
        template = self._of(job)
        tools = self._offered(job, template)
        think, effort, warnings = self._levels(job, template)
        dialect = template.dialect
        parsed = dialect if dialect is not None and (tools or dialect.channels) else None
        shown = self._marks(template, parsed)

        opened: dict[int, PlacedPicture] = {}

        def fitted(turns: int) -> Prompt:
            kept = _without_oldest(chat, turns)
            rendered = self._rendered(
                template, kept, tools=tools or None, think=think, effort=effort, **_ending(job.turn)
            )
            # Thinking opens at the beginning of an answer only, and this answer began in an earlier turn.
            begun = job.turn == "continue" and not rendered.in_thinking
            placed, client = None, job.client or job.tenant
            if self._eyes is not None:
                placed = self._eyes.place(rendered, template, kept, opened, client)
            return Prompt(
                self._tokenizer.encode_rendered(rendered) if placed is None else placed.ids,
                None if begun else template.thinking_tags,
                rendered.in_thinking,
                len(chat) - len(kept),
                at_start=job.turn != "continue",
                tools=tools,
                dialect=parsed,
                shown=shown,
                warnings=warnings if placed is None else (*warnings, *placed.notes),
                pictures=placed,
            )

        whole = fitted(0)
        room = min(job.max_tokens or ROOM, self._context // 4) if job.overflow == "drop-oldest" else 1
        limit = self._context - room
        if len(whole.ids) > limit and job.overflow == "drop-oldest":
            turns = range(1, _turns(chat))  # the last turn stays
            fewest = bisect_left(turns, True, key=lambda n: len(fitted(n).ids) <= limit)
            whole = fitted(min(fewest + 1, len(turns)))
        self._check_room(len(whole.ids), answer=job.max_tokens != 0, pictures=whole.pictures)
        return whole

    def _check_senses(self, chat: Sequence[Message]) -> None:
        """Raise UsageError for a picture where the model does not see, and a sound where it does not hear."""
        kinds = frozenset[str]() if self._eyes is None else self._eyes.kinds
        only = (
            "reads text only"
            if not kinds
            else f"reads text and {' and '.join('audio' if k == 'sound' else 'pictures' for k in sorted(kinds))} only"
        )
        for part in (part for message in chat for part in message.parts):
            if isinstance(part, Image) and "picture" not in kinds:
                raise UsageError(
                    f"{self._name} {only}, but the chat has a picture",
                    "use a vision model: freehold list shows which models read pictures",
                )
            if isinstance(part, Audio) and "sound" not in kinds:
                raise UsageError(
                    f"{self._name} {only}, but the chat has audio",
                    "use a model such as Gemma 4 E2B, E4B, 12B or Voxtral, or freehold transcribe for its text",
                )

    def _rendered(self, template: ChatTemplate, chat: Sequence[Message], **options: Any) -> Rendered:
        """Render a chat; a model that sees has marks for its pictures there."""
        if self._eyes is None:
            return template.render(chat, **options)
        return self._eyes.render(template, chat, **options)

    def _of(self, job: Job) -> ChatTemplate:
        """Return the template that renders a job: its own, or the model's."""
        if not job.template:
            return self.template
        with self._lock:
            template = self._asked.pop(job.template, None)
            if template is None:
                template = ChatTemplate.for_tokenizer(
                    job.template, self._tokenizer, origin="the request's own"
                )
                template = replace(template, seconds=REQUEST_S, renderers=requested)
                template = template if self._eyes is None else self._eyes.guarding(template)
            self._asked[job.template] = template
            while len(self._asked) > KEPT:
                self._asked.popitem(last=False)
        return template

    def _offered(self, job: Job, template: ChatTemplate) -> tuple[Tool, ...]:
        """Return the tools to offer: none where the model may call none."""
        if not job.tools or job.tool_choice == "none":
            return ()
        if not template.can_call:
            raise UsageError(
                f"{self._name} cannot call tools: its chat template ({template.origin}) has no place for them",
                "leave tools out, or use a model that was trained to call them",
            )
        return job.tools

    def _levels(self, job: Job, template: ChatTemplate) -> tuple[bool | None, str | None, tuple[str, ...]]:
        """Return think and effort as the template knows them, and a warning for an effort it does not know."""
        if job.effort is None or job.effort in template.efforts:
            return job.think, job.effort, ()
        known = ", ".join(template.efforts)
        left = f"effort {job.effort!r} was left out: {self._name} knows " + (known or "no levels of it")
        think = True if job.think is None and template.thinking == "switch" else job.think
        return think, None, (left,)

    def _marks(self, template: ChatTemplate, dialect: Dialect | None) -> frozenset[int]:
        """Return the control tokens that an answer's thinking and calls are marked with."""
        texts = [*(template.thinking_tags or ())]
        if dialect is not None:
            texts += [*(opening.mark for opening in dialect.openings), *dialect.marks]
        spelled = [token for token in self._tokenizer.control_tokens if any(token in text for text in texts)]
        return frozenset(id for token in spelled if (id := self._tokenizer.added_id(token)) is not None)

    def _check_room(self, tokens: int, answer: bool = True, pictures: PlacedPrompt | None = None) -> None:
        if tokens + answer > self._context:
            if pictures is not None:
                raise self._too_many(tokens, pictures)
            raise ContextOverflow(
                f"prompt has {tokens:,} tokens; {self._name} is loaded with a context of {self._context:,}",
                f"load it with --context {_rounded_up(tokens)}, shorten the prompt, or let "
                "--overflow drop-oldest leave out old messages of a chat",
            )

    def _too_many(self, tokens: int, pictures: PlacedPrompt) -> ContextOverflow:
        """Return the error of a chat that pictures make too long, with the tokens of one that would fit."""
        if "sound" in pictures.senses:
            return self._too_long(tokens, pictures)
        count, shown = len(pictures.pictures), pictures.tokens
        each = (self._context - 1 - (tokens - shown)) // count
        fits = f"; {each:,} tokens each would fit" if each >= LEAST else ""
        how = f"--image-tokens 1:{each} makes them so, or " if each >= LEAST else ""
        what = "1 picture" if count == 1 else f"{count} pictures"
        return ContextOverflow(
            f"prompt has {tokens:,} tokens, {shown:,} of them for {what}; {self._name} is loaded with a context of "
            f"{self._context:,}{fits}",
            f"{how}load it with --context {_rounded_up(tokens)}, send smaller or fewer pictures, or detail low",
        )

    def _too_long(self, tokens: int, shown: PlacedPrompt) -> ContextOverflow:
        """Return the error of a chat that sounds make too long."""
        sounds = [picture for picture in shown.pictures if picture.sense == "sound"]
        rows = sum(sound.plan.tokens for sound in sounds)
        what = "1 recording" if len(sounds) == 1 else f"{len(sounds)} recordings"
        return ContextOverflow(
            f"prompt has {tokens:,} tokens, {rows:,} of them for {what}; {self._name} is loaded with a context of "
            f"{self._context:,}",
            f"load it with --context {_rounded_up(tokens)}, or send shorter or fewer recordings",
        )


class _Ending(TypedDict):
    add_generation_prompt: bool
    continue_final: bool


def _ending(turn: Turn) -> _Ending:
    return {"add_generation_prompt": turn == "new", "continue_final": turn == "continue"}


def _turns(chat: Sequence[Message]) -> int:
    """Count the turns: each begins with a user's message."""
    return max(sum(m.role == "user" for m in chat), 1)


def _without_oldest(chat: Sequence[Message], turns: int) -> list[Message]:
    """Leave out the first `turns` turns, whatever they hold; system messages stay."""
    kept, seen = [], 0
    for message in chat:
        seen += message.role == "user"
        if message.role == "system" or seen > turns or not turns:
            kept.append(message)
    return kept


def _rounded_up(tokens: int) -> int:
    """Return a context that holds `tokens` and a short answer: the next multiple of 1,024."""
    return (tokens + ROOM + 1023) // 1024 * 1024
