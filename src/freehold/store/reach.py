"""Tells within two seconds whether the hub can be reached, before anything is planned on it.

Knows the hub's address and the user's proxies; fetches nothing.
Path: choosing.starters, sources.planned -> hub_reachable -> one request without a body
"""

from __future__ import annotations

import threading
import time

from freehold.config import Settings

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
