"""Filter and sort models by their facts; an unknown fact passes no filter that asks for it.

Knows models, no licence terms (advisor/verdict.py judges those) and no machine.
Path: cli/models.py -> select -> Model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

from freehold.catalog.model import Model
from freehold.errors import UsageError

# how each key sorts by itself: names and sizes upwards, dates, contexts and scores from the best
_UPWARDS = ("name", "lab", "params", "active", "cache")
_DOWNWARDS = ("released", "context")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a model; an empty field asks nothing. Texts compare without case."""

    words: tuple[str, ...] = ()  # each occurs in the id, short name, family, lab or architecture
    licence: str = ""  # a part of the licence's id; "unknown" asks for those without one
    country: str = ""  # one of the lab's seats
    country_not: str = ""
    lab: str = ""
    family: str = ""
    architecture: str = ""
    tier: str = ""
    kind: str = ""
    thinking: str = ""
    modality: str = ""
    min_params: float = 0.0  # billions
    max_params: float = 0.0
    min_context: int = 0
    tools: bool = False
    role: str = ""
    language: str = ""  # ISO 639 code that its card names

    def given(self) -> list[str]:
        """Return the names of the fields that ask something."""
        return [f.name for f in fields(self) if getattr(self, f.name)]

    def without(self, field: str) -> Query:
        """Return the same question with one field less."""
        empty = next(f.default for f in fields(self) if f.name == field)
        return replace(self, **{field: empty})


def select(models: Iterable[Model], query: Query) -> list[Model]:
    """Return the models that fit every part of the query, in their order."""
    tests = [_TESTS[name](query) for name in query.given()]
    return [m for m in models if all(test(m) for test in tests)]


def ordered(models: Iterable[Model], key: str, *, reverse: bool = False) -> list[Model]:
    """Sort by name, lab, params, active, cache, released, context or a benchmark; unknown values come last.

    Raises UsageError for a key that is neither, naming the ones there are.
    """
    listed = list(models)
    benchmarks = {s.benchmark for m in listed for s in m.scores}
    if key not in (*_UPWARDS, *_DOWNWARDS, *benchmarks):
        known = ", ".join([*_UPWARDS, *_DOWNWARDS, *sorted(benchmarks)])
        raise UsageError(f"models cannot be sorted by {key!r}", f"keys: {known}")
    known = [m for m in listed if _value(m, key)]
    known.sort(key=lambda m: _value(m, key), reverse=reverse is (key in _UPWARDS))
    return known + [m for m in listed if not _value(m, key)]


def score(model: Model, benchmark: str) -> float | None:
    """Return the best published result in `benchmark`, whatever its setting; None if there is none."""
    return max((s.value for s in model.scores if s.benchmark == benchmark), default=None)


def _value(model: Model, key: str) -> float | str:
    values: dict[str, Callable[[], float | str]] = {
        "name": lambda: model.id.rpartition("/")[2].lower(),
        "lab": lambda: model.lab.lower(),
        "params": lambda: model.params_b,
        "active": lambda: model.active_b,
        "cache": lambda: model.bytes_per_token(0),
        "released": lambda: model.released,
        "context": lambda: model.context,
    }
    return values[key]() if key in values else score(model, key) or 0.0


def _text(model: Model) -> str:
    parts = (model.id, model.name, model.family, model.lab, model.architecture)
    return " ".join(parts).lower()


def _licensed(model: Model, wanted: str) -> bool:
    return not model.licence if wanted == "unknown" else wanted in model.licence.lower()


# field of Query -> the test it makes
_TESTS: dict[str, Callable[[Query], Callable[[Model], bool]]] = {
    "words": lambda q: lambda m: all(w.lower() in _text(m) for w in q.words),
    "licence": lambda q: lambda m: _licensed(m, q.licence.lower()),
    "country": lambda q: lambda m: q.country.upper() in m.countries,
    "country_not": lambda q: lambda m: bool(m.countries) and q.country_not.upper() not in m.countries,
    "lab": lambda q: lambda m: q.lab.lower() in m.lab.lower(),
    "family": lambda q: lambda m: q.family.lower() in m.family.lower(),
    "architecture": lambda q: lambda m: q.architecture.lower() == m.architecture,
    "tier": lambda q: lambda m: q.tier == m.tier,
    "kind": lambda q: lambda m: q.kind == m.kind,
    "thinking": lambda q: lambda m: q.thinking == m.thinking,
    "modality": lambda q: lambda m: q.modality in m.modalities,
    "min_params": lambda q: lambda m: max(m.params_b, m.called_b) >= q.min_params,
    "max_params": lambda q: lambda m: 0 < min(m.params_b, m.called_b) <= q.max_params,
    "min_context": lambda q: lambda m: m.context >= q.min_context,
    "tools": lambda q: lambda m: m.tools is True,
    "role": lambda q: lambda m: q.role == m.role,
    "language": lambda q: lambda m: m.speaks(q.language.lower()) is True,
}
