"""A report stands alone, escapes what it is given, and draws what it says."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.choose.advisor.report import (
    Axis,
    Bar,
    Point,
    Section,
    Span,
    TornadoBar,
    bars,
    figure,
    page,
    paragraph,
    scatter,
    spans,
    standalone,
    table,
    tornado,
)

SVG = "{http://www.w3.org/2000/svg}"
LOG = Axis("tokens a day", log=True)


def rects(svg: str, class_: str) -> list[ElementTree.Element]:
    return [r for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if r.get("class") == class_]


def report() -> str:
    drawn = figure(lambda w: bars([Bar("<api>", (3.0,), "$3")], title="a & b", width=w), "one <b>bar</b>")
    parts = (drawn, table(("<i>", "$"), [("x & y", "1")], right=(1,)), paragraph("a < b"))
    return page("T <script>", "lead & more", [Section("H <h>", parts)], ["foot <f>"])


def test_a_page_takes_nothing_from_elsewhere():
    text = report()
    assert "<script" not in text and "<link" not in text and "@import" not in text and "url(" not in text
    assert not re.findall(r"""(?:src|href)=""", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}


def test_given_text_never_becomes_markup():
    text = report()
    for said in ("<script>", "<api>", "<b>", "<i>", "<h>", "<f>"):
        assert said not in text
    assert "x &amp; y" in text


def test_a_page_knows_both_schemes_and_paper():
    text = report()
    for rule in ("prefers-color-scheme: dark", "@media print", "break-inside: avoid", "max-width: 799px"):
        assert rule in text


def test_lengths_of_bars_are_in_the_ratio_of_their_values():
    svg = bars([Bar("a", (10.0, 5.0), "15"), Bar("b", (30.0, 0.0), "30")], title="t", series=("x", "y"))
    widths = [float(str(r.get("width"))) for r in rects(svg, "c0") if r.get("height") == "16"]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.01)
    assert (
        len([r for r in rects(svg, "c1") if r.get("height") == "16"]) == 1
    )  # a part of nothing is not drawn


def test_a_tornado_s_halves_meet_at_the_answer():
    svg = tornado([TornadoBar("rent", 1e6, 1e8, "1 $/h", "9 $/h")], 1e7, LOG, title="t")
    (low,), (high,) = rects(svg, "low"), rects(svg, "high")
    end = float(str(low.get("x"))) + float(str(low.get("width")))
    assert end == pytest.approx(float(str(high.get("x"))), abs=0.11)


def test_an_endless_swing_reaches_the_edge():
    finite = [TornadoBar("a", 1e6, 1e8, "1", "2")]
    svg = tornado([*finite, TornadoBar("b", 1e6, math.inf, "1", "never")], 1e7, LOG, title="t")
    ends = [float(str(r.get("x"))) + float(str(r.get("width"))) for r in rects(svg, "high")]
    assert ends[1] >= ends[0] and math.isfinite(ends[1])
    assert "never" in svg


def test_a_range_without_end_reaches_the_edge_and_the_mark_lies_on_the_same_axis():
    items = [Span("a", 1e6, 1e7, 1e8, "10M"), Span("b", 1e8, math.inf, math.inf, "never")]
    for width in (340.0, 760.0):
        root = ElementTree.fromstring(spans(items, 1e7, "now", LOG, title="t", width=width))
        first, second = root.findall(f".//{SVG}rect")
        ends = [float(bar.get("x", "")) + float(bar.get("width", "")) for bar in (first, second)]
        assert ends[1] == pytest.approx(max(ends)) and float(second.get("x", "")) == pytest.approx(
            ends[0], abs=0.2
        )
        here, middle = (float(line.get("x1", "")) for line in root.findall(f".//{SVG}line[@class='mid']"))
        assert here == middle  # the mark is where the first range has its middle; the second has none


def test_labels_of_points_never_overlap():
    crowd = [Point(f"model {i}", 1.0 + i % 5 / 50, 60.0 + i / 20, size=5) for i in range(30)]
    svg = scatter(crowd, Axis("x"), Axis("y"), title="t")
    placed = [t for t in ElementTree.fromstring(svg).iter(f"{SVG}text") if t.get("class") == "halo"]
    assert 0 < len(placed) < 30
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))) == 30


def test_a_standalone_chart_carries_its_colours():
    svg = standalone(scatter([Point("a", 1, 2)], Axis("x"), Axis("y"), title="t"))
    assert ElementTree.fromstring(svg).find(f"{SVG}style") is not None


@given(
    st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from([340.0, 760.0]),
)
def test_every_value_lies_on_its_axis_and_the_ticks_enclose_them(
    values: list[float], log: bool, width: float
):
    scale = Axis("v", log=log).scale(values, 10, width)
    assert 1 < len(scale.ticks) < 20
    assert list(scale.ticks) == sorted(scale.ticks)
    assert all(10 - 1e-6 <= scale.at(v) <= width + 1e-6 for v in values)
    assert scale.low <= min(values) and scale.high >= max(values)


@pytest.mark.heavy
@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(1, 1e12)), max_size=6), st.text(max_size=40))
def test_any_chart_is_well_formed(ends: list[tuple[float, float]], label: str):
    said = "".join(c for c in label if c.isprintable())
    swings = [TornadoBar(said, a, b, said, said) for a, b in ends]
    for width in (340.0, 760.0):
        ElementTree.fromstring(tornado(swings, 1e6, LOG, title=said, width=width))
        ElementTree.fromstring(bars([Bar(said, (a, b), said) for a, b in ends], title=said, width=width))
        points = [Point(said, a, b) for a, b in ends]
        ElementTree.fromstring(scatter(points, Axis("x"), LOG, title=said, width=width))


@pytest.mark.parametrize("width", [340.0, 760.0])
def test_the_legend_names_every_group_that_is_drawn_and_no_other(width: float):
    points = [Point("a", 1, 2, group=0), Point("b", 2, 3, group=2)]
    svg = scatter(
        points,
        Axis("x"),
        Axis("a long axis's label"),
        title="t",
        groups=("published", "x", "converted too"),
        width=width,
    )
    said = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "published" in said and "converted too" in said and said.count("x") == 1  # the axis
