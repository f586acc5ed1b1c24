"""Text formats: structure and places."""

from __future__ import annotations

import pytest

from freehold.base.errors import UsageError
from freehold.serve.documents.reading import read_document
from freehold.serve.documents.texts import (
    code_blocks,
    csv_blocks,
    decoded,
    form_of,
    html_blocks,
    markdown_blocks,
    plain_blocks,
)
from freehold.serve.documents.types import MAX_FILE

MARKDOWN = """---
title: x
---
# Guide

Intro on
two lines.

Sub
---

```sh
freehold docs

list
```

| name | size |
|---|---|
| a | 1 |
| b \\| c | 2 |

After ## no heading.
"""


def test_markdown_has_headings_paragraphs_code_and_rows_with_their_header():
    blocks = markdown_blocks(MARKDOWN)
    assert [(b.kind, b.level, b.line, b.last_line) for b in blocks] == [
        ("heading", 1, 4, 4),
        ("text", 0, 6, 7),
        ("heading", 2, 9, 10),
        ("code", 0, 12, 16),
        ("row", 0, 20, 20),
        ("row", 0, 21, 21),
        ("text", 0, 23, 23),
    ]
    assert blocks[4].header == "name | size" and blocks[5].text == "b | c | 2"


@pytest.mark.parametrize("text", [MARKDOWN, MARKDOWN.replace("\n", "\r\n")])
def test_places_of_markdown_are_those_of_the_file(text: str):
    for block in markdown_blocks(text):
        if block.kind in ("text", "code"):
            assert text[block.start : block.end].replace("\r", "") == block.text
        assert block.line == 1 + text.count("\n", 0, block.start)


def test_a_fence_that_never_closes_ends_with_the_text():
    assert [b.kind for b in markdown_blocks("```\na\n\nb")] == ["code"]


def test_plain_text_has_paragraphs_and_underlined_headings():
    blocks = plain_blocks("Title\n=====\n\nOne.\n\nPart\n----\nTwo\nlines.\n")
    assert [(b.kind, b.text, b.level) for b in blocks] == [
        ("heading", "Title", 1),
        ("text", "One.", 0),
        ("heading", "Part", 2),
        ("text", "Two\nlines.", 0),
    ]


def test_code_is_cut_where_a_definition_begins():
    blocks = code_blocks("import os\n\n\ndef f():\n    a = 1\n\n    return a\n\n\ndef g():\n    pass\n")
    assert [(b.line, b.last_line) for b in blocks] == [(1, 1), (4, 7), (10, 11)]


def test_rows_of_csv_have_the_first_one_as_header_and_their_lines():
    blocks = csv_blocks('name;note\nann;"two\nlines"\n\nbob;x\n')
    assert [(b.kind, b.text, b.header, b.line, b.last_line) for b in blocks] == [
        ("row", "ann | two lines", "name | note", 2, 3),
        ("row", "bob | x", "name | note", 5, 5),
    ]


def test_html_leaves_scripts_and_navigation_out_and_keeps_structure():
    page = """<html><head><title>t</title><style>p{}</style></head><body>
<nav><a>Home</a></nav><div role="navigation"><p>Menu</p></div>
<h1>Guide<a>¶</a></h1><p>One <b>bold</b> word<br>next.</p>
<ul><li>first</li><li>second</li></ul><pre>a
  b</pre>
<table><tr><th>k</th><th>v</th></tr><tr><td>x</td><td><p>1</p><p>2</p></td></tr></table>
<script>evil()</script><p>End &amp; done</p></body></html>"""
    blocks = html_blocks(page)
    assert [(b.kind, b.text) for b in blocks] == [
        ("heading", "Guide"),
        ("text", "One bold word next."),
        ("text", "first"),
        ("text", "second"),
        ("code", "a\n  b"),
        ("text", "k | v"),
        ("row", "x | 1 2"),
        ("text", "End & done"),
    ]
    assert [b.line for b in blocks] == [3, 3, 4, 4, 4, 6, 6, 7]
    assert page[blocks[2].start : blocks[2].end] == "first"


def test_html_without_any_end_is_read():
    assert [b.text for b in html_blocks("<table><tr><td>a<td>b<tr><td>c<p>d")][-1]


def test_encodings_are_known_or_said():
    assert decoded("é".encode("utf-16"))[0] == "é"
    assert decoded(b"\xef\xbb\xbfa") == ("a", ())
    text, notes = decoded("é".encode("cp1252"))
    assert text == "é" and "Windows-1252" in notes[0]
    with pytest.raises(UsageError, match="binary"):
        decoded(b"a\0b")


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("a.bin", b"\0\1", "format is not known"),
        ("a.md", b" \n", "no text"),
        ("a.doc", b"\xd0\xcf\x11\xe0" + bytes(9), "encrypted, or of a format before 2007"),
        ("a", b"PK\x03\x04" + bytes(9), "an archive"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(name: str, data: bytes, why: str):
    with pytest.raises(UsageError, match=why) as refusal:
        read_document(name, data)
    assert "\n" not in refusal.value.message


def test_a_long_file_is_refused():
    with pytest.raises(UsageError, match="the limit is"):
        read_document("a.txt", bytes(MAX_FILE + 1))


@pytest.mark.parametrize(
    "name, form", [("A.MD", "markdown"), ("Makefile", "code"), ("x.tar", ""), ("a.pdf", "pdf"), ("notes", "")]
)
def test_names_say_the_form(name: str, form: str):
    assert form_of(name) == form


def test_a_definition_keeps_its_term_and_that_of_the_list_around_it():
    page = """<p>Before.</p><dl><dt>class Box<a class="headerlink">¶</a></dt><dd><p>Holds things.</p><dl>
    <dt>open()</dt><dt>open(key)</dt><dd><p>Open it.</p><pre>box.open()</pre></dd><dt>close()</dt></dl>
    </dd></dl><p>After.</p>"""
    blocks = [(block.kind, block.text, block.header) for block in html_blocks(page)]
    assert blocks == [
        ("text", "Before.", ""),
        ("text", "class Box\nHolds things.", "class Box"),
        ("text", "open()\nopen(key)\nOpen it.", "class Box > open()\nopen(key)"),
        ("code", "box.open()", "class Box > open()\nopen(key)"),
        ("text", "close()", "class Box > close()"),
        ("text", "After.", ""),
    ]
