"""What one client may take of the server, and how a body that is whole becomes a struct.

Knows bytes, seconds and JSON; knows no field of any protocol. Every cap is checked before what it caps is built.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from freehold.serve.http.core.longjson import decoded
from freehold.serve.http.core.problems import Refused

MAX_DEPTH = 64  # nested lists and objects in a body: a schema has two a level, all else at most five
MAX_UNKNOWN = 64  # fields of a body; for each a protocol looks for the nearest known name
_SHOWN = 60  # characters of a refused value
_AT = re.compile(r"^(.*?)(?: - at `(?:key in )?\$(.*)`)?$", re.S)
_HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])")  # of a surrogate pair
_TOGETHER = 64  # items of a list that are converted in one call
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
T = TypeVar("T", bound=msgspec.Struct)


def one_address(host: str) -> str:
    """Return what counts as one address: of IPv6 all of a /64, for a client is given that many."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


class Gone(Exception):
    """The client closed its connection; no answer is sent."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Caps on connections and bodies, and the seconds that a slow client gets."""

    body_bytes: int = 16 << 20  # a 1M-token prompt as ids is 7 MB
    body_containers: int = 1 << 16  # lists and objects; 10,000 messages with pictures and calls have 50,000
    body_names: int = 1 << 17  # of fields: two a list or object,
    # A call of the parser holds the interpreter to its end: an object of 16,384 names takes 2 ms, of 131,072 20;
    body_flat_names: int = 1 << 14  # beside 8 for each list or object; and 262,144 values take 15 ms:
    body_values: int = 1 << 18  # beside lists of numbers alone, which are fields of the body,
    body_numbers: int = (1 << 20) + 1024  # and with them: a 1M-token prompt as ids, and the fields beside it
    body_escapes: int = 1 << 21  # backslashes; a megabyte of them takes a parser's call 2 to 9 ms
    bodies_bytes: int = 512 << 20  # of memory, for all bodies of requests in progress,
    caller_bytes: int = 128 << 20  # and for those of one key, or of one address where there are no keys;
    small_bytes: int = 64 << 10  # but one no longer than this, which takes
    small_weight: int = 1 << 20  # no more than this of memory, always finds room beside any other caller's
    header_bytes: int = 64 << 10
    headers: int = 256
    header_s: float = 15.0  # from the connection, or the request before, to the end of the headers
    body_s: float = 60.0
    upload_bytes: int = 200 << 20  # a file; it goes to the disk as it comes,
    upload_pause_s: float = 30.0  # with no longer a pause in it,
    upload_rate: int = 4096  # and after body_s no slower than this many bytes a second
    sound_bytes: int = 256 << 20  # a recording; it lies on the disk until its request is over,
    sounds_bytes: int = 4 << 30  # with those of all other requests,
    caller_sounds_bytes: int = 1 << 30  # and of the same key, or of one address where there are no keys;
    sound_s: float = 4 * 3600.0  # it may last this many seconds
    idle_s: float = 75.0  # a kept-alive connection with no request
    write_s: float = 60.0  # a client that takes nothing of its stream for so long is dropped
    connections: int = 2048  # where none is idle, one more is let in to ask for /health and /ready alone,
    held_back: int = 16  # and this many of those;
    address_connections: int = 512  # of one address: beyond, its oldest idle one is closed
    # Accepted, until the loop comes to them; beyond, the oldest of the address with most goes.
    waiting: int = 1024
    backlog: int = 4096  # that the kernel holds until they are accepted
    # In progress, of one key or of one address without keys: half of a model's queue.
    caller_requests: int = 256


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; 400 for anything else and for one nested too deep."""
    try:
        value = decoded(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        # Where the other half would run over the body's end msgspec calls the body truncated.
        why = "half a surrogate pair is not a character" if _HALF.search(body) else e
        raise Refused(400, f"the body is not JSON: {why}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is {_shown(value)}; expected an object", code="invalid_json")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


def typed(value: dict[str, Any], kind: type[T], at: str = "") -> T:
    """Convert `value` to the struct `kind`; 400 names the field, what it is and what was expected.

    `at`: the place of `value` in the body, if it is not all of it.
    """
    unknown = len(value.keys() - set(kind.__struct_encode_fields__))
    if unknown > MAX_UNKNOWN:
        raise Refused(400, f"{unknown:,} fields are unknown; expected at most {MAX_UNKNOWN}")
    try:
        return msgspec.convert(_in_portions(value, kind), kind)
    except msgspec.ValidationError as e:
        raise _wrong_field(value, kind, str(e), at) from None


def _in_portions(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Convert the items of long lists one by one, up to the first wrong one; the call for all takes them as they are.

    One call for 60,000 blocks holds the interpreter for 15 ms.
    """
    if all(not isinstance(items, list) or len(items) <= _TOGETHER for items in value.values()):
        return value
    value = dict(value)
    for name, item_kind in _item_kinds(kind):
        items = value.get(name)
        if isinstance(items, list) and len(items) > _TOGETHER:
            done: list[Any] = []
            with suppress(msgspec.ValidationError):
                for item in items:
                    done.append(msgspec.convert(item, item_kind))
            value[name] = done + items[len(done) :]
    return value


