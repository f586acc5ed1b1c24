"""Reads what decides over a request: [labels.*], [tasks.*], [routes.*], [keys.*], and where the ledger is.

Refuses routes that can never answer. Knows the file's providers and models, and money as nano-dollars a period; knows
no request and no key's secret, and runs no detector.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import cast, get_args

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.route.providers.contract import Provider
from freehold.route.router.gateway import (
    TRANSCRIPTION,
    BreakerLimits,
    Escalation,
    Gateway,
    GatewayModel,
    GatewayRoute,
    Graduation,
    KeyPolicy,
    Label,
    Period,
    QualityTask,
    Shadow,
    SpendLimit,
)
from freehold.route.router.price import NANO
from freehold.route.router.toml.models import check_hides_nothing
from freehold.route.router.toml.table import EXTRA, Outside, TomlTable, shown

DETECTORS = ("pii", "secrets")
MOST_PATTERN = 1000  # characters of an expression
KEY_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]{0,63}")  # as `freehold keys add` takes it
MOST_DOLLARS = 1_000_000_000
_TARGETS = 'targets = ["a-model", "another"], in the order in which they are asked'


# --- labels ------------------------------------------------------------------------------------------


def read_labels(
    top: TomlTable, providers: Mapping[str, Provider], models: Mapping[str, GatewayModel]
) -> dict[str, Label]:
    """Return the labels by name."""
    labels = {}
    for name, table in top.tables("labels"):
        table.check_name(name)
        table.need("stay", "the label does not say where its requests may be", 'stay = "owned"')
        labels[name] = Label(
            name=name,
            stay=_stay(table, providers, models),
            detect=_detectors(table),
            patterns=_patterns(table),
            classifier=_classifier(table, models),
        )
    return labels


def _stay(table: TomlTable, providers: Collection[str], models: Collection[str]) -> frozenset[str] | None:
    value = table.value("stay", str, list)
    if isinstance(value, str):
        if value != "owned":
            hint = f'stay = "owned", or an array of providers: ["{value[:60] or "box"}"]'
            table.bad("stay", f"{shown(value)} is not a place", hint)
        return None
    if value is None:
        return None
    places = table.placed("stay")
    for at, place in places:
        if place in providers:
            continue
        if place == "owned":
            hint = 'stay = "owned" is not an array'
        elif place in models:
            hint = f"{place} is a model: a label names providers, and this machine is always allowed"
        else:
            listed = f"the file has: {', '.join(providers) or 'none'}"
            table.mistakes.unknown(at, "provider", place, providers, listed)
            continue
        table.mistakes.add(at, f"there is no provider {shown(place)}", hint)
    if not value:
        table.bad("stay", "the array names no place", 'stay = "owned" keeps requests on your machines')
    return frozenset(place for _, place in places)


def _detectors(table: TomlTable) -> tuple[str, ...]:
    detectors = table.placed("detect")
    for at, name in detectors:
        if name not in DETECTORS:
            listed = f"there are: {', '.join(DETECTORS)}"
            table.mistakes.unknown(at, "detector", name, DETECTORS, listed)
    return tuple(name for _, name in detectors)


def _patterns(table: TomlTable) -> tuple[str, ...]:
    patterns = table.placed("patterns")
    for at, pattern in patterns:
        if why := wrong_pattern(pattern):
            table.mistakes.add(at, f"{shown(pattern)}: {why[0]}", why[1])
    return tuple(pattern for _, pattern in patterns)


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
    if name and name not in models:
        hint = f"add a table [models.{name[:60]}] with local = ..."
        table.mistakes.unknown((*table.path, "classifier"), "model", name, models, hint)
    elif name and not models[name].owned:
        problem = f"{name} runs at {models[name].place}, which would read every request"
        table.bad("classifier", problem, "a classifier is an owned model")
    return name


# --- tasks and routes --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named(Gateway):
    """What a route may name: the file so far, and the routes as they are written."""

    written: Mapping[str, object] = field(default_factory=dict)


def read_tasks(top: TomlTable, outside: Outside) -> dict[str, QualityTask]:
    """Return the tasks by name."""
    tasks = {}
    for name, table in top.tables("tasks"):
        table.check_name(name)
        if name == TRANSCRIPTION:
            hint = "choose another name: a recording has no bar"
            table.bad("", f"{TRANSCRIPTION} is the task of routes that take recordings", hint)
        table.need("bar", "the task has no bar", "bar = 0.85: the least score of a model that may answer")
        file = table.text("file")
        if file and "\0" not in file and not (outside.folder / file).is_file():
            table.bad(
                "file", f"there is no file {shown(file)}", f"paths begin at {outside.folder.absolute()}"
            )
        whole = str((outside.folder / file).absolute()) if file else ""
        tasks[name] = QualityTask(name, file=whole, **table.fields(QualityTask, "bar"))
    return tasks


def graduating(models: object, routes: object) -> frozenset[str]:
    """Return the local models that routes with `graduate` will make, from the tables as they are written."""
    if not isinstance(models, dict) or not isinstance(routes, dict):
        return frozenset()
    targets = [
        target
        for route in routes.values()
        if isinstance(route, dict) and isinstance(route.get("graduate"), dict)
        for target in (route["targets"] if isinstance(route.get("targets"), list) else ())
        if isinstance(target, str)
    ]
    tables = [models[target] for target in targets if isinstance(models.get(target), dict)]
    return frozenset(each["local"] for each in tables if isinstance(each.get("local"), str))


def read_routes(top: TomlTable, named: Named, outside: Outside) -> dict[str, GatewayRoute]:
    """Return the routes by name."""
    routes = {}
    for name, table in top.tables("routes"):
        table.check_name(name)
        if name in named.models:
            table.bad("", f"a model is called {shown(name)} too", "requests name both: choose another")
        else:
            check_hides_nothing(name, table, outside)
        routes[name] = _route(name, table, named, outside)
    return routes


def _route(name: str, table: TomlTable, named: Named, outside: Outside) -> GatewayRoute:
    targets, labels = _targets(name, table, named, outside), read_labels_of(table, named.labels)
    route = GatewayRoute(
        name=name,
        targets=targets,
        labels=labels,
        **table.fields(GatewayRoute, "spread"),
        task=_task(table, named.tasks),
        **table.fields(GatewayRoute, "timeout_s", "first_token_s", "retries"),
        breaker=_breaker(table),
        escalate=_escalation(table, targets, named.models),
        shadow=_shadow(table, targets, labels, named),
        **table.fields(GatewayRoute, "cache_s"),
        keep_text=bool(table.choice("keep", ("text",))),
        **table.fields(GatewayRoute, "may_teach"),
        graduate=_graduation(table, targets, named, outside),
    )
    _check_route(table, route, named)
    if route.hears:
        _check_recordings(table, route, named)
    return route


_OF_TEXT = ("first_token", "escalate", "shadow", "cache", "keep", "graduate")


def _check_recordings(table: TomlTable, route: GatewayRoute, named: Named) -> None:
    """Refuse what a route of recordings cannot do, and targets that do not transcribe."""
    for key in _OF_TEXT:
        if table.has(key):
            table.bad(key, f"{key} is for texts, and this route takes recordings", "leave it out")
    for at, target in table.placed("targets"):
        model = named.models.get(target)
        if model is not None and model.remote is not None and not model.remote.abilities.transcription:
            hint = f"name a speech model, or say that it is one: can = {{ transcription = true }} in [models.{target}]"
            table.mistakes.add(at, f"{shown(target)} is not known to transcribe", hint)


def _breaker(table: TomlTable) -> BreakerLimits:
    inside = table.table("breaker")
    if inside is None:
        return BreakerLimits()
    limits = BreakerLimits(**inside.fields(BreakerLimits, "failures", "cooldown_s"))
    inside.end()
    return limits


def _check_route(table: TomlTable, route: GatewayRoute, named: Named) -> None:
    """Refuse what does not go together, and a route whose labels or whose targets' terms allow none of its targets."""
    if table.has("first_token") and route.first_token_s > route.timeout_s:
        problem = f"{route.first_token_s:g} s is longer than the timeout of {route.timeout_s:g} s"
        table.bad("first_token", problem, "a first token has to come before the whole answer")
    if route.spread == "least-busy" and table.has("escalate"):
        table.bad("spread", "escalate tries targets in order", "leave one of the two out")
    if route.keep_text and route.labels:
        problem = f"texts of requests labelled {', '.join(route.labels)} are never kept"
        table.bad("keep", problem, "leave keep out, or the route's label")
    models = [named.models[t] for t in route.targets if t in named.models]
    if models and route.may_teach and not any(model.may_teach for model in models):
        table.bad(
            "may_teach",
            "the terms of none of its targets are known to let answers train a model",
            "may_teach = true of a model, if you have its seller's leave, or another target",
        )
    places = named.allowed(route.labels)
    if models and route.labels and not any(model.place in places for model in models):
        at = ", ".join(dict.fromkeys(model.place for model in models))
        table.bad(
            "label" if table.has("label") else "labels",
            f"{', '.join(route.labels)} allows none of the route's targets ({at})",
            f"add a target at one of: {', '.join(sorted(places))}",
        )


