"""`python -m freehold.serve.reports PARENT`: answers the HTTP process, which has no engine that knows families.

A line of JSON a question, [verb, words], and a line an answer: ["", text] or [error's class, message, hint]. It reads
config.toml anew for each, and takes processor time only where answers leave some.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from freehold.base.config import Settings, suggestion
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.sandbox.children import follow_parent

if TYPE_CHECKING:
    from freehold.choose.advisor.interval import Interval


# --- a verb and its words, as a query string has them, to the text that the verb's --json prints ----
# A word that no verb has, or is not a number where one is due, is a UsageError. A model is a name here,
# never a path: the caller may not learn which files there are.
MOST = 1e18  # of any number
Words = Mapping[str, Sequence[str]]
_ON_ONE_LINE = (
    "compare",
    "models",
    "starters",
)  # as eval prints its own; the other is a million characters long
Reader = Callable[[str, Sequence[str]], Any]


def answer(settings: Settings, verb: str, words: Words) -> str:
    """Return what `freehold VERB ... --json` prints. Raises UsageError, ModelNotFound and what else the verb does."""
    if verb not in VERBS:
        raise UsageError(f"verb is {verb[:40]!r}", f"expected {', '.join(VERBS)}")
    known, make = VERBS[verb]
    for name in words:
        if name not in known:
            raise UsageError(
                f"{verb} takes no {name[:40]!r}",
                suggestion(name, list(known), f"it takes {', '.join(known)}"),
            )
    report = make(settings, {name: known[name](name, values) for name, values in words.items()})
    return json.dumps(report, indent=None if verb in _ON_ONE_LINE else 1) + "\n"


# --- kinds of words -------------------------------------------------------------------------------------


def _text(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise UsageError(f"{name} is given {len(values)} times", "give it once")
    return values[0]


def _texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values)


def _number(name: str, values: Sequence[str]) -> float:
    text = _text(name, values)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -MOST <= number <= MOST:
        raise UsageError(f"{name} is {text[:40]!r}; expected a number", "write it in digits: 8192, 0.75")
    return number


def _whole(name: str, values: Sequence[str]) -> int:
    number = _number(name, values)
    if number != int(number):
        raise UsageError(f"{name} is {values[0][:40]}; expected a whole number")
    return int(number)


def _flag(name: str, values: Sequence[str]) -> bool:
    text = _text(name, values)
    if text not in ("0", "1"):
        raise UsageError(f"{name} is {text[:40]!r}; expected 0 or 1")
    return text == "1"


def _range(name: str, values: Sequence[str]) -> Interval:
    from freehold.choose.advisor.interval import Interval

    ends = [_number(name, [part]) for part in _text(name, values).split("-")]
    if not 1 <= len(ends) <= 2 or ends[0] > ends[-1] or ends[0] < 0:
        raise UsageError(f"{name} is {values[0][:40]!r}; expected 20 or 20-40")
    middle = math.sqrt(ends[0] * ends[-1]) if ends[0] else ends[-1] / 2  # as the command line has it
    return Interval(ends[0], middle, ends[-1])


# --- verbs ----------------------------------------------------------------------------------------------


def _fit(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.base.types import KvType
    from freehold.serve.reports.fit import fit_report

    kinds = get_args(KvType)
    if (kind := options.get("kv_type", "f16")) not in kinds:
        raise UsageError(f"kv_type is {kind[:40]!r}", f"expected {', '.join(kinds)}")
    return fit_report(
        settings, _needed(options, "model"), options.pop("context", None), disk=False, **options
    ).as_json()


def _license(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.choose.choosing import company_facts
    from freehold.serve.reports.plain import licences_json, rulings, verdicts_json

    names = options.get("name", ())
    return verdicts_json(rulings(names, company_facts(settings, {}))) if names else licences_json()


def _why(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.serve.reports.card import why_report

    return why_report(settings, _needed(options, "model"), {}, disk=False).as_json()


def _advise(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.choose.choosing import advise, company_facts
    from freehold.serve.reports.plain import as_plain

    facts = company_facts(settings, {"purpose": options.pop("for", None)})
    languages = options.pop("language", ())
    advice = advise(_needed(options, "task"), facts=facts, languages=languages, settings=settings, **options)
    return as_plain(advice) | {"tried": None}


def _cost(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.choose.advisor.breakeven import from_figures
    from freehold.choose.advisor.cost import cost
    from freehold.serve.reports.cost import TRAFFIC, cost_json

    today = date.today()
    figures = {key: options.pop(word) for word, key in TRAFFIC.items() if word in options}
    more = {"bought": options.pop("buy", False), "speed": options.pop("tokens_per_second", None)}
    growth = options.pop("growth", 0.0) / 100
    model = options.pop("model", None)
    return cost_json(cost(model, from_figures(**figures), day=today, growth=growth, **more, **options), today)


def _models(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.serve.reports.models import models_json

    return models_json(settings, **options)


def _starters(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.serve.reports.models import starters_json

    return starters_json(settings)


def _savings(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.route.providers.contract import HOUSE
    from freehold.serve.reports.cost import from_ledger, savings_json

    machines = {HOUSE: options["on"]} if "on" in options else {}
    gateway = Path(options["gateway"]) if "gateway" in options else None
    ledger = Path(options["ledger"]) if "ledger" in options else None
    return savings_json(from_ledger(settings, ledger, gateway, options["days"] * 86400.0, machines))


def _compare(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    from freehold.adapt.evals.results import compare

    return compare(Path(_needed(options, "one")), Path(_needed(options, "other"))).as_json()


def _needed(options: dict[str, Any], name: str) -> str:
    if not options.get(name):
        raise UsageError(f"{name} is missing", f"add {name}=...")
    return options.pop(name)


VERBS: dict[str, tuple[dict[str, Reader], Callable[[Settings, dict[str, Any]], dict[str, Any]]]] = {
    "advise": (
        {
            **dict.fromkeys(("task", "for", "on", "engine"), _text),
            **dict.fromkeys(("country_not", "language"), _texts),
            **dict.fromkeys(("min_context", "users"), _whole),
            **dict.fromkeys(("max_params", "min_speed", "budget"), _number),
            **dict.fromkeys(("cheapest", "held"), _flag),
        },
        _advise,
    ),
    "fit": ({"context": _whole, **dict.fromkeys(("model", "quant", "on", "engine", "kv_type"), _text)}, _fit),
    "license": ({"name": _texts}, _license),
    "why": ({"model": _text}, _why),
    "cost": (
        {
            **dict.fromkeys(("model", "on", "engine", "quant"), _text),
            **dict.fromkeys(("tokens_per_day", "input_share", "cached", "request", "growth"), _number),
            **dict.fromkeys(("buy", "batch"), _flag),
            "users": _whole,
            "against": _texts,
            "tokens_per_second": _range,
        },
        _cost,
    ),
    "models": ({"held": _flag}, _models),
    "starters": ({}, _starters),
    "savings": ({"days": _whole, **dict.fromkeys(("on", "ledger", "gateway"), _text)}, _savings),
    "compare": (dict.fromkeys(("one", "other"), _text), _compare),
}


# --- the process ------------------------------------------------------------------------------------

NICE = 10  # of 19


def main() -> None:
    """Answer until the input ends."""
    follow_parent(int(sys.argv[1]))  # before what takes long to import
    os.nice(NICE)
    for line in sys.stdin:
        verb, words = json.loads(line)
        sys.stdout.write(json.dumps(_answered(verb, words)) + "\n")
        sys.stdout.flush()
        if verb == "models":
            _measure()  # once more while little is known, with no one waiting for it


def _answered(verb: str, words: dict[str, list[str]]) -> list[str]:
    from freehold.base.config import load_settings

    try:
        return ["", answer(load_settings(), verb, words)]
    except FreeholdError as e:
        return [type(e).__name__, e.message, e.hint]


def _measure() -> None:
    from freehold.base.config import load_settings
    from freehold.choose.choosing import here

    with suppress(FreeholdError):
        here(load_settings())


if __name__ == "__main__":
    main()
