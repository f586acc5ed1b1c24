"""Starters: the models that a person begins with who names none; a made-up place stands for the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freehold.base.config import Settings
from freehold.choose import choosing
from freehold.choose.advisor import advice as module
from freehold.choose.advisor.fit import Place
from freehold.choose.advisor.machine import Machine, Rates
from freehold.run.store import sources

INDEX = ["qwen2.5-coder:1.5b", "qwen2.5-coder:0.5b", "smollm2:135m"]  # chat models that the package index has


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Return a function from memory bandwidth and a reachable hub to starters on such a machine."""

    def on(read_gb_s: float, *, hub: bool = False, offline: bool = False, count: int = 3):
        machine = Machine("x", "avx512vnni", 2, 16 << 30, 12 << 30, False, Rates(read_gb_s, 30 * read_gb_s))
        place = Place("this machine", "freehold", machine, refuses=choosing.refusal)
        monkeypatch.setattr(choosing, "here", lambda settings: place)
        monkeypatch.setattr(sources, "hub_reachable", lambda settings: hub)
        settings = Settings(home=tmp_path, offline=offline, adopt=False)
        return choosing.starters(settings, count)

    return on


def test_without_a_hub_the_largest_fast_model_of_the_index_is_the_default(on):
    assert [s.name for s in on(40)] == INDEX
    assert {s.download.source for s in on(40)} == {"package index"}


def test_where_a_download_comes_from_is_looked_for_once_a_model(on, monkeypatch: pytest.MonkeyPatch):
    looked: list[str] = []
    find = choosing.catalog.find
    monkeypatch.setattr(choosing.catalog, "find", lambda name: looked.append(name) or find(name))
    assert on(40) and len(looked) == len(set(looked)) > 3


def test_a_model_below_ten_tokens_a_second_is_no_default(on):
    found = on(12)
    assert found[0].name == "qwen2.5-coder:0.5b"
    assert all(s.pace >= module.PACE for s in found)


def test_where_no_model_is_fast_enough_the_fastest_comes_first(on):
    assert on(0.2)[0].name == "smollm2:135m"


def test_with_a_hub_ranked_models_come_before_those_without_results(on):
    found = on(40, hub=True, count=5)
    assert found[0].name not in INDEX
    assert all(s.download.bytes <= module.MOST_DOWNLOAD and s.download.source == "hub" for s in found)


def test_no_base_model_and_no_model_that_always_reasons_is_a_starter(on):
    found = on(400, hub=True, count=1000)
    assert "gemma3:270m" not in {s.name for s in found}
    assert all(s.model.instructed is not False and s.model.thinking != "only" for s in found)


def test_offline_without_models_there_is_no_starter(on):
    assert on(40, offline=True) == ()


def test_a_starter_says_its_size_disk_and_maker(on):
    first = on(40)[0]
    assert (first.download.bytes, first.disk) == (1_117_320_768, 2 * 1_117_320_768)
    assert first.about == "Alibaba (Qwen): code and chat, 29 languages, Apache-2.0"


def test_the_hub_is_waited_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch, tmp_path):
    waited: list[float | None] = []
    monkeypatch.setattr(sources, "_known", {})
    monkeypatch.setattr(sources.threading.Thread, "join", lambda self, timeout=None: waited.append(timeout))
    monkeypatch.setattr(
        sources.threading.Thread, "start", lambda self: None
    )  # a name look-up that never ends
    settings = Settings(home=tmp_path)
    assert not sources.hub_reachable(settings)
    assert not sources.hub_reachable(settings)  # what is known is not asked again
    assert waited == [sources.WITHIN_S]
    assert not sources.hub_reachable(replace(settings, offline=True))