def read_labels_of(table: TomlTable, labels: Mapping[str, Label]) -> tuple[str, ...]:
    """Return the labels that a route or a key sets: `label` or `labels`, one name or several."""
    names: list[str] = []
    for key in ("label", "labels"):
        for at, name in table.placed_or_one(key):
            if name not in labels:
                hint = f"add a table [labels.{name[:60]}]"
                table.mistakes.unknown(at, "label", name, labels, hint)
            elif name in names:
                table.mistakes.add(at, f"{shown(name)} is set twice", "write it once")
            else:
                names.append(name)
    return tuple(names)


def _targets(name: str, table: TomlTable, named: Named, outside: Outside) -> tuple[str, ...]:
    targets = table.placed("targets")
    table.need("targets", "the route leads nowhere: it has no target", _TARGETS)
    if table.value("targets", list) == []:
        table.bad("targets", "the array names no target", _TARGETS)
    for at, target in targets:
        if target in named.models:
            continue
        if target in named.written:
            circle = target == name or name in _reached(target, named.written)
            problem = f"{shown(target)} leads back to this route" if circle else f"{shown(target)} is a route"
            table.mistakes.add(at, problem, "targets are models: name the route's own targets here")
        elif hint := _other_kind(target, named, outside):
            table.mistakes.add(at, f"there is no model {shown(target)}", hint)
        else:
            known = (
                f"the file has: {', '.join(named.models)}" if named.models else "add a table [models.NAME]"
            )
            table.mistakes.unknown(at, "model", target, named.models, known)
    return tuple(target for _, target in targets)


