"""When Python's garbage collector looks for circles in a process that serves: never while much is in use.

A collection holds the interpreter for 0.3 us for each object that it visits: 70 ms where requests hold 200,000, and no
other thread runs meanwhile. Nearly all objects are freed as soon as nothing refers to them. So the youngest are visited
in portions as usual, and all others only at a moment when they are few.
Knows numbers of objects; knows no request.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

# Objects made and not yet freed, until the collector looks for circles among them, in 1 to 3 ms. Those of requests in
# progress are no garbage: with Python's 700 its visits to them were a tenth of the time of 32 requests at once.
YOUNG = 10_000
FEW = 40_000  # older objects that a collection visits in about 10 ms
EVERY_S = 60.0
AT_LATEST_S = 600.0  # many or not: what circles keep is freed at last
_NEVER = 1 << 30


def visit_young_only() -> None:
    """Stop automatic collections of older objects, for the whole process: OldObjects decides about those."""
    gc.set_threshold(YOUNG, _NEVER, _NEVER)


class OldObjects:
    """Collects circles among older objects: at most every EVERY_S, while they are few, and after AT_LATEST_S anyway."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Free what starting left, and count what it made as permanent: no collection visits that again."""
        gc.collect()
        gc.freeze()
        self._clock, self._at = clock, clock()

    def look(self, quiet: bool) -> None:
        """Collect if it is time; `quiet`: no request in progress is known to hold many objects."""
        waited = self._clock() - self._at
        if waited < EVERY_S or (waited < AT_LATEST_S and not (quiet and _old() <= FEW)):
            return
        gc.collect()
        self._at = self._clock()


def _old() -> int:
    return sum(len(gc.get_objects(generation=age)) for age in (1, 2))
