"""What a valid gateway.toml means: each route's targets, their places, labels and prices.

Knows a Gateway; sends nothing and prints no key.
"""

from __future__ import annotations

from typing import Any

import click

from freehold.cli.shared import table
from freehold.route.router.gateway import Gateway, GatewayModel, GatewayRoute, SpendLimit
from freehold.route.router.labels import Labeller
from freehold.route.router.price import NANO, PICO_DOLLAR, TokenRates

_HEAD = ("  TARGET", "PLACE", "OWNED", "MODEL", "$/M IN", "CACHED", "OUT", "LABELS ALLOWED")
_PICO = 1_000_000  # pico-dollars a token of a dollar for a million


def show(gateway: Gateway, name: str) -> None:
    """Print a Gateway."""
    counts = ("routes", "models", "providers", "labels", "tasks", "keys")
    summary = ", ".join(
        _counted(len(getattr(gateway, each)), each) for each in counts if getattr(gateway, each)
    )
    click.echo(f"{name} is valid: {summary or 'owned models only'}")
    for route in gateway.routes.values():
        click.echo(f"\nroute {route.name}: {_limits(gateway, route)}")
        table(_HEAD, [_target(gateway, t) for t in route.targets], right=(4, 5, 6))
        for line in [*_longer(gateway, route), *_watchers(gateway, route)]:
            click.echo(f"  {line}")
    named = {target for route in gateway.routes.values() for target in route.targets}
    if rest := [model for model in gateway.models if model not in named]:
        click.echo("\nmodels without a route, used by their name:")
        table(_HEAD, [_target(gateway, model) for model in rest], right=(4, 5, 6))
    for label in gateway.labels.values():
        setters = [
            *label.detect,
            *(f"pattern {p}" for p in label.patterns),
            *filter(None, [label.classifier]),
        ]
        by = f"; set by {', '.join(setters)}" if setters else ""
        places = ", ".join(sorted(Labeller(gateway).places([label.name])))
        click.echo(f"\nlabel {label.name}: allowed at {places}{by}")
    for key in gateway.keys.values():
        labels = f", always {', '.join(key.labels)}" if key.labels else ""
        click.echo(f"\nkey {key.name}: {_budget(key.budget)}{labels}")


def as_rows(gateway: Gateway) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "routes": {
            route.name: {
                "targets": [_row(gateway, target) for target in route.targets],
                "task": route.task or None,
                "labels": list(route.labels),
                "timeout_s": route.timeout_s,
                "first_token_s": route.first_token_s,
                "retries": route.retries,
                "may_teach": route.may_teach,
            }
            for route in gateway.routes.values()
        },
        "models": {name: _row(gateway, name) for name in gateway.models},
        "labels": {name: sorted(Labeller(gateway).places([name])) for name in gateway.labels},
        "keys": {
            key.name: {
                "usd": key.budget.nano / NANO if key.budget else None,
                "per": key.budget.per if key.budget else None,
                "labels": list(key.labels),
            }
            for key in gateway.keys.values()
        },
    }


def _row(gateway: Gateway, name: str) -> dict[str, Any]:
    model = gateway.models[name]
    rates = model.price.rates if model.price is not None else None
    tiers = model.price.tiers if model.price is not None else ()
    return {
        "name": name,
        "place": model.place,
        "owned": model.owned,
        "model": _model(model),
        "usd_per_minute": _minute(model) or None,
        "usd_per_million": _dollars(rates) if rates is not None else None,
        "longer_prompts": [{"over": over, "usd_per_million": _dollars(longer)} for over, longer in tiers],
        "labels": _labels(gateway, model),
        "terms": model.terms or None,
        "may_teach": model.may_teach,
    }


def _target(gateway: Gateway, name: str) -> tuple[str, ...]:
    model = gateway.models[name]
    rates = model.price.rates if model.price is not None else None
    prices = _dollars(rates) if rates is not None else {}
    labels = _labels(gateway, model)
    every = len(labels) == len(gateway.labels)
    return (
        f"  {name}",
        model.place,
        "yes" if model.owned else "no",
        _model(model),
        *(
            f"{prices[word]:g}" if prices and not _minute(model) else "-"
            for word in ("input", "cached", "output")
        ),
        ("all" if every else ", ".join(labels) or "none") if gateway.labels else "-",
    )


def _longer(gateway: Gateway, route: GatewayRoute) -> list[str]:
    """Return a line for each price of longer prompts and of sound, which the table has no room for."""
    lines = []
    for name in route.targets:
        price = gateway.models[name].price
        if minute := _minute(gateway.models[name]):
            lines.append(f"{name}: ${minute:g} per minute of audio")
        for over, rates in price.tiers if price is not None else ():
            dollars = ", ".join(f"{usd:g} {word}" for word, usd in _dollars(rates).items())
            lines.append(f"{name}: for prompts of more than {over:,} tokens $/M {dollars}")
    return lines


def _minute(model: GatewayModel) -> float:
    """Return dollars for a minute of sound; 0 where a model is not sold by it."""
    sound = model.price.sound if model.price is not None else None
    return sound.hour / 60 / PICO_DOLLAR if sound is not None else 0.0


def _model(model: GatewayModel) -> str:
    return model.remote.model if model.remote is not None else model.local


def _dollars(rates: TokenRates) -> dict[str, float]:
    return {word: getattr(rates, word) / _PICO for word in ("input", "cached", "output")}


def _labels(gateway: Gateway, model: GatewayModel) -> list[str]:
    """Return the labels whose requests may go to a model's place."""
    labeller = Labeller(gateway)
    return [label for label in gateway.labels if model.place in labeller.places([label])]


def _limits(gateway: Gateway, route: GatewayRoute) -> str:
    task = gateway.tasks.get(route.task)
    parts = [f"task {task.name} with a bar of {task.bar:g}"] if task is not None else []
    parts += [f"always labelled {', '.join(route.labels)}"] if route.labels else []
    if route.hears:
        parts += ["takes recordings", f"a provider's answer within {route.timeout_s:g} s"]
    else:
        parts += [f"first token within {route.first_token_s:g} s", f"answer within {route.timeout_s:g} s"]
    parts += [f"at most {_counted(route.retries + 1, 'attempts')} per target"]
    parts += ["the least busy first"] if route.spread == "least-busy" else []
    return ", ".join(parts)


def _watchers(gateway: Gateway, route: GatewayRoute) -> list[str]:
    lines = []
    if (cascade := route.escalate) is not None:
        lines.append(
            f"cascade: below a probability of {cascade.below:g} in the first {cascade.check} tokens, it uses the next"
        )
    if (shadow := route.shadow) is not None:
        lines.append(
            f"shadow: {shadow.share:.1%} of requests also go to {shadow.target}, unless a label forbids it"
        )
    if route.may_teach:
        taught = [name for name in route.targets if gateway.models[name].may_teach]
        lines.append(f"answers may train models: uses only {', '.join(taught)}")
    if route.cache_s:
        lines.append(f"answers are cached for {route.cache_s:g} s, separately by key and labels")
    if route.keep_text:
        lines.append("prompts and answers of requests without labels are stored in a file beside the ledger")
    return lines


def _budget(limit: SpendLimit | None) -> str:
    return f"${limit.nano / NANO:,g} a {limit.per}" if limit is not None else "no budget"


def _counted(count: int, plural: str) -> str:
    return f"{count} {plural if count != 1 else plural.removesuffix('s')}"
