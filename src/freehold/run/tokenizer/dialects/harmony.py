"""gpt-oss: the answer is a row of messages, each with a channel and perhaps a recipient.

analysis is thinking, final is text, commentary is text too, or a call if it is meant for functions.NAME. The prompt
ends with <|start|>assistant, so the first message begins with its header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from freehold.run.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    Reading,
    TextSource,
    call_here,
    held_suffix,
    is_name,
)
from freehold.run.tokenizer.dialects.grammar import CallForm

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CALL, RETURN, CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
_TO = re.compile(r"to=functions\.([^\s<]+)")
_CHANNEL = re.compile(r"\s*(\w+)")
_ROLE = re.compile(r"\w*")
_ENDS = (END, CALL, RETURN, START)


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of an analysis message."""

    text: str


class HarmonyParser:
    """Splits an answer into thinking, text and calls. What has no header is text."""

    def __init__(self) -> None:
        self._source = TextSource()
        self._out: list[str | Call | Thought] = []
        self._seen_kinds: set[type] = set()  # kinds of which there was a message already
        self._reading = self._messages()

    def push(self, text: str) -> list[str | Call | Thought]:
        """Add text; return what became certain."""
        self._source.text += text
        next(self._reading, None)
        out, self._out = self._out, []
        return out

    def finish(self) -> list[str | Call | Thought]:
        """Return what was buffered."""
        self._source.ended = True
        return self.push("")

    def _messages(self) -> Reading[None]:
        source = self._source
        while (yield from source.char()):
            if (yield from source.literal(START)):
                yield from source.word(_ROLE)
            begin = source.at
            header = ""
            if (yield from source.literal(CHANNEL, MESSAGE, " to=", "to=")):
                source.at = begin
                header, mark = yield from source.until(MESSAGE, *_ENDS)
                if mark != MESSAGE:  # a message that ended within its header says nothing
                    continue
            to = _TO.search(header)
            if to is not None and is_name(to[1]):
                yield from self._call(to[1])
            else:
                channel = _CHANNEL.match(header.partition(CHANNEL)[2])
                yield from self._stream(Thought if channel is not None and channel[1] == "analysis" else str)

    def _call(self, name: str) -> Reading[None]:
        """Read a call's arguments; what is not a JSON object is text."""
        begin = self._source.at
        call = yield from call_here(self._source, name)
        if call is None:
            self._source.at = begin
            yield from self._stream(str)
            return
        self._out.append(call)
        yield from self._source.space()
        yield from self._source.literal(*_ENDS[:3])

    def _stream(self, kind: type) -> Reading[None]:
        """Give out a message as it comes, up to its end."""
        source = self._source
        lead = "\n" if kind in self._seen_kinds else ""
        while True:
            source.text, source.at = source.text[source.at :], 0
            ends = [at for end in _ENDS if (at := source.text.find(end)) >= 0]
            cut = min(ends) if ends else len(source.text) - held_suffix(source.text, _ENDS)
            cut = len(source.text) if source.ended and not ends else cut
            if cut:
                self._seen_kinds.add(kind)
                self._out.append(kind(lead + source.text[:cut]))
                lead, source.at = "", cut
            if ends:
                yield from source.literal(*_ENDS[:3])
            if ends or source.ended:
                return
            yield


def _no_calls(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Harmony's calls are messages: HarmonyParser reads them."""
    yield from ()
    return None


# <|call|> is the end of the answer, so the form has it not, and one call is all.
FORM = CallForm(
    f"{CHANNEL}commentary to=functions.",
    f" {CONSTRAIN}json{MESSAGE}",
    "",
    thought=(f"{CHANNEL}analysis{MESSAGE}", _ENDS, f"{START}assistant"),
)
HARMONY = Dialect(
    "harmony",
    (Opening(FORM.head),),
    _no_calls,
    marks=(START, MESSAGE, CONSTRAIN, END),
    form=FORM,
    channels=True,
)