def _other_kind(target: str, named: Named, outside: Outside) -> str:
    """Return the way out for what is a name, but not of a model of the file; "" for any other."""
    if target in named.providers:
        return f"{target} is a provider: add a table [models.NAME] with provider = {shown(target)}"
    if outside.has_model is not None and outside.has_model(target):
        return f"the store has it: add a table [models.NAME] with local = {shown(target)}"
    return ""


def _reached(start: str, routes: Mapping[str, object]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        route = routes.get(waiting.pop())
        targets = route.get("targets") if isinstance(route, dict) else None
        for each in targets if isinstance(targets, list) else ():
            if isinstance(each, str) and each in routes and each not in seen:
                seen.add(each)
                waiting.append(each)
    return seen


def _task(table: TomlTable, tasks: Mapping[str, QualityTask]) -> str:
    name = table.text("task")
    if name and name != TRANSCRIPTION and name not in tasks:
        hint = f"add a table [tasks.{name[:60]}] with bar = 0.85"
        table.mistakes.unknown((*table.path, "task"), "task", name, tasks, hint)
    return name


def _escalation(
    table: TomlTable, targets: tuple[str, ...], models: Mapping[str, GatewayModel]
) -> Escalation | None:
    inside = table.table("escalate")
    if inside is None:
        return None
    inside.need("below", "nothing says from which probability on an answer is good enough", "below = 0.2")
    escalation = Escalation(**inside.fields(Escalation, "when", "below", "check"))
    inside.end()
    known = [name for name in targets if name in models]
    if len(targets) == 1:
        table.bad("escalate", f"nothing comes after {shown(targets[0])}", "add the target to escalate to")
    elif known and targets[0] == known[0]:
        remote = models[known[0]].remote
        if remote is not None and not remote.abilities.logprobs:
            table.bad(
                "escalate",
                f"{known[0]} returns no log-probabilities, so its answers cannot be judged",
                f"put an owned model first, or say that it can: can = {{ logprobs = true }} in [models.{known[0]}]",
            )
    return escalation


def _shadow(
    table: TomlTable, targets: tuple[str, ...], labels: tuple[str, ...], named: Named
) -> Shadow | None:
    inside = table.table("shadow")
    if inside is None:
        return None
    target = inside.text("target")
    problem, hint = _shadow_mistake(target, targets, labels, named)
    if target and problem:
        inside.bad("target", problem, hint)
    inside.need("target", "nothing says which model is asked too", 'target = "a-model"')
    inside.need("share", "nothing says how many requests are asked twice", "share = 0.02")
    shadow = Shadow(target, **inside.fields(Shadow, "share"))
    inside.end()
    return shadow


def _graduation(
    table: TomlTable, targets: tuple[str, ...], named: Named, outside: Outside
) -> Graduation | None:
    inside = table.table("graduate")
    if inside is None:
        return None
    student = inside.text("student")
    inside.need("student", "nothing says which model is taught", 'student = "qwen3:4b"')
    if student and outside.has_model is not None and not outside.has_model(student):
        inside.bad(
            "student", f"{shown(student)} is not downloaded", f"freehold pull {student[:60]} fetches it"
        )
    spend = _spend(inside)
    graduation = Graduation(
        student,
        spend_nano=spend,
        **inside.fields(Graduation, "at", "judge", "share", "by_itself", "idle_s"),
    )
    inside.end()
    models = [named.models[name] for name in targets if name in named.models]
    own = next((i for i, model in enumerate(models) if model.local), None)
    if models and (own is None or own == len(models) - 1):
        table.bad(
            "graduate",
            "the route has no model of its own before the one that teaches it",
            f'targets = ["house-model", "{targets[-1]}"], and [models.house-model] with local = "house-model"',
        )
    if not table.has("task"):
        table.bad("graduate", "the route has no task, whose bar its own model must reach", 'task = "tickets"')
    if not table.has("keep"):
        table.bad("graduate", "no text is kept that could teach", 'keep = "text"')
    if table.has("shadow"):
        table.bad("shadow", "graduate has shadows of its own", "leave shadow out")
    return graduation


_AMOUNT = re.compile(r"(\d{1,7}(?:\.\d{1,9})?) ?USD")


def _spend(inside: TomlTable) -> int:
    text = inside.text("spend")
    if not text:
        return 0
    match = _AMOUNT.fullmatch(text)
    if match is None or Decimal(match[1]) > MOST_DOLLARS:
        inside.bad(
            "spend", f"{shown(text)} is not an amount of at most {MOST_DOLLARS:,} USD", 'spend = "5 USD"'
        )
        return 0
    return round(Decimal(match[1]) * NANO)


def _shadow_mistake(
    target: str, targets: tuple[str, ...], labels: tuple[str, ...], named: Named
) -> tuple[str, str]:
    """Return why a target cannot be a shadow, and the way out; "" where it can."""
    if target in named.written:
        return f"{shown(target)} is a route", "a shadow is one model"
    if target not in named.models:
        return f"there is no model {shown(target)}", suggestion(target, [*named.models], "add its table")
    if targets[:1] == (target,):
        return f"{shown(target)} is asked first already: it would shadow itself", "name another model"
    if labels and named.models[target].place not in named.allowed(labels):
        return f"the route's own label never lets a request go to {shown(target)}", "leave shadow out"
    return "", ""


# --- keys, and the ledger ----------------------------------------------------------------------------


def read_keys(top: TomlTable, labels: Mapping[str, Label]) -> dict[str, KeyPolicy]:
    """Return what the file says of keys, by their names."""
    policies = {}
    for name, table in top.tables("keys"):
        if not KEY_NAME.fullmatch(name):
            hint = "letters, digits and . _ @ + - only, 64 at most, as freehold keys add takes it"
            table.bad("", f"{shown(name)} is not a valid name for a key", hint)
        policies[name] = KeyPolicy(name, _budget(table), read_labels_of(table, labels))
    return policies


def _budget(table: TomlTable) -> SpendLimit | None:
    inside = table.table("budget")
    if inside is None:
        return None
    inside.need("usd", "the budget has no usd", "usd = 20")
    inside.need("per", "the budget has no per", 'per = "day"')
    dollars, per = inside.number("usd"), inside.choice("per", get_args(Period), "day")
    inside.end()
    if dollars is None:
        return None
    if not 0 < dollars <= MOST_DOLLARS:
        inside.bad(
            "usd",
            f"{shown(dollars)} is not above zero and at most {MOST_DOLLARS:,}",
            "write dollars, such as 20; a label with stay keeps a key from rented models altogether",
        )
        return None
    return SpendLimit(round(dollars * NANO), cast(Period, per))


def read_ledger(top: TomlTable, outside: Outside) -> str:
    """Return the ledger's file, "" for the one of the data folder."""
    address = top.text("ledger")
    if not address:
        return ""
    file = outside.folder.absolute() / address
    if "://" in address or "\0" in address:
        quoted = "the address" if "@" in address else shown(address)
        hint = "the ledger is a file: write a path, or leave it out"
        top.bad("ledger", f"{quoted} is not a path", hint)
    elif not file.parent.is_dir():
        top.bad("ledger", f"there is no folder for {shown(address)}", "make it first")
    return str(file)
