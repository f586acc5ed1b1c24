"""Chat templates, and where files keep them: messages to the prompt a model was trained on.

Knows Jinja templates; knows no token ids and no model. The text is what `transformers` renders, byte for
byte. Which parts of it a user wrote matters to the tokenizer, so a render comes with a guarded twin (core.Rendered),
which is made from a second render.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from freehold.base.errors import BadModelFile, BadTemplate, FreeholdError, UnsupportedModel, UsageError
from freehold.base.regular import read_regular
from freehold.base.sandbox.limits import MAX_SECONDS, MAX_SOURCE, MAX_TEXT
from freehold.base.sandbox.rendering import Renderers, RenderJob, shared
from freehold.base.types import Message, Tool
from freehold.run.tokenizer.core import AddedToken, Cutter, Rendered, Tokenizer
from freehold.run.tokenizer.dialects import Dialect, dialect_of
from freehold.run.tokenizer.directory import read_json
from freehold.run.tokenizer.history import (
    EFFORT,
    MOST_PROBED,
    PLAIN,
    Spelling,
    Traits,
    tool_dict,
    traits_of,
    with_preamble,
    with_tools,
)

Thinking = Literal["none", "switch", "always"]

# Marks where the last message ends. The space after it tells whether the template trims what it writes.
_LEFT_OPEN = "\ue0f2\ue0f3\ue0f2 "
_TAG_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought\n", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
# Gemma's turns: the assistant is called "model" and a system text opens the first user turn.
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' + ns.system "
    "+ (message['content'] | trim) + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the special tokens it may write.

    `origin` says where the source came from. `control_tokens` are the texts that users must not be able to
    write, `vocabulary_tags` the thinking tags that are tokens. `clock` feeds `strftime_now`. Rendering raises
    BadTemplate if the template fails, refuses the messages or exceeds its limits.
    """

    source: str
    origin: str = "given"
    bos_token: str = ""
    eos_token: str = ""
    special_tokens: Mapping[str, str] | None = None  # further variables: pad_token, unk_token, ...
    control_tokens: frozenset[str] = frozenset()
    vocabulary_tags: tuple[str, str] | None = None
    clock: Callable[[], datetime] = datetime.now
    seconds: float = MAX_SECONDS  # of processor, for a render
    renderers: Renderers = shared

    @property
    def is_fallback(self) -> bool:
        """Whether the file has no template and its vocabulary chose one of ours."""
        return self.source in (CHATML, GEMMA)

    @cached_property
    def _defuser(self) -> Defuser:
        return Defuser(self.control_tokens)

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        think: bool | None = None,
        effort: str | None = None,
        **variables: Any,
    ) -> Rendered:
        """Render `messages` into a prompt.

        `continue_final`: the prompt ends where the last message does, an assistant's with text or thinking, so that
        the answer continues from it (there is no generation prompt then). Raise UsageError for any other last message.
        `think` True or False asks for thinking or none; None leaves it to the template. Raise UsageError when
        the template has no such switch and `think` contradicts it, or if `effort` is none of its `efforts`.
        Further `variables` reach the template.
        """
        levels = self._effort_variables(effort)  # levels of thinking: asking for one asks for thinking
        wanted = True if levels and think is None and self.traits.switch else think
        switch = self._think_variables(wanted) | levels
        chat = self._spelling.chat(messages)
        shown = None if tools is None else [tool_dict(tool) for tool in tools]
        if shown and self.dialect is not None and self.dialect.in_system:
            chat = with_tools(chat, shown)
        inputs = _plain({"messages": chat, "tools": shown, **switch, **variables})
        inputs["add_generation_prompt"] = add_generation_prompt and not continue_final
        inputs["messages"] = with_preamble(inputs["messages"], self._system_switch(think))
        last = _left_open(inputs["messages"]) if continue_final else None
        preamble = self._preamble(tools or ())
        text = self._run(_prefaced(inputs, preamble))
        guarded = self._guard(text, inputs, tools or ())
        if last is None:
            return Rendered(text, guarded, in_thinking=self._ends_in_thinking(text))
        end = _end_of_last(text, last)
        return Rendered(text[:end], guarded[:end], in_thinking=self._left_in_thinking(text[:end], last))

    @cached_property
    def dialect(self) -> Dialect | None:
        """How the model calls tools, if the template tells and it is a way that is known."""
        return dialect_of(self.source)

    @cached_property
    def can_call(self) -> bool:
        """Whether tools can be offered: they show in a prompt, and the calls can be read."""
        if self.dialect is None or not self.traits.reads:
            return False
        return self.traits.shows_tools if self.dialect.preamble is None else self.traits.takes_system

    @cached_property
    def traits(self) -> Traits:
        """What probes of the template show; nothing where it does not compile, or not end."""
        with suppress(BadTemplate):
            return traits_of(self.source, self.dialect, self._probed)
        try:  # a chat of one word: perhaps only other probes fail
            self._probed([PLAIN])
        except BadTemplate as e:
            return Traits(dead=e)
        return Traits()

    def prepare(self) -> None:
        """Have the probes rendered while the caller does something else, such as loading weights."""

        def probe() -> None:
            with suppress(FreeholdError):  # the next caller meets it again
                _ = self.traits

        Thread(target=probe, name="freehold-template", daemon=True).start()

    def turns(self, messages: Sequence[Message]) -> list[Message]:
        """Return `messages` as they are rendered: in what order, and which are joined or divided for the template."""
        return [turn for turn in self._spelling.turns(messages) if isinstance(turn, Message)]

    def guarding(self, texts: frozenset[str]) -> ChatTemplate:
        """Return a template that keeps these texts from messages too, as it does control tokens."""
        if texts <= self.control_tokens:
            return self
        return replace(self, control_tokens=self.control_tokens | texts)

    @property
    def _spelling(self) -> Spelling:
        """The form of calls that the template expects, found by rendering one."""
        dialect = self.dialect
        if dialect is None:
            return Spelling()
        traits = self.traits
        return Spelling(
            traits.form, dialect.short_ids, dialect.as_text, traits.single, traits.apart, dialect.channels
        )

    def _preamble(self, tools: Sequence[Tool | Mapping[str, Any]]) -> str:
        """Say what the tools are where the template does not."""
        offered = [tool for tool in tools if isinstance(tool, Tool)]
        if not offered or self.dialect is None or self.dialect.preamble is None or self.traits.shows_tools:
            return ""
        return self.dialect.preamble(offered)

    @cached_property
    def thinking(self) -> Thinking:
        """Whether the model thinks aloud: never, when asked to, or always.

        Found by rendering with each known switch on and off and comparing; a template that opens a thinking block in
        every prompt, or channels, has no switch and always thinks.
        """
        if self.traits.switch:
            return "switch"
        channels = self.dialect is not None and self.dialect.channels
        return "always" if channels or self._ends_in_thinking(self.traits.plain) else "none"

    @cached_property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The texts that open and close thinking, when the template or the vocabulary has them."""
        for tags in _TAG_PAIRS:
            if tags[1] in self.source:
                return tags
        if "</think{}>" in self.source and ":opensource" in self.source:  # Hunyuan's, put together there
            return "<think:opensource>", "</think:opensource>"
        return self.vocabulary_tags

    @property
    def efforts(self) -> tuple[str, ...]:
        """The levels of thinking that the template knows: those that change what it renders."""
        return self.traits.efforts

    def _effort_variables(self, effort: str | None) -> dict[str, Any]:
        if effort is None:
            return {}
        if effort not in self.efforts:
            known = ", ".join(self.efforts)
            hint = f"it knows {known}" if known else "leave it out; think switches thinking where it can be"
            raise UsageError(f"the model's chat template knows no effort {effort!r}", hint)
        return {EFFORT: effort}

    def _think_variables(self, think: bool | None) -> dict[str, Any]:
        if think is None:
            return {}
        switch = self.traits.switch
        if switch is not None:
            return {} if switch.in_system else {switch.name: switch.on if think else switch.off}
        if think != (self.thinking == "always"):
            habit = "always thinks" if self.thinking == "always" else "has no thinking switch"
            raise UsageError(f"the model's chat template {habit}", hint="leave --think and --no-think out")
        return {}

    def _system_switch(self, think: bool | None) -> str:
        """Return the word of the system text that turns thinking on or off, where that is how the template takes it."""
        switch = self.traits.switch if think is not None else None
        return (switch.on if think else switch.off) if switch is not None and switch.in_system else ""

    def _ends_in_thinking(self, text: str) -> bool:
        tags = self.thinking_tags
        return tags is not None and text.rstrip().endswith(tags[0])

    def _left_in_thinking(self, text: str, last: str) -> bool:
        """Tell whether `text`, which ends with what the last message said, ends within an opened thinking block."""
        tags = self.thinking_tags
        if tags is None:
            return False
        opened, closed = last.rfind(tags[0]), last.rfind(tags[1])
        if opened == closed:  # the message has neither: what the template wrote before it tells
            whole = text.rstrip()
            return self._ends_in_thinking(whole[: len(whole) - len(last.strip())])
        return opened > closed

    def _run(self, inputs: Mapping[str, Any]) -> str:
        """Render, unless probes showed that the template cannot: each try would take its whole limit."""
        dead = self.traits.dead if "traits" in self.__dict__ else None
        if dead is not None:
            raise BadTemplate(dead.message, dead.hint)
        result = self._results([inputs], max(MAX_TEXT, 4 * _size(inputs)))[0]
        if isinstance(result, BadTemplate):
            raise result
        return result

    def _probed(self, probes: Sequence[Mapping[str, Any]]) -> Sequence[str | BadTemplate]:
        return self._results(probes, MOST_PROBED)

    def _results(self, inputs: Sequence[Mapping[str, Any]], text: int) -> Sequence[str | BadTemplate]:
        """Render each of `inputs` within one limit of time, and no string beyond `text` characters.

        A template of a file or a request is rendered in a process that can be killed. Ours join the messages' texts
        in a loop, which takes no longer than sending them would.
        """
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, **(self.special_tokens or {})}
        renders = [{"documents": None, **tokens, **each} for each in inputs]
        work = RenderJob(self.source, renders, self.clock(), self.seconds, text)
        if not self.is_fallback:
            return self.renderers.run(work)
        from freehold.base.sandbox.jinja import render

        return render(work.source, work.renders, work.seconds, work.text, work.now)

    def _guard(self, text: str, inputs: dict[str, Any], tools: Sequence[Tool | Mapping[str, Any]]) -> str:
        spelled = Spelled()
        defused = self._defuser.defused(inputs, spelled)
        if not spelled:
            return text
        try:
            second = self._run(_prefaced(defused, self._preamble([self._defused(tool) for tool in tools])))
        except BadTemplate:
            second = ""
        return twin(text, second, spelled, self._defuser)

    def _defused(self, tool: Tool | Mapping[str, Any]) -> Tool | Mapping[str, Any]:
        """Return a tool whose texts have no control token; what they spell is noted where the inputs are defused."""
        if not isinstance(tool, Tool):
            return tool
        texts = {"name": tool.name, "description": tool.description, "parameters": _plain(tool.parameters)}
        return replace(tool, **self._defuser.defused(texts, Spelled()))

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer, *, origin: str = "given") -> ChatTemplate:
        """Bind `source` to the special tokens of `tokenizer`."""
        known = [tags for tags in _TAG_PAIRS if None not in map(tokenizer.token_id, tags)]
        named = {"pad_token": tokenizer.pad_id, "unk_token": tokenizer.unk_id}
        return cls(
            source,
            origin,
            bos_token="" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            eos_token="" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id),
            special_tokens={name: tokenizer.token_text(id) for name, id in named.items() if id is not None},
            control_tokens=tokenizer.control_tokens,
            vocabulary_tags=known[0] if known else None,
        )

    @classmethod
    def default_for(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """Return the format that the vocabulary's control tokens prove: ChatML or Gemma's turns.

        Raise UnsupportedModel when it proves neither; nothing is guessed.
        """
        control = tokenizer.control_tokens
        for name, source, needed in (
            ("ChatML", CHATML, ("<|im_start|>", "<|im_end|>")),
            ("Gemma turns", GEMMA, ("<start_of_turn>", "<end_of_turn>")),
        ):
            if control.issuperset(needed):
                origin = f"{name} (the file has none; its vocabulary has {' and '.join(needed)})"
                return cls.for_tokenizer(source, tokenizer, origin=origin)
        raise UnsupportedModel(
            "the model has no chat template, and its vocabulary shows no known one",
            hint="use --raw to complete plain text",
        )


def _prefaced(inputs: dict[str, Any], preamble: str) -> dict[str, Any]:
    return {**inputs, "messages": with_preamble(inputs["messages"], preamble)}


def _left_open(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message of `chat`; return what it says. Raise UsageError if it cannot be continued."""
    last = chat[-1] if chat else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        raise UsageError(
            "the last message cannot be continued: expected an assistant's, without tool calls",
            "end the chat with the beginning of the answer, or leave it out",
        )
    thought = last.get("reasoning_content") if not last.get("content") else None
    names = ("reasoning_content", "thinking") if thought else ("content",)
    text = last.get(names[0]) or ""
    if not isinstance(text, str):
        raise UsageError("the last message cannot be continued: its content is not text")
    chat[-1] = {**last, **dict.fromkeys(names, text + _LEFT_OPEN)}
    return text


