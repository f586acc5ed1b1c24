"""What fields of several protocols have in common: bounds, priorities, keep_alive, schemas, embeddings, pictures.

Knows types and numbers of the wire, and warns of unknown fields; knows no protocol's own fields and no route.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from freehold.base.config import nearest
from freehold.base.errors import UsageError
from freehold.base.serving import MAX_TEXTS, ModelInfo, Vectors
from freehold.base.types import (
    MAX_FORMAT_CHARS,
    MAX_PICTURES,
    MAX_SOUNDS,
    Audio,
    Format,
    Image,
    Part,
    Priority,
    SamplingParams,
)
from freehold.serve.http.core.problems import Refused

if TYPE_CHECKING:
    from freehold.serve.http.core.call import ServerCall

FORCED = 1 << 30  # more tokens than any context holds
LEAST_MASS = 1e-6  # the top_p that stands for 0: the most probable token alone
# Levels of reasoning that clients name -> the three that templates know.
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
ESTIMATED = "the number of tokens is estimated from characters: nothing here counts those of this model"
MAX_WARNINGS = 20  # about the fields of one request
_SHOWN = 60  # characters of a field's name in a warning
_SAMPLING = tuple(each.name for each in dataclasses.fields(SamplingParams))


def doc(text: str) -> Meta:
    """Describe a field, for docs/reference/http.md and the OpenAPI document."""
    return Meta(description=text)


Count = Annotated[int, Meta(ge=0, le=FORCED)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Share = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]
Rank = Annotated[
    Priority | Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None,
    doc("`batch` uses only idle capacity; a number above 0 means batch."),
]


def sampling_of(request: Struct) -> dict[str, Any]:
    """Return the fields of SamplingParams that a request gives, whatever protocol it is of."""
    settings = {name: v for name in _SAMPLING if (v := getattr(request, name, None)) is not None}
    return {**settings, "top_p": LEAST_MASS} if settings.get("top_p") == 0 else settings


def priority(value: Priority | int | None) -> Priority:
    """Return the priority; of vLLM's numbers a lower one goes first, and 0 is the default."""
    if isinstance(value, int):
        return "batch" if value > 0 else "interactive"
    return value or "interactive"


def unknown(name: str, known: Iterable[str], near: str = "") -> str:
    """Return the warning about a field that the request's struct lacks; `near`: the known field it stands for."""
    near = near or nearest(name[:_SHOWN], list(known)) or ""
    return f"unknown field {name[:_SHOWN]!r} was ignored" + (f"; did you mean {near}?" if near else "")


def ignored(name: str, place: str) -> str:
    """Return the warning about a field further in: of `place`."""
    return f"field {name[:_SHOWN]!r} of {place} was ignored"


def finite(logprob: float) -> float:
    """Return a number JSON can hold: a token forbidden by a bias has minus infinity, which vLLM writes as -9999."""
    return logprob if math.isfinite(logprob) else -9999.0


# --- keep_alive, which Ollama brought into use and every surface here takes -------------------------

_FOR_EVER = 100 * 365 * 86400.0  # seconds; what is longer ends on no date that can be written
MAX_DURATION = 256  # characters: eight numbers with their units, and blanks
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?)((?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h)){1,8})")
_PIECE = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")


def seconds(value: float | str | None) -> float | None:
    """Read keep_alive: seconds, or a duration as Go writes it ("1h30m"); a negative one means for ever."""
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > MAX_DURATION:
            raise _bad_duration(value)
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            try:
                value = float(value)
            except ValueError:
                raise _bad_duration(value) from None
        else:
            value = math.fsum(float(n) * _UNITS[u] for n, u in _PIECE.findall(match[2])) * (
                -1 if match[1] else 1
            )
    if math.isnan(value):
        raise _bad_duration("nan")
    return math.inf if value > _FOR_EVER else value


def _bad_duration(value: str) -> Refused:
    message = f"keep_alive is {value[:60]!r}; expected seconds or a duration such as '10m'"
    return Refused(400, message, param="keep_alive")


