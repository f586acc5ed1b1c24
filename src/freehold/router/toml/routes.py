"""Reads [routes.*]: targets in their order, limits, and what watches them; refuses what can never answer.

Knows the file's models, labels, tasks and providers; knows no request.
Path: reading.py -> read_routes -> GatewayRoute
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import cast, get_args

from freehold.config import nearest
from freehold.providers.contract import HOUSE, Provider
from freehold.router.gateway import (
    BreakerLimits,
    Escalation,
    GatewayModel,
    GatewayRoute,
    KeyPolicy,
    Label,
    Period,
    QualityTask,
    Shadow,
    SpendLimit,
    Spread,
)
from freehold.router.price import NANO
from freehold.router.toml.models import NAME, check_hides_nothing
from freehold.router.toml.outside import Outside
from freehold.router.toml.table import TomlTable, shown

MOST_RETRIES = 10
KEEP = ("text",)
_TARGETS = 'targets = ["a-model", "another"], in the order in which they are asked'


@dataclass(frozen=True, slots=True)
class Named:
    """What a route may name."""

    providers: Mapping[str, Provider]
    models: Mapping[str, GatewayModel]
    labels: Mapping[str, Label]
    tasks: Mapping[str, QualityTask]
    routes: Mapping[str, object]  # as they are written

    def allowed(self, labels: Collection[str]) -> frozenset[str]:
        """Return the places where a request with these labels may be."""
        owned = frozenset({HOUSE, *(p.name for p in self.providers.values() if p.owned)})
        places = frozenset({HOUSE, *self.providers})
        for name in labels:
            if (label := self.labels.get(name)) is not None:
                places &= owned if label.stay is None else label.stay | {HOUSE}
        return places


def read_routes(top: TomlTable, named: Named, outside: Outside) -> dict[str, GatewayRoute]:
    """Return the routes by name."""
    routes = {}
    for name, table in top.tables("routes"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        if name in named.models:
            table.bad("", f"a model is called {shown(name)} too", "requests name both: choose another")
        else:
            check_hides_nothing(name, table, outside)
        routes[name] = _route(name, table, named, outside)
        table.end()
    return routes


def _route(name: str, table: TomlTable, named: Named, outside: Outside) -> GatewayRoute:
    targets, labels = _targets(name, table, named, outside), read_labels_of(table, named.labels)
    route = GatewayRoute(
        name=name,
        targets=targets,
        spread=_spread(table),
        task=_task(table, named.tasks),
        labels=labels,
        timeout_s=table.seconds("timeout", 600.0),
        first_token_s=table.seconds("first_token", 30.0),
        retries=table.whole("retries", 1, 0, MOST_RETRIES),
        breaker=_breaker(table),
        escalate=_escalation(table, targets, named.models),
        shadow=_shadow(table, targets, labels, named),
        cache_s=table.seconds("cache", 0.0),
        keep_text=bool(table.choice("keep", KEEP)),
        may_teach=table.flag("may_teach"),
    )
    if table.has("first_token") and route.first_token_s > route.timeout_s:
        table.bad(
            "first_token",
            f"{route.first_token_s:g} s is longer than the timeout of {route.timeout_s:g} s",
            "a first token has to come before the whole answer",
        )
    if route.keep_text and labels:
        table.bad(
            "keep",
            f"texts of requests labelled {', '.join(labels)} are never kept",
            "leave keep out, or the route's label",
        )
    _check_reachable(table, route, named)
    return route


def _check_reachable(table: TomlTable, route: GatewayRoute, named: Named) -> None:
    """Refuse a route whose own labels, or whose targets' terms, allow none of its targets."""
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
                near = nearest(name, [*labels])
                hint = f"did you mean {near}?" if near else f"add a table [labels.{name[:60]}]"
                table.mistakes.add(at, f"there is no label {shown(name)}", hint)
            elif name in names:
                table.mistakes.add(at, f"{shown(name)} is set twice", "write it once")
            else:
                names.append(name)
    return tuple(names)


def _spread(table: TomlTable) -> Spread:
    spread = table.choice("spread", get_args(Spread), "in-order")
    if spread == "least-busy" and table.has("escalate"):
        table.bad("spread", "escalate asks targets in their order", "leave one of the two out")
    return cast(Spread, spread)


# --- targets -----------------------------------------------------------------------------------------


def _targets(name: str, table: TomlTable, named: Named, outside: Outside) -> tuple[str, ...]:
    targets = table.placed("targets")
    if not table.has("targets"):
        table.bad("targets", "the route leads nowhere: it has no target", _TARGETS)
    elif table.value("targets", list) == []:
        table.bad("targets", "the array names no target", _TARGETS)
    for at, target in targets:
        if target in named.models:
            continue
        if target in named.routes:
            circle = target == name or name in _reached(target, named.routes)
            problem = f"{shown(target)} leads back to this route" if circle else f"{shown(target)} is a route"
            table.mistakes.add(at, problem, "targets are models: name the route's own targets here")
        else:
            hint = _other_target(target, named, outside)
            table.mistakes.add(at, f"there is no model {shown(target)}", hint)
    return tuple(target for _, target in targets)


def _other_target(target: str, named: Named, outside: Outside) -> str:
    if target in named.providers:
        return f"{target} is a provider: add a table [models.NAME] with provider = {shown(target)}"
    if outside.has_model is not None and outside.has_model(target):
        return f"the store has it: add a table [models.NAME] with local = {shown(target)}"
    near = nearest(target, [*named.models])
    known = f"the file has: {', '.join(named.models)}" if named.models else "add a table [models.NAME]"
    return f"did you mean {near}?" if near else known


