"""A Jinja environment for untrusted templates, with limits that give a message.

Knows Jinja; knows no chat and no token. Jinja's own sandbox keeps a template away from Python; it bounds neither
loops in loops nor recursion nor the size of strings. Here filters, tests, globals and methods are those of a list,
every loop step, call and filter checks a deadline, and every operator, filter, method and join that can multiply
text checks sizes *before* it allocates (guards.py). A template that would exceed a limit ends in BadTemplate. What one
operation does inside is beyond these limits, so an untrusted template is run where it can be killed (renderer.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from freehold.base.sandbox.guards import (
    FILTERS,
    LONG_NUMBER,
    TESTS,
    Limits,
    check_count,
    check_format,
    check_method,
    check_power,
    check_product,
    check_spelled,
    check_value,
    current,
    guard_filter,
    joined,
    limited,
    listed,
    loop,
)
from freehold.base.sandbox.limits import MAX_TAGS, MAX_TIME_FORMAT

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
        raise BadTemplate(f"the chat template has {tags:,} tags; at most {MAX_TAGS:,} are compiled")
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
