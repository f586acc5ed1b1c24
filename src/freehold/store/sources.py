"""Chooses where a reference comes from: URL, hub, package index; a later source where an earlier one fails.

Knows references and the catalogue's entries; fetches nothing.
Path: Store.pull -> planned -> a source's plan
"""

from __future__ import annotations

from contextlib import ExitStack

from freehold import catalog
from freehold.config import Settings
from freehold.errors import DownloadFailed, ModelNotFound
from freehold.store.contract import Plan, WeightSource
from freehold.store.events import Note, OnEvent
from freehold.store.refs import Ref


def planned(
    parsed: Ref, settings: Settings, on_event: OnEvent, stack: ExitStack
) -> tuple[WeightSource, Plan]:
    """Ask the sources in turn; a later one is tried when an earlier one cannot be reached."""
    sources = _sources(parsed, settings)
    for source in sources:
        stack.callback(source.close)
    for source in sources[:-1]:
        try:
            return source, source.plan()
        except (DownloadFailed, ModelNotFound) as e:
            on_event(Note(parsed.text, f"{e.message}; trying the next source"))
    return sources[-1], sources[-1].plan()


def _sources(parsed: Ref, settings: Settings) -> list[WeightSource]:
    """Return the sources of a reference, first choice first. Their HTTP client is imported here only."""
    if parsed.kind == "url":
        from freehold.store.url import UrlSource

        return [UrlSource(parsed.text, settings)]
    if parsed.kind == "hub":
        from freehold.store.hub import HubSource

        return [HubSource(parsed, settings)]
    entry = catalog.find(parsed.text)
    sources: list[WeightSource] = []
    if entry.hub_repo:
        from freehold.store.hub import HubSource

        hub = Ref("hub", entry.name, entry.hub_repo, entry.hub_quant)
        sources.append(HubSource(hub, settings, entry=entry))
    if entry.packages:
        from freehold.store.index import IndexSource

        sources.append(IndexSource(entry))
    return sources
