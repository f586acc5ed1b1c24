"""Reads [labels.*]: where a labelled request may be, and what sets the label without being asked.

Knows providers by name and the detectors' names; runs no detector. Path: reading.py -> read_labels -> Label
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.providers.contract import Provider
from freehold.router.gateway import GatewayModel, Label
from freehold.router.toml.mistakes import shown
from freehold.router.toml.outside import EXTRA
from freehold.router.toml.providers import NAME
from freehold.router.toml.table import TomlTable

DETECTORS = ("pii", "secrets")
MOST_PATTERN = 1000  # characters of an expression


def read_labels(
    top: TomlTable, providers: Mapping[str, Provider], models: Mapping[str, GatewayModel]
) -> dict[str, Label]:
    """Return the labels by name."""
    found_labels = {}
    for name, table in top.tables("labels"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        if not table.has("stay"):
            table.bad("stay", "the label does not say where its requests may be", 'stay = "owned"')
        found_labels[name] = Label(
            name=name,
            stay=_stay(table, providers, models),
            detect=_detectors(table),
            patterns=_patterns(table),
            classifier=_classifier(table, models),
        )
        table.end()
    return found_labels


def _stay(table: TomlTable, providers: Collection[str], models: Collection[str]) -> frozenset[str] | None:
    value = table.value("stay", str, list)
    if isinstance(value, str):
        if value != "owned":
            table.bad(
                "stay",
                f"{shown(value)} is not a place",
                f'stay = "owned", or an array of providers: ["{value[:60] or "box"}"]',
            )
        return None
    if value is None:
        return None
    places = table.placed("stay")
    for at, place in places:
        if place not in providers:
            table.mistakes.add(
                at, f"there is no provider {shown(place)}", _other_place(place, providers, models)
            )
    if not value:
        table.bad("stay", "the array names no place", 'stay = "owned" keeps requests in the house')
    return frozenset(place for _, place in places)


def _other_place(place: str, providers: Collection[str], models: Collection[str]) -> str:
    if place == "owned":
        return 'stay = "owned" takes no array'
    if place in models:
        return f"{place} is a model: a label names providers, and this machine is always allowed"
    near = nearest(place, [*providers])
    return f"did you mean {near}?" if near else f"the file has: {', '.join(providers) or 'none'}"


def _detectors(table: TomlTable) -> tuple[str, ...]:
    detectors = table.placed("detect")
    for at, name in detectors:
        if name not in DETECTORS:
            near = nearest(name, DETECTORS)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(DETECTORS)}"
            table.mistakes.add(at, f"there is no detector {shown(name)}", hint)
    return tuple(name for _, name in detectors)


def _patterns(table: TomlTable) -> tuple[str, ...]:
    placed = table.placed("patterns")
    for at, pattern in placed:
        if why := wrong_pattern(pattern):
            table.mistakes.add(at, f"{shown(pattern)}: {why[0]}", why[1])
    return tuple(pattern for _, pattern in placed)


def wrong_pattern(pattern: str) -> tuple[str, str] | None:
    """Return what is wrong with an expression, and the way out; None for a sound one. Raises UsageError without RE2."""
    try:
        import re2
    except ImportError:
        raise UsageError("patterns of labels need the package google-re2", EXTRA) from None
    if len(pattern) > MOST_PATTERN:
        return f"{len(pattern):,} characters; at most {MOST_PATTERN:,}", "write two patterns"
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as e:
        detail = e.args[0] if e.args else ""
        text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        return f"is not an expression of RE2: {text}", "RE2 has no look-ahead and no back-reference"
    if compiled.search("") is not None:
        return "matches an empty text, so it would label every request", "ask for a character at least"
    return None


def _classifier(table: TomlTable, models: Mapping[str, GatewayModel]) -> str:
    name = table.text("classifier")
    if not name:
        return ""
    if name not in models:
        near = nearest(name, [*models])
        table.bad(
            "classifier",
            f"there is no model {shown(name)}",
            f"did you mean {near}?" if near else f"add a table [models.{name[:60]}] with local = ...",
        )
    elif not models[name].owned:
        table.bad(
            "classifier",
            f"{name} runs at {models[name].place}, which would read every request",
            "a classifier is an owned model",
        )
    return name
