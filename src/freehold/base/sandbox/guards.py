"""What an untrusted template may use, and the checks before an operation allocates.

Filters, tests and methods are those of a list; deadlines and sizes are those of the job that runs. Knows values and
limits; knows no template and nothing of Jinja.
"""

from __future__ import annotations

import contextvars
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from freehold.base.errors import BadTemplate
from freehold.base.sandbox.limits import HINT, MAX_INT_BITS, MAX_ITEMS


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What templates may use: what those of released models do, with some room. A name that is missing here is an error
# that says so. Each is linear in what it is given, or a comparison.
FILTERS = _names(
    "abs capitalize count d default dictsort e escape first float format indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string title tojson "
    "trim truncate unique upper wordcount"
)
TESTS = _names(
    "boolean callable defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le "
    "lessthan lower lt mapping ne none number odd sameas sequence string true undefined upper == != > >= < <="
)
METHODS: dict[type, frozenset[str]] = {
    str: _names(
        "capitalize count endswith expandtabs find format index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind "
        "rindex rpartition rsplit rstrip split splitlines startswith strip title upper"
    ),
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index"),
}

LONG_NUMBER = re.compile(r"\d{5,}")


class Limits:
    """What one job may still use, and the time it sees.

    `seconds` of processor from now on, `text` characters of one string.
    """

    def __init__(self, seconds: float, text: int, now: datetime) -> None:
        self.deadline = time.thread_time() + seconds
        self.seconds = seconds
        self.text = text
        self.now = now

    def tick(self) -> None:
        """Raise BadTemplate when time is up."""
        if time.thread_time() > self.deadline:
            raise BadTemplate(f"the chat template ran longer than {self.seconds:g} s", HINT)

    def check_text(self, size: int) -> None:
        """Raise BadTemplate for a string of `size` characters that is too long."""
        if size > self.text:
            raise BadTemplate(f"the chat template builds more than {self.text:,} characters")


_LIMITS: contextvars.ContextVar[Limits] = contextvars.ContextVar("template_limits")


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Compile and run within `limits`; compiling computes what is constant in a template."""
    token = _LIMITS.set(limits)
    try:
        yield
    finally:
        _LIMITS.reset(token)


def current() -> Limits:
    """Return the limits of the job that runs."""
    return _LIMITS.get()


def check_count(value: int) -> None:
    """Refuse a number of items beyond the limit."""
    if abs(value) > MAX_ITEMS:
        raise BadTemplate(
            f"the chat template uses the number {value:.3g}; at most {MAX_ITEMS:,} is allowed here"
        )


def check_value(value: Any) -> Any:
    """Check the size of a value that an operator, filter or method made."""
    if isinstance(value, str):
        current().check_text(len(value))
    elif isinstance(value, (list, tuple)):
        check_count(len(value))
    return value


def loop(items: Iterable[Any]) -> Iterator[Any]:
    """Walk `items` and check the deadline at each; every `for` of a template goes through here."""
    limits = current()
    for item in items:
        limits.tick()
        yield item


def joined(parts: Iterable[str]) -> str:
    """Join texts, counting their size before each is kept."""
    limits = current()
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        limits.check_text(size)
        kept.append(part)
    return "".join(kept)


def _weigh(value: Any, spent: int = 0) -> int:
    """Count the characters a container spells out; shared parts count each time, as they do in text."""
    limits = current()
    limits.tick()
    items = (*value.keys(), *value.values()) if isinstance(value, dict) else value
    for item in items:
        spent += 2 + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, (list, tuple, dict)):
            spent = _weigh(item, spent)
        limits.check_text(spent)
    return spent


def check_spelled(value: Any) -> Any:
    """Check a value that is about to become text."""
    if isinstance(value, (list, tuple, dict)):
        _weigh(value)
    return value


def check_format(text: str, arguments: Iterable[Any]) -> None:
    """Refuse widths that blow a string up: long numbers, and widths taken from arguments."""
    if LONG_NUMBER.search(text) or "*" in text or re.search(r"\{[^{}:]*+:[^{}]*+\{", text):
        raise BadTemplate("the chat template formats text with a width that is too large or computed")
    for value in arguments:
        if isinstance(value, str):
            current().check_text(len(text) + len(value))
        check_spelled(value)


def _check_replace(text: str, old: Any, new: Any) -> None:
    count = text.count(str(old)) if str(old) else len(text) + 1
    current().check_text(len(text) + count * max(0, len(str(new)) - len(str(old))))


def _check_joined(parts: Any, separator: str) -> None:
    check_spelled(parts)
    if isinstance(parts, (list, tuple, dict, str)):
        current().check_text(len(separator) * len(parts))


def check_method(value: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a method that is not listed, and arguments that would make its result too large."""
    kind = next((kind for kind in METHODS if isinstance(value, kind)), None)
    if kind is None or name not in METHODS[kind]:
        raise BadTemplate(f"the chat template calls {type(value).__name__}.{name}, which is not allowed")
    for argument in arguments:
        if isinstance(argument, int):
            check_count(argument)
    if not isinstance(value, str):
        return
    if name == "replace" and len(arguments) >= 2:
        _check_replace(value, arguments[0], arguments[1])
    elif name == "join" and arguments:
        _check_joined(arguments[0], value)
    elif name == "expandtabs":
        width = arguments[0] if arguments and isinstance(arguments[0], int) else 8
        current().check_text(len(value) + value.count("\t") * max(0, width))