# --- JSON schemas of answers and of arguments of tools: measured here, and passed on as parsed ------

S = TypeVar("S")
_ON_THE_WIRE = range(-(2**63), 2**64)  # integers that msgpack has
_LONG_DIGITS = re.compile(rb"\d{19}")  # no shorter integer is outside it


def schema_format(schema: dict[str, Any] | bool, at: str) -> Format:
    """Return the format of the JSON schema that is at `at` in the request."""
    return Format("json_schema", bounded(schema, at))


def bounded(schema: S, at: str) -> S:
    """Return the schema, or what holds one. Raises Refused for more than MAX_FORMAT_CHARS as JSON."""
    text = msgspec.json.encode(schema)
    if len(text) > MAX_FORMAT_CHARS:
        raise Refused(400, f"{at} has {len(text):,} bytes; expected at most {MAX_FORMAT_CHARS:,}", param=at)
    if not _LONG_DIGITS.search(text):
        return schema
    return msgspec.convert(json.loads(text, parse_int=_number), type(schema))


def _number(digits: str) -> int | float:
    """Return an integer, or the nearest float where it has more than 64 bits, as the compiler of grammars takes it."""
    number = int(digits)
    return number if number in _ON_THE_WIRE else float(digits)


# --- embeddings: how many texts, vectors as numbers, texts that were cut ----------------------------

MAX_DIMENSIONS = 1 << 16
NUMBER = 21  # bytes of a float32 as JSON, with its comma


