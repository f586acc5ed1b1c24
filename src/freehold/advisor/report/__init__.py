"""Charts as SVG and a report as one HTML page: nothing in it is fetched from anywhere, and it prints.

Knows shapes, text and two colour schemes; knows no model and no price.
Path: cli/cost.py, cli/advise.py -> page(sections of figure(chart) and table) -> one file.
"""

from freehold.advisor.report.page import Section, figure, page, paragraph, table
from freehold.advisor.report.scatter import Point, scatter
from freehold.advisor.report.svg import Axis, Bar, Span, TornadoBar, bars, spans, standalone, tornado

__all__ = [
    "Axis",
    "Bar",
    "Point",
    "Section",
    "Span",
    "TornadoBar",
    "bars",
    "figure",
    "page",
    "paragraph",
    "scatter",
    "spans",
    "standalone",
    "table",
    "tornado",
]
