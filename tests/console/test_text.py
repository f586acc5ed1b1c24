"""The components of text alone, under the page's policy: hostile texts, and texts that arrive in pieces.

Skipped without Node, which bundles them; tests of the whole page need none. Path: text_page -> textpage.serve
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console import textpage
from tests.console.payloads import EVERYWHERE, LARGE

INSPECT = (Path(__file__).parent / "inspect.js").read_text()
SETTLED = """async (least) => {
  const root = document.getElementById("app");
  let before = "";
  for (let n = 0; n < 500; n++) {
    await new Promise((go) => setTimeout(go, n < 3 ? 5 : 60));
    const now = `${root.textContent.length} ${root.getElementsByTagName("*").length}`;
    if (now === before && n >= least && !root.querySelector(".math:not(.failed) > .tex")) return;
    before = now;
  }
  throw new Error("never settled");
}"""
PROBE = """async (payloads) => {
  const root = document.getElementById("app");
  const bad = {};
  for (const [text, words] of payloads) {
    showAll(text);
    await SETTLED(2);
    const found = inspect(root, words);
    if (found.length) bad[text] = found;
  }
  return bad;
}"""
DOCUMENT = """# A title with *emphasis*

A paragraph with **bold**, `code`, ~~old~~, a [link](https://example.org/a), $x_1 + y$ and $5 or $10.
Its second line.

| Name | Value |
|:-----|------:|
| one `a` | 1 |
| two | **2** |

1. first
   - nested **item**
   - another

     with a paragraph
2. second
   ```python
   def f(x):
       return x
   ```
3. third

> A quote
> - with a list

```js
const a = "```"; // not its end

let b = 2;
```

$$
x = \\frac{a}{b}
= c
$$

- [x] done
- [ ] open

~~~
tildes
~~~

Setext
======

\\[ E = mc^2 \\]

***

<div>html</div>

The end with ***both*** and an image ![words](https://example.org/x.png).
"""


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = textpage.bundle(tmp_path_factory.mktemp("text"))
    if files is None:
        pytest.skip("needs Node and the packages of console/")
    return files


@pytest.fixture
def text_page(page: Any, bundled: Path) -> Iterator[Any]:
    textpage.serve(page, bundled)
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.evaluate(f"() => {{ window.inspect = {INSPECT} }}")
    page.evaluate("() => { window.hits = 0; window.hit = window.alert = () => { window.hits++; } }")
    yield page
    assert page.dialogs == []
    assert page.evaluate("window.hits") == 0
    assert page.url == textpage.ORIGIN + "/"
    names = {Path(url.removeprefix(textpage.ORIGIN)).suffix for url in page.asked}
    assert names <= {"", ".js", ".css"}, page.asked


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[A-Za-z0-9]{3,}", text)))[:400]


def test_hostile_texts_stay_text(text_page):
    probe = PROBE.replace("SETTLED", f"({SETTLED})")
    assert text_page.evaluate(probe, [[text, _words(text)] for text in EVERYWHERE]) == {}


@pytest.mark.long
def test_large_texts_are_readable_to_their_end(text_page):
    bad = {}
    for name, payload in LARGE.items():
        text_page.evaluate("(text) => show(text)", payload)
        text_page.evaluate(SETTLED, 3)
        found = text_page.evaluate(
            "(words) => inspect(document.getElementById('app'), words)", _words(payload)
        )
        letters = text_page.evaluate(
            "() => document.getElementById('app').textContent.replace(/[^a-z]/g, '').length"
        )
        if letters < (least := len(re.findall(r"[a-z]", payload))):
            found.append(f"{letters} of {least} letters")
        if found:
            bad[name] = found
    assert bad == {}


def _drawn(page: Any) -> str:
    page.evaluate(SETTLED, 3)
    return page.evaluate("() => document.getElementById('app').innerHTML")


HOSTS = {  # markdown -> the host that stands beside the link; None where its words are its address already
    "https://example.org/a": None,
    "<https://EXAMPLE.org>": None,
    "[https://example.org/](https://example.org/)": None,
    "[https://bank.example\u2044in.evil.example/](https://bank.example\u2044in.evil.example/)": "evil.example)",
    "<https://bank.example\u2215in.evil.example/>": "evil.example)",
    "<https://\u0430pple.com/>": "(xn--pple-43d.com)",
    "[https:///evil.example/](https:///evil.example/)": "(evil.example)",
}


def test_a_link_s_host_is_in_sight_whatever_its_words_look_like(text_page):
    for source, host in HOSTS.items():
        text_page.evaluate("(text) => show(text)", source)
        text_page.evaluate(SETTLED, 3)
        assert text_page.locator("a").count() == 1, source
        beside = text_page.locator(".host").all_inner_texts()
        assert (beside == []) if host is None else beside[0].endswith(host), source


@pytest.mark.parametrize(
    "text, marks",
    [
        ("[ba\u200bnk](https://bank.example)", 1),
        ("ba\u200bnk", 0),  # prose: scripts of the world need some of these
        ("`a\ufff0b`", 1),
        ("`1\ufe0f0`", 1),
        ("`\U0001bca0`", 1),
        ("`1\ufe0f\u20e3 \u2764\ufe0f \U0001f468\u200d\U0001f469`", 0),  # emoji are seen
    ],
)
def test_what_shows_nothing_has_a_mark_in_code_and_links(text_page, text, marks):
    text_page.evaluate("(text) => show(text)", text)
    text_page.evaluate(SETTLED, 3)
    assert text_page.locator(".revealed").count() == marks


def test_every_text_of_a_formula_stands_in_an_element_that_is_drawn(text_page):
    text_page.evaluate(
        "(text) => show(text)", r"$n \log n + \lim_{x \to 0} \sin x \bmod 2 + \text{for all } y \not= z$"
    )
    text_page.evaluate(SETTLED, 3)
    bare = """() => [...document.querySelectorAll('math, mrow, semantics, msub, munder')].flatMap(
        (found) => [...found.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.data))"""
    assert text_page.evaluate(bare) == []
    wide = (
        "(word) => [...document.querySelectorAll('mi')].find((mi) => mi.textContent === word).clientWidth > 0"
    )
    assert all(text_page.evaluate(wide, word) for word in ("log", "lim", "sin"))


def test_names_of_functions_stand_apart_as_tex_sets_them(text_page):
    formulas = {r"n \log n": 2, r"\sin(x)": 0, r"2\sin^2 x": 2, r"a + \log b": 1, r"n\,\log n": 1, "n x": 0}
    text_page.evaluate("(text) => show(text)", "\n\n".join(f"${each}$" for each in formulas))
    text_page.evaluate(SETTLED, 3)
    spaces = "() => [...document.querySelectorAll('math')].map((m) => m.querySelectorAll('mspace').length)"
    assert text_page.evaluate(spaces) == list(formulas.values())


@pytest.mark.parametrize("seed", range(4))
def test_text_that_arrives_in_pieces_looks_as_the_whole(text_page, seed):
    text_page.evaluate("(text) => show(text)", DOCUMENT)
    whole = _drawn(text_page)
    draw = random.Random(seed)
    text_page.evaluate("() => clear()")
    at = 0
    while at < len(DOCUMENT):
        at += draw.choice([1, 2, 3, 5, 8, 40])
        text_page.evaluate("(text) => show(text, true)", DOCUMENT[:at])
        if draw.random() < 0.1:
            text_page.wait_for_timeout(40)
    text_page.evaluate("(text) => show(text)", DOCUMENT)
    assert _drawn(text_page) == whole
