"""A Jinja environment for untrusted templates, with limits that give a message.

Knows Jinja; knows no chat and no token. Jinja's own sandbox keeps a template away from Python; it bounds neither
loops in loops nor recursion nor the size of strings. Here filters, tests, globals and methods are those of a list,
every loop step, call and filter checks a deadline, and every operator, filter, method and join that can multiply
text checks sizes *before* it allocates: the guards, which know values and limits and nothing of Jinja. A template that
would exceed a limit ends in BadTemplate. What one operation does inside is beyond these limits, so an untrusted
template is run where it can be killed (renderer.py).
"""

from __future__ import annotations

import contextvars
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from freehold.base.errors import BadTemplate
from freehold.base.sandbox.limits import HINT, MAX_INT_BITS, MAX_ITEMS, MAX_TAGS, MAX_TIME_FORMAT

# --- guards ----------------------------------------------------------------------------------------


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


# --- the environment -------------------------------------------------------------------------------

KEPT = 16  # templates compiled latest


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant wrote; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # type: ignore[reportSelfClsParameterName]
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a namespace holds no name with an underscore first: {name!r}"
            )


class _Dict:
    """The two things a template may do with `dict`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with deadlines and sizes."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(joined)  # type: ignore[assignment]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Look at the result's size before Python computes it."""
        limits = current()
        limits.tick()
        if operator == "**":
            check_power(left, right)
        elif operator == "*":
            check_product(left, right)
        elif operator == "%" and isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
            if isinstance(left, str):
                limits.check_text(len(left) + len(right))
            else:
                check_count(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call `obj` as the sandbox does; built-in methods have their arguments looked at first."""
        current().tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") == "join" and args:
            args = (listed(args[0]), *args[1:])
        if isinstance(owner, (str, bytes, list, dict, tuple, int, float)):
            check_method(owner, getattr(obj, "__name__", ""), (*args, *kwargs.values()))
        return check_value(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Look at widths before `str.format` runs; the sandbox replaces the method with its own function."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def guarded(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, (*args, *kwargs.values()))
            return inner(*args, **kwargs)

        return guarded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then send every loop and every `~` through the guards."""
        tree = super()._parse(source, name, filename)
        for each in list(tree.find_all(nodes.For)):
            each.iter = nodes.Filter(each.iter, "_loop", [], [], None, None).set_lineno(each.lineno)
        for concat in list(tree.find_all(nodes.Concat)):
            strings = nodes.List([nodes.Filter(part, "string", [], [], None, None) for part in concat.nodes])
            concat.nodes = [nodes.Filter(strings, "_concat", [], [], None, None)]
        return tree


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    """Write the time of the job. The C library knows widths (%999999d), and no limit of a result's length."""
    if len(format) > MAX_TIME_FORMAT or LONG_NUMBER.search(format):
        raise BadTemplate(
            f"the chat template formats the time by {len(format):,} characters; "
            f"at most {MAX_TIME_FORMAT}, and no width of five digits, are allowed"
        )
    return current().now.strftime(format)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=check_spelled
    )
    filters = {**environment.filters, "tojson": _tojson}
    environment.filters = {name: guard_filter(name, filters[name]) for name in sorted(FILTERS)}
    environment.filters["_loop"] = loop
    environment.filters["_concat"] = joined
    environment.tests = {name: environment.tests[name] for name in sorted(TESTS)}
    environment.globals = {
        **{name: environment.globals[name] for name in ("range", "joiner", "cycler")},
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
        "dict": _Dict(),
    }
    return environment


def render(
    source: str, renders: Sequence[Mapping[str, Any]], seconds: float, text: int, now: datetime
) -> list[str | BadTemplate]:
    """Return a text, or why there is none, for each of `renders`.

    Raises BadTemplate if `source` does not compile, or if the time is over: there is none left for the others.
    Raises MemoryError.
    """
    with limited(Limits(seconds, text, now)):
        template = _compiled(source)
        return [_rendered(template, variables) for variables in renders]


@lru_cache(KEPT)
def _compiled(source: str) -> jinja2.Template:
    tags = source.count("{%") + source.count("{{")
    if tags > MAX_TAGS:
        raise BadTemplate(f"the chat template has {tags:,} tags; the limit is {MAX_TAGS:,}")
    with _NamedFailures():
        return _environment().from_string(source)


def _rendered(template: jinja2.Template, variables: Mapping[str, Any]) -> str | BadTemplate:
    try:
        with _NamedFailures():
            return template.render(variables)
    except BadTemplate as e:
        current().tick()
        return e


class _NamedFailures:
    """Turn whatever a template can raise into BadTemplate with one line of reason."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, (BadTemplate, MemoryError)):
            return  # without memory no other render can be tried
        if isinstance(error, RecursionError):
            raise BadTemplate("the chat template is nested or recurses too deeply") from error
        if isinstance(error, jinja2.TemplateSyntaxError):
            raise BadTemplate(
                f"the chat template does not parse: {error.message} (line {error.lineno})"
            ) from error
        if isinstance(error, jinja2.TemplateError):
            raise BadTemplate(
                f"the chat template refuses: {error.message or type(error).__name__}"
            ) from error
        raise BadTemplate(f"the chat template fails: {type(error).__name__}: {str(error)[:200]}") from error