@cache
def _item_kinds(kind: type[msgspec.Struct]) -> tuple[tuple[str, type], ...]:
    """Return the fields that may be a list of one kind of objects, each with that kind."""
    kinds: list[tuple[str, type]] = []
    for field in getattr(inspect.type_info(kind), "fields", ()):
        lists = [each for each in _alternatives([field.type]) if isinstance(each, inspect.ListType)]
        items = _alternatives([each.item_type for each in lists])
        if len(items) == 1 and isinstance(items[0], inspect.StructType):
            kinds.append((field.encode_name, items[0].cls))
    return tuple(kinds)


def _wrong_field(value: dict[str, Any], kind: type[msgspec.Struct], message: str, at: str) -> Refused:
    match = _AT.match(message)
    expected, path = (match[1], match[2] or "") if match else (message, "")
    if expected.startswith("Invalid enum value") and (words := _words(kind, path)):
        expected = f"expected {', '.join(words[:-1])} or {words[-1]}"
    missing = re.match(r"Object missing required field `(\w+)`", expected)
    if missing:
        name = f"{at}{path}.{missing[1]}".lstrip(".")
        return Refused(400, f"{name} is missing", param=name, code="missing_required_parameter")
    expected = expected[:1].lower() + expected[1:].replace("`", "")
    name = f"{at}{path}".lstrip(".").replace("[...]", "")
    # msgspec does not say which entry of a mapping it means.
    problem = f"an entry of {name} is wrong" if "[...]" in path else f"{name} is {_shown(_at(value, path))}"
    return Refused(400, f"{problem}: {expected}", param=name or None, code="invalid_value")


def _words(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Return the words that the type of the field at `path` allows; none where it has no one list of them."""
    types = [inspect.type_info(kind)]
    for name, _ in _STEP.findall(path):
        under = [field.type for t in types for field in getattr(t, "fields", ()) if field.name == name]
        types = _alternatives(
            under if name else [t.item_type for t in types if isinstance(t, inspect.ListType)]
        )
    return [str(word) for t in types if isinstance(t, inspect.LiteralType) for word in t.values]


def _alternatives(types: list[inspect.Type]) -> list[inspect.Type]:
    out: list[inspect.Type] = []
    for t in types:
        if isinstance(t, inspect.Metadata):
            out += _alternatives([t.type])
        elif isinstance(t, inspect.UnionType):
            out += _alternatives([*t.types])
        else:
            out.append(t)
    return out


def _at(value: Any, path: str) -> Any:
    """Follow `.a[0].b`."""
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            break
    return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        # Enough to recognise a mistyped value; a prompt does not belong in a log.
        return repr(value if len(value) <= _SHOWN else value[:20] + "...")
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return "null" if value is None else str(value).lower()[:_SHOWN]


def _deeper(value: Any, levels: int) -> bool:
    here = [value]
    for _ in range(levels):
        here = [
            v for o in here for v in (o.values() if isinstance(o, dict) else o) if isinstance(v, dict | list)
        ]
        if not here:
            return False
    return True


def _too_deep() -> Refused:
    return Refused(400, f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
