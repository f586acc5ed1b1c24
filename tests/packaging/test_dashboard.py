"""The Grafana dashboard asks for series that /metrics has, and its panels lie beside each other."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from freehold.serve.http.core.metrics import Metrics

BOARD = json.loads(
    (Path(__file__).parent.parent.parent / "packaging" / "grafana" / "freehold.json").read_text("utf-8")
)
SERIES = re.compile(r"\b(?:vllm:|freehold_)[a-z_]+\b")


class NoModels:
    def loaded(self) -> list[Any]:
        return []

    def counters(self) -> list[Any]:
        return []


def exposed() -> set[str]:
    """Every series of an exposition: a family's name, and a histogram's three."""
    kinds = re.findall(r"^# TYPE (\S+) (\w+)$", Metrics(NoModels()).exposition().decode(), re.MULTILINE)  # type: ignore[arg-type]
    names = {name for name, _ in kinds}
    return names | {
        f"{name}{end}" for name, kind in kinds if kind == "histogram" for end in ("_bucket", "_sum", "_count")
    }


def expressions() -> list[str]:
    return [t["expr"] for p in BOARD["panels"] for t in p.get("targets", [])]


def test_every_series_that_it_asks_for_is_exposed() -> None:
    asked = {name for expression in expressions() for name in SERIES.findall(expression)}
    asked |= set(SERIES.findall(BOARD["templating"]["list"][1]["query"]["query"]))
    assert len(asked) > 20
    assert asked <= exposed(), sorted(asked - exposed())


def test_counters_are_shown_as_rates_and_gauges_are_not() -> None:
    for expression in expressions():
        for name in SERIES.findall(expression):
            counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert counts == bool(re.search(rf"(rate|increase)\({name}\b", expression)), expression


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = BOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    places = [p["gridPos"] for p in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


def test_it_names_no_data_source_of_one_installation() -> None:
    sources = [t["datasource"]["uid"] for p in BOARD["panels"] for t in p.get("targets", [])]
    assert set(sources) == {"${datasource}"}
    assert BOARD["templating"]["list"][0]["type"] == "datasource"
