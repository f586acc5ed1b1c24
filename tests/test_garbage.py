"""Collections of garbage visit what requests hold only when that is little."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from freehold.base import garbage
from freehold.base.garbage import AT_LATEST_S, EVERY_S, FEW, OldObjects


class Circle:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


class Hand:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ages() -> Iterator[list[int]]:
    """Note the generation of each automatic collection; the process is as it was afterwards."""
    seen: list[int] = []
    thresholds = gc.get_threshold()

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def old_circle() -> weakref.ref[Circle]:
    circle = Circle()
    gc.collect(0)  # it is older now
    return weakref.ref(circle)


def test_only_young_objects_are_visited_unasked(ages: list[int]):
    garbage.visit_young_only()
    held = [[i] for i in range(40 * garbage.YOUNG)]
    assert len(held) and len(ages) >= 30 and set(ages) == {0}


@pytest.mark.heavy
def test_older_circles_are_freed_while_few_objects_are_in_use(ages: list[int]):
    clock = Hand()
    old = OldObjects(clock)
    gc.disable()
    try:
        circle = old_circle()
        old.look(quiet=True)
        assert circle() is not None, "it is not time yet"
        clock.now = EVERY_S
        old.look(quiet=False)
        assert circle() is not None, "a request holds many objects"
        old.look(quiet=True)
        assert circle() is None
    finally:
        gc.enable()


@pytest.mark.heavy
def test_older_circles_are_freed_at_last_though_many_objects_are_in_use(ages: list[int]):
    clock = Hand()
    old = OldObjects(clock)
    gc.disable()
    try:
        circle = old_circle()
        held = [[i] for i in range(FEW + 1)]
        gc.collect(0)
        clock.now = EVERY_S
        old.look(quiet=True)
        assert len(held) and circle() is not None
        clock.now = AT_LATEST_S
        old.look(quiet=True)
        assert circle() is None
    finally:
        gc.enable()