def _end_of_last(text: str, last: str) -> int:
    """Return where the last message ends in a rendered chat: at its mark, or before the space the template trims."""
    mark = _LEFT_OPEN.rstrip()
    end = text.find(mark)
    if end < 0 or mark in text[end + 1 :]:
        why = "leaves it out" if end < 0 else "writes it more than once"
        raise UsageError(
            f"the last message cannot be continued: the model's chat template {why}",
            "end the chat with a user's message",
        )
    if text.startswith(_LEFT_OPEN, end) or not last.strip():
        return end
    return len(text[:end].rstrip())


def _plain(value: Any) -> Any:
    """Rebuild `value` of plain JSON types, so that a template meets no object with methods of its own."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) for key, item in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 0


# --- what a user wrote in a rendered chat: a second render, with control tokens defused -------------
# Control tokens inside messages and tools are defused, one character of each replaced by a private-use one. In-band
# marks in the first render would change what `trim`, `in`, slices and `length` see; the second render is only compared:
# - nothing in the messages resembles a control token (nearly always): no second render at all;
# - both renders agree up to the replaced characters: the second one is the twin;
# - they disagree, because the template looks at control tokens in messages: what both share at either end is
#   the template's; in between, every control token that occurs in a message counts as the user's.

DEFUSED = "\ue0f1"  # a private-use character: not whitespace, not a letter, not a control token


class Defuser:
    """Replaces a character of every control token in a structure of strings.

    A file may name a hundred thousand of them: one regular expression of all would take seconds for a long message,
    and nothing could interrupt it.
    """

    def __init__(self, control_tokens: frozenset[str]) -> None:
        self._tokens = sorted(token for token in control_tokens if token)
        self._cutter = Cutter(AddedToken(0, token, control=True) for token in self._tokens)
        self._longest = max(map(len, self._tokens), default=0)

    def defused(self, value: Any, spelled: Spelled) -> Any:
        """Return a copy of `value` with every string in it defused; note in `spelled` what was met."""
        if isinstance(value, str):
            return self._unfinished(self.without(value, spelled), spelled)
        if isinstance(value, dict):
            return {self.defused(key, spelled): self.defused(item, spelled) for key, item in value.items()}
        return [self.defused(item, spelled) for item in value] if isinstance(value, list) else value

    def without(self, text: str, spelled: Spelled, known: Spelled | None = None) -> str:
        """Return `text` with its control tokens defused, or those among them that are `known`."""
        parts: list[str] = []
        last = 0
        for start, _, token in self._cutter.matches(text):
            if known is None or known.covers(token.text):
                spelled.tokens.add(token.text)
                parts += (text[last:start], DEFUSED)
                last = start + 1
        return "".join((*parts, text[last:])) if parts else text

    def _unfinished(self, text: str, spelled: Spelled) -> str:
        """Defuse the beginning of a control token at the end: the next message could complete it."""
        end = len(text.rstrip())
        for size in range(min(self._longest - 1, end), 0, -1):
            beginning = text[end - size : end]
            at = bisect_right(self._tokens, beginning)  # longer tokens that start with it come right after it
            if at < len(self._tokens) and self._tokens[at].startswith(beginning):
                spelled.beginnings.add(beginning)
                return text[: end - size] + DEFUSED + text[end - size + 1 :]
        return text


@dataclass(slots=True)
class Spelled:
    """What messages spell of control tokens: whole ones, and the beginnings of some."""

    tokens: set[str] = field(default_factory=set)
    beginnings: set[str] = field(default_factory=set)

    def covers(self, token: str) -> bool:
        """Tell whether messages may have written `token`."""
        begun = any(token.startswith(beginning) for beginning in self.beginnings)
        return begun or token in self.tokens

    def __bool__(self) -> bool:
        return bool(self.tokens or self.beginnings)


def twin(text: str, second: str, spelled: Spelled, defuser: Defuser) -> str:
    """Return the guarded twin of `text`, given the second render and the tokens that messages spell."""
    if len(second) == len(text) and all(a == b or b == DEFUSED for a, b in zip(text, second, strict=True)):
        return second
    head = _common(text, second)
    tail = _common(text[head:][::-1], second[head:][::-1])
    middle = text[head : len(text) - tail]
    return text[:head] + defuser.without(middle, Spelled(), spelled) + text[len(text) - tail :]


def _common(left: str, right: str) -> int:
    """Count the characters that both strings start with."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


