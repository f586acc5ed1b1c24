"""A request together with the places where it may be: what a connection is opened for.

The set is computed once (router/labels.py) and can only shrink. hop.py, the one file that opens a connection to a
provider, takes nothing else and checks it again, so that fallback, retry, escalation, shadow, embeddings and counts
cannot send a request where its labels do not let it. Knows no provider and no label's meaning.
Path: router/labels.py -> Cleared -> providers/hop.py
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from freehold.errors import PolicyRefused

HOUSE = "this machine"  # the place of our own engines; every request may be there
W = TypeVar("W")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class SetLabel:
    """A label of a request and what set it: `key alice`, `header`, `route chat`, `pii: card number`, `classifier`."""

    name: str
    by: str


@dataclass(frozen=True, slots=True)
class Cleared(Generic[W]):
    """`work` (a Job, an EmbedJob, texts) and the names of the places where it may be."""

    work: W
    places: frozenset[str]
    labels: tuple[SetLabel, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' names, each once, sorted."""
        return tuple(sorted({label.name for label in self.labels}))

    def check(self, place: str) -> None:
        """Raise PolicyRefused unless the request may be at `place`."""
        if place not in self.places:
            names = ", ".join(self.label_names) or "its route"
            raise PolicyRefused(f"a request labelled {names} may not go to {place}")

    def only(self, places: Iterable[str]) -> Cleared[W]:
        """Return the same request, allowed in those of its places that are among `places`."""
        return replace(self, places=self.places & frozenset(places))

    def with_work(self, work: V) -> Cleared[V]:
        """Return other work made from the same text, allowed in the same places."""
        return Cleared(work, self.places, self.labels)