def check_count(name: str, texts: Sequence[object]) -> None:
    """Raise Refused for no text, and for more than a request may hold."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise Refused(400, f"{name} has {len(texts):,} texts; expected 1 to {MAX_TEXTS:,}", param=name)


def cut_warnings(vectors: Vectors) -> list[str]:
    """Return a warning that names the texts that were cut, by their numbers; none where all were whole."""
    if not vectors.cut:
        return []
    shown = ", ".join(map(str, vectors.cut[:20])) + (", ..." if len(vectors.cut) > 20 else "")
    return [f"{len(vectors.cut)} texts were cut to the context, as asked: {shown}"]


def as_numbers(vectors: Vectors) -> list[msgspec.Raw]:
    """Return each vector as JSON numbers: one call for all of them would hold the interpreter for long."""
    rows = struct.iter_unpack(f"<{vectors.width}f", vectors.data)
    return [msgspec.Raw(msgspec.json.encode(row)) for row in rows]


def json_size(vectors: Vectors) -> int:
    """Return about how many bytes the vectors take as JSON."""
    return NUMBER * (len(vectors.data) // 4)


# --- the base of the structs that say what whole answers look like, for the OpenAPI document --------
# Handlers build plain objects and do not know these structs; tests/http/test_openapi.py compares the two by field.


class WireReply(Struct, kw_only=True, forbid_unknown_fields=True):
    """An object with these fields and no others."""


# --- pictures in requests ---------------------------------------------------------------------------
# Counted and bounded here, whatever a protocol calls them; an address is fetched by media.py or not at all.
# A request with pictures is refused once its model is known, and only where that reads text alone. So is
# one with sounds.


class Pictures:
    """The pictures and sounds of one request, as far as it was read."""

    def __init__(self) -> None:
        self._places: list[str] = []
        self._first = ""  # place of the first one, and what it is called there
        self._sounds: list[str] = []  # places
        self.addresses: list[str] = []  # places of those that are addresses and were not fetched

    def at_url(self, url: str, where: str, kind: str, detail: str = "") -> Image:
        """Read a `data:` URL, or keep an address. Raises Refused for any other."""
        self._count(where, kind)
        with _refused_at(where):
            image = Image.at(url, detail, where)
        if image.url:
            self.addresses.append(where)
        return image

    def in_base64(self, media_type: str, data: str, where: str, kind: str) -> Image:
        """Read base64; a `media_type` of "" is found by how the picture begins. Raises Refused."""
        self._count(where, kind)
        with _refused_at(where):
            return Image.in_base64(data, media_type, place=where)

    def sound(self, data: str, format: str, where: str) -> Audio:
        """Read a sound in base64; what form it has is seen where it is opened. Raises Refused."""
        self._sounds.append(where)
        if (count := len(self._sounds)) > MAX_SOUNDS:
            raise _unsupported(f"{where} is recording {count}; expected at most {MAX_SOUNDS}", where)
        with _refused_at(where):
            return Audio.in_base64(data, format, where)

    def check(self, call: ServerCall, info: ModelInfo, hosts: Iterable[str] = ()) -> None:
        """Raise Refused where the model does not see or hear what there is, or takes no address and there is one.

        `hosts`: those from which addresses are fetched (media.py). What is found wrong with a picture later has its
        place too.
        """
        if self._sounds:
            self._check_sounds(call, info)
        if not self._places:
            return
        if not info.can_see:
            raise _unsupported(
                f"{self._first}; {info.name} cannot read pictures{_who_sees(call)}", self._places[0]
            )
        if self.addresses and not info.can_fetch:
            place, names = self.addresses[0], ", ".join(sorted(hosts)[:_NAMED])
            where = f"that is fetched only by https from {names}" if names else "and none is fetched here"
            how = "freehold serve --media-host HOST allows one more host"
            message = f"{place} is an address, {where}: send the picture itself, in base64; {how}"
            raise _unsupported(message, place)
        call.fields = {**call.fields, **dict(zip(self._places, self._places, strict=True))}

    def _check_sounds(self, call: ServerCall, info: ModelInfo) -> None:
        if not info.can_listen:
            names = sorted(each.name for each in call.models.loaded() if each.info.can_listen)[:_NAMED]
            able = f"of the models in memory, {', '.join(names)} can" if names else LISTENING
            raise _unsupported(
                f"{self._sounds[0]} is of type 'input_audio'; {info.name} cannot process audio; {able}; "
                "POST /v1/audio/transcriptions turns a recording into text",
                self._sounds[0],
            )
        call.fields = {**call.fields, **dict(zip(self._sounds, self._sounds, strict=True))}

    def _count(self, where: str, kind: str) -> None:
        self._first = self._first or f"{where} is of type {kind!r}"
        self._places.append(where)
        if (count := len(self._places)) > MAX_PICTURES:
            raise _unsupported(f"{where} is picture {count}; expected at most {MAX_PICTURES}", where)


def _who_sees(call: ServerCall) -> str:
    """Return which models would take the pictures, as far as they are known without loading one."""
    names = seeing(call)
    return f"; of the models in memory, {', '.join(names)} can" if names else SEEING


def seeing(call: ServerCall) -> list[str]:
    """Return the models in memory that see, as many of them as a sentence takes."""
    return sorted(each.name for each in call.models.loaded() if each.info.can_see)[:_NAMED]


def hearing(call: ServerCall) -> list[str]:
    """Return the models in memory that transcribe, as many of them as a sentence takes."""
    return sorted(each.name for each in call.models.loaded() if each.info.can_hear)[:_NAMED]


LISTENING = "models with the capability audio in GET /api/tags can, such as Gemma 4 E2B or Voxtral"
SEEING = "; models with the capability vision in GET /api/tags can"
_NAMED = 5  # models of an error


@contextmanager
def _refused_at(where: str) -> Iterator[None]:
    try:
        yield
    except UsageError as e:
        raise _unsupported(e.message, where) from None


def parts_of(pieces: Sequence[Part]) -> tuple[Part, ...]:
    """Return a message's parts; none where there is no picture and no sound among them."""
    return () if all(isinstance(piece, str) for piece in pieces) else tuple(pieces)


def _unsupported(message: str, where: str) -> Refused:
    return Refused(400, message, param=where, code="unsupported_content")