# --- chat templates as files keep them: a GGUF's metadata, a model directory's JSON and .jinja files


def templates_from_gguf(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the chat templates in a GGUF file's metadata by name; the main one is called "default"."""
    main = "tokenizer.chat_template"
    sources = {
        "default" if key == main else key.removeprefix(f"{main}."): source
        for key, source in metadata.items()
        if key == main or (key.startswith(f"{main}.") and key != f"{main}.")
    }
    return {name: source for name, source in sources.items() if isinstance(source, str) and source}


def templates_from_dir(path: str | Path) -> dict[str, str]:
    """Return a model directory's chat templates by name; a chat_template.jinja wins over the config's."""
    folder = Path(path)
    sources: dict[str, str] = {}
    config = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(config, str):
        sources["default"] = config
    elif isinstance(config, list):
        named = [entry for entry in config if isinstance(entry, dict)]
        sources |= {str(entry.get("name")): str(entry.get("template")) for entry in named}
    files = {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (main := folder / "chat_template.jinja").is_file():
        files["default"] = main
    for name, file in files.items():
        try:
            sources[name] = read_regular(file, 4 * MAX_SOURCE).decode("utf-8")
        except OSError as error:
            raise BadModelFile(f"{file} is not a chat template: {error.strerror}") from error
        except ValueError as error:
            raise BadModelFile(f"{file} is not UTF-8: {error}") from error
    return sources


def chat_template_from_gguf(
    metadata: Mapping[str, object], tokenizer: Tokenizer, *, name: str = "default"
) -> ChatTemplate:
    """Return the chat template `name` of a GGUF file, or the format its vocabulary proves if it has none.

    Raise UnsupportedModel without either, UsageError for a name the file does not have.
    """
    return _chosen(templates_from_gguf(metadata), tokenizer, name, "GGUF tokenizer.chat_template")


def chat_template_from_dir(path: str | Path, tokenizer: Tokenizer, *, name: str = "default") -> ChatTemplate:
    """Return the chat template `name` of a model directory, as `chat_template_from_gguf` does for a file."""
    return _chosen(templates_from_dir(path), tokenizer, name, os.fspath(path))


def _chosen(sources: Mapping[str, str], tokenizer: Tokenizer, name: str, origin: str) -> ChatTemplate:
    if name in sources:
        return ChatTemplate.for_tokenizer(sources[name], tokenizer, origin=f"{origin} ({name})")
    if name != "default":
        known = ", ".join(sources) or "none"
        raise UsageError(f"the model has no chat template called {name!r}", hint=f"it has: {known}")
    return ChatTemplate.default_for(tokenizer)
