"""One HTML page around charts and tables: no script, no font and no picture from anywhere.

A chart is drawn twice, for a desk and for a phone, and the stylesheet shows the one that fits: scaling a
wide one down would leave its text unreadable. On a phone a row of a table becomes a list of its cells,
each after its column's name: nothing has to be scrolled sideways. Knows no chart's content.
Path: cli -> page(sections) -> a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from freehold.advisor.report.svg import STYLE

_WIDE, _SLIM = 760.0, 340.0
_PAGE_STYLE = """
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 56px }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4em; text-wrap: balance }
h2 { font-size: 1.15rem; margin: 2.6em 0 .5em }
p { margin: .5em 0 1em; max-width: 68ch } .lead { font-size: 1.1rem }
figure { margin: 1em 0 } figcaption, footer, .note { color: var(--soft); font-size: .875rem; max-width: 76ch }
.slim { display: none }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4em .8em .4em 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { color: var(--soft); font-weight: 500; white-space: nowrap } td.n, th.n { text-align: right; white-space: nowrap }
th:last-child, td:last-child { padding-right: 0 }
td { overflow-wrap: break-word }
tr.strong td { font-weight: 600 }
code { font-size: .9em; overflow-wrap: anywhere }
footer { margin-top: 3em; padding-top: 1em; border-top: 1px solid var(--rule) }
@media (max-width: 799px) { .wide { display: none } .slim { display: block } main { padding: 24px 16px 40px }
  h1 { font-size: 1.4rem } .lead { font-size: 1rem }
  thead { display: none } tr { display: block; padding: .6em 0; border-bottom: 1px solid var(--rule) }
  td, td.n { display: block; border: 0; padding: .1em 0; text-align: left; white-space: normal }
  td { overflow-wrap: anywhere }
  td[data-head] { display: grid; grid-template-columns: 9.5em 1fr; gap: .6em }
  td[data-head]::before { content: attr(data-head); color: var(--soft); font-weight: 400 } td:empty { display: none } }
@media print { main { padding: 0; max-width: none } figure, tr { break-inside: avoid } h2 { break-after: avoid }
  .wide { display: block } .slim { display: none } @page { margin: 18mm 16mm } }
""".strip()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and markup below it from `figure`, `table` and `paragraph`."""

    heading: str
    parts: tuple[str, ...]


def page(title: str, lead: str, sections: Sequence[Section], footer: Sequence[str] = ()) -> str:
    """Return a whole HTML document; all given texts are escaped here, only a section's parts are markup."""
    body = "".join(f"<section><h2>{escape(s.heading)}</h2>{''.join(s.parts)}</section>\n" for s in sections)
    foot = "".join(f"<p>{escape(line)}</p>" for line in footer)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n{_PAGE_STYLE}\n</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n{body}'
        f"{f'<footer>{foot}</footer>' if foot else ''}</main></body></html>\n"
    )


def figure(draw: Callable[[float], str], caption: str = "") -> str:
    """Return a chart with its caption; `draw` takes a width in pixels and is called for a desk and a phone."""
    figcaption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    wide, slim = draw(_WIDE), draw(_SLIM)
    return f'<figure><div class="wide">{wide}</div><div class="slim">{slim}</div>{figcaption}</figure>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), strong: Sequence[int] = ()
) -> str:
    """Return a table; `right` numbers the columns of figures, `strong` the rows set off."""
    top = "".join(_cell("th", cell, i in right) for i, cell in enumerate(head))
    names = [f' data-head="{escape(name, quote=True)}"' if name else "" for name in head]
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(_cell("td", cell, i in right, names[i]) for i, cell in enumerate(row))
        lines.append(f'<tr class="strong">{cells}</tr>' if number in strong else f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def paragraph(content: str, note: bool = False) -> str:
    """Return a paragraph of plain text; a note is set smaller and softer."""
    return f'<p class="note">{escape(content)}</p>' if note else f"<p>{escape(content)}</p>"


def _cell(kind: str, content: str, figure: bool, name: str = "") -> str:
    looks = ' class="n"' if figure else ""
    return f"<{kind}{looks}{name}>{escape(content)}</{kind}>"
