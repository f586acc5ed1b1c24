"""Which labels a request has, what set each, and the places that all of them leave it.

A label is set by the request's key, its header, its route, what a detector finds in its text, or an owned model that
is asked (opt-in). Labels only add. What cannot be examined (token ids, a classifier that fails) has the label.
Knows labels and places; knows no provider's address and opens nothing.
Path: directory.py -> Labeller.clear -> providers/texts.py, detect/, classifier.py -> Cleared -> routing.py
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from freehold.errors import UsageError
from freehold.providers.cleared import HOUSE, Cleared, SetLabel
from freehold.providers.texts import has_tokens, texts_of
from freehold.router.detect.sieve import Sieve
from freehold.router.gateway import Gateway, GatewayRoute, Label
from freehold.serving import EmbedJob, Job, Origin

HEADER = "X-Freehold-Label"
IN_LOOP = 1 << 19  # characters, some 2 ms; longer requests are read in a thread
W = TypeVar("W", Job, EmbedJob)


class Asks(Protocol):
    """Puts a label's question to an owned model; classifier.py."""

    async def says(self, label: Label, texts: Sequence[str]) -> bool:
        """Return whether the label is to be set, True also where the model cannot be asked."""
        ...


class Labeller:
    """The labels of one gateway.toml: made at start and at every reload."""

    def __init__(self, gateway: Gateway, asks: Asks | None = None) -> None:
        self._gateway, self._asks = gateway, asks
        self._reading = tuple(
            label for label in gateway.labels.values() if label.detect or label.patterns or label.classifier
        )
        patterns = [pattern for label in self._reading for pattern in label.patterns]
        detects = any(label.detect or label.patterns for label in self._reading)
        self._sieve = Sieve(patterns) if detects else None
        self._places = {name: self._places_of(label) for name, label in gateway.labels.items()}

    async def clear(self, work: W, origin: Origin, route: GatewayRoute | None = None) -> Cleared[W]:
        """Return the request with the places where it may be. Raises UsageError for a label that does not exist."""
        found = self._stated(origin, route)
        if self._reading:
            found += await self._read(work, {label.name for label in found})
        return Cleared(work, self.places(label.name for label in found), tuple(found))

    def stated(self, origin: Origin, route: GatewayRoute | None = None) -> tuple[SetLabel, ...]:
        """Return the labels that key, header and route set, without reading any text."""
        return tuple(self._stated(origin, route))

    def places(self, labels: Iterable[str]) -> frozenset[str]:
        """Return where a request with these labels may be: this machine, and what every label allows."""
        places = self._gateway.all_places
        for name in labels:
            places &= self._places[name]
        return places

    def _places_of(self, label: Label) -> frozenset[str]:
        """`stay` names further places: the request is on this machine already."""
        return self._gateway.owned_places if label.stay is None else label.stay | {HOUSE}

    def _stated(self, origin: Origin, route: GatewayRoute | None) -> list[SetLabel]:
        found = [SetLabel(name, "header") for name in origin.labels]
        for label in found:
            if label.name not in self._gateway.labels:
                raise self._unknown(label.name)
        if policy := self._gateway.keys.get(origin.key):
            found += [SetLabel(name, f"key {policy.name}") for name in policy.labels]
        if route is not None:
            found += [SetLabel(name, f"route {route.name}") for name in route.labels]
        return found

    def _unknown(self, name: str) -> UsageError:
        names = sorted(self._gateway.labels)
        near = difflib.get_close_matches(name, names, 1)
        guess = f"did you mean {near[0]}? " if near else ""
        known = f"labels here: {', '.join(names)}" if names else "this gateway has no labels"
        return UsageError(f"{HEADER}: there is no label {name!r}", guess + known, field=HEADER)

    async def _read(self, work: Job | EmbedJob, have: set[str]) -> list[SetLabel]:
        """Return the labels that reading the texts sets, beside those that the request has already."""
        missing = [label for label in self._reading if label.name not in have]
        if has_tokens(work):
            return [SetLabel(label.name, "token ids, which are not read") for label in missing]
        if not missing:
            return []
        texts = [text for text in texts_of(work) if text]
        found = await self._detected(missing, texts)
        left = [label for label in missing if all(label.name != known.name for known in found)]
        return found + await self._classified(left, texts)

    async def _detected(self, labels: Iterable[Label], texts: Sequence[str]) -> list[SetLabel]:
        asked = [label for label in labels if label.detect or label.patterns]
        if not asked or self._sieve is None:
            return []
        if sum(map(len, texts)) > IN_LOOP:
            findings = await asyncio.to_thread(self._sieve.find, texts)
        else:
            findings = self._sieve.find(texts)
        return [
            SetLabel(label.name, str(finding))
            for label in asked
            for finding in sorted(findings)
            if finding.kind in label.detect or finding.name in label.patterns
        ]

    async def _classified(self, labels: Iterable[Label], texts: Sequence[str]) -> list[SetLabel]:
        found = []
        for label in labels:
            if label.classifier and (self._asks is None or await self._asks.says(label, texts)):
                found.append(SetLabel(label.name, f"classifier {label.classifier}"))
        return found