def _check_filter(name: str, arguments: list[Any], keywords: Mapping[str, Any]) -> None:
    for argument in (*arguments[1:], *keywords.values()):
        if isinstance(argument, int):
            check_count(argument)
    subject = arguments[0] if arguments else None
    if name == "replace" and len(arguments) >= 3:
        _check_replace(str(subject), arguments[1], arguments[2])
    elif name == "format":
        check_format(str(subject), (*arguments[1:], *keywords.values()))
    elif name == "indent":
        widths = [a for a in (*arguments[1:], *keywords.values()) if isinstance(a, (int, str))]
        width = max((a if isinstance(a, int) else len(a) for a in widths), default=4)
        current().check_text(len(str(subject)) + (str(subject).count("\n") + 1) * max(0, width))
    elif name == "join":
        _check_joined(subject, str(arguments[1]) if len(arguments) > 1 else str(keywords.get("d", "")))
    elif name == "tojson" and isinstance(keywords.get("indent"), int) and keywords["indent"] > 64:
        raise BadTemplate("the chat template indents JSON by more than 64 spaces")


def listed(parts: Any) -> Any:
    """Make a list of an iterator, so that its sizes can be checked; anything else stays itself."""
    return list(loop(parts)) if isinstance(parts, Iterator) else parts


# These filters pass items on; every other one may spell its subject out.
_KEEPS_ITEMS = _names(
    "length count first last list sort unique items dictsort map select reject selectattr rejectattr default d min "
    "max reverse"
)


def guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter; `wraps` keeps the mark that tells Jinja to pass a context first."""
    hidden = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*arguments: Any, **keywords: Any) -> Any:
        current().tick()
        own = list(arguments[hidden:])
        if name == "join" and own:
            own[0] = listed(own[0])
        if own and name not in _KEEPS_ITEMS:
            check_spelled(own[0])
        _check_filter(name, own, keywords)
        return check_value(function(*arguments[:hidden], *own, **keywords))

    return guarded


def check_product(left: Any, right: Any) -> None:
    """Refuse a product that would be too large."""
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str) and isinstance(times, int):
            current().check_text(len(many) * times)
        elif isinstance(many, (list, tuple)) and isinstance(times, int):
            check_count(len(many) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def check_power(left: Any, right: Any) -> None:
    """Refuse a power of too many bits."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise BadTemplate(f"the chat template computes a number of more than {MAX_INT_BITS} bits")