def _reached(start: str, routes: Mapping[str, object]) -> set[str]:
    """Return the routes that a route's targets lead to."""
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
    if name and name not in tasks:
        near = nearest(name, [*tasks])
        hint = f"did you mean {near}?" if near else f"add a table [tasks.{name[:60]}] with bar = 0.85"
        table.bad("task", f"there is no task {shown(name)}", hint)
    return name


# --- limits and watchers -----------------------------------------------------------------------------


def _breaker(table: TomlTable) -> BreakerLimits:
    inside = table.table("breaker")
    if inside is None:
        return BreakerLimits()
    limits = BreakerLimits(inside.whole("failures", 3, 1, 1000), inside.seconds("cooldown", 30.0))
    inside.end()
    return limits


def _escalation(
    table: TomlTable, targets: tuple[str, ...], models: Mapping[str, GatewayModel]
) -> Escalation | None:
    inside = table.table("escalate")
    if inside is None:
        return None
    inside.choice("when", ("logprob",))
    if not inside.has("below"):
        inside.bad("below", "nothing says from which probability on an answer is good enough", "below = 0.2")
    escalation = Escalation(inside.share("below", 0.2, zero=False), inside.whole("check", 64, 1, 4096))
    inside.end()
    known = [name for name in targets if name in models]
    if len(targets) == 1:
        table.bad("escalate", f"nothing comes after {shown(targets[0])}", "add the target to escalate to")
    elif known and targets[0] == known[0] and not _tells(models[known[0]]):
        table.bad(
            "escalate",
            f"{known[0]} reports no log-probabilities, so its answers cannot be judged",
            f"put an owned model first, or say that it can: can = {{ logprobs = true }} in [models.{known[0]}]",
        )
    return escalation


def _tells(model: GatewayModel) -> bool:
    return model.remote is None or model.remote.abilities.logprobs


def _shadow(
    table: TomlTable, targets: tuple[str, ...], labels: tuple[str, ...], named: Named
) -> Shadow | None:
    inside = table.table("shadow")
    if inside is None:
        return None
    for mistake in _shadow_mistakes(inside, targets, labels, named):
        inside.bad("target", *mistake)
    if not inside.has("share"):
        inside.bad("share", "nothing says how many requests are asked twice", "share = 0.02")
    shadow = Shadow(inside.text("target"), inside.share("share", 0.0, zero=False))
    inside.end()
    return shadow


def _shadow_mistakes(
    inside: TomlTable, targets: tuple[str, ...], labels: tuple[str, ...], named: Named
) -> Iterator[tuple[str, str]]:
    target = inside.text("target")
    if not inside.has("target"):
        yield "nothing says which model is asked too", 'target = "a-model"'
    elif target in named.routes:
        yield f"{shown(target)} is a route", "a shadow is one model"
    elif target and target not in named.models:
        near = nearest(target, [*named.models])
        yield f"there is no model {shown(target)}", f"did you mean {near}?" if near else "add its table"
    elif target and targets[:1] == (target,):
        yield f"{shown(target)} is asked first already: it would shadow itself", "name another model"
    elif target and labels and named.models[target].place not in named.allowed(labels):
        yield f"the route's own label never lets a request go to {shown(target)}", "leave shadow out"


# --- reads [tasks.*] and [keys.*], and where the ledger is ------------------------------------------

PERIODS = get_args(Period)
KEY_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]{0,63}")  # as `freehold keys add` takes it
MOST_DOLLARS = 1_000_000_000


def read_tasks(top: TomlTable, outside: Outside) -> dict[str, QualityTask]:
    """Return the tasks by name."""
    tasks = {}
    for name, table in top.tables("tasks"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        if not table.has("bar"):
            table.bad("bar", "the task has no bar", "bar = 0.85: the least score of a model that may answer")
        file = table.text("file")
        if file and "\0" not in file and not (outside.folder / file).is_file():
            table.bad(
                "file", f"there is no file {shown(file)}", f"paths begin at {outside.folder.absolute()}"
            )
        whole = str((outside.folder / file).absolute()) if file else ""
        tasks[name] = QualityTask(name, table.share("bar", 0.0), whole)
        table.end()
    return tasks


def read_keys(top: TomlTable, labels: Mapping[str, Label]) -> dict[str, KeyPolicy]:
    """Return what the file says of keys, by their names."""
    policies = {}
    for name, table in top.tables("keys"):
        if not KEY_NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name for a key",
                "letters, digits and . _ @ + - only, 64 at most, as freehold keys add takes it",
            )
        policies[name] = KeyPolicy(name, _budget(table), read_labels_of(table, labels))
        table.end()
    return policies


def _budget(table: TomlTable) -> SpendLimit | None:
    inside = table.table("budget")
    if inside is None:
        return None
    for key, example in (("usd", "usd = 20"), ("per", 'per = "day"')):
        if not inside.has(key):
            inside.bad(key, f"the budget has no {key}", example)
    dollars, per = inside.number("usd"), inside.choice("per", PERIODS, "day")
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
        shown_or_not = "the address" if "@" in address else shown(address)
        top.bad(
            "ledger", f"{shown_or_not} is not a path", "the ledger is a file: write a path, or leave it out"
        )
    elif not file.parent.is_dir():
        top.bad("ledger", f"there is no folder for {shown(address)}", "make it first")
    return str(file)
