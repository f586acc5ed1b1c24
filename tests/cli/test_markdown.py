"""Markdown is rendered forward only, whatever the pieces it comes in."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.cli.chat.markdown import PlainRenderer, StreamRenderer, clean

SGR = re.compile(r"\x1b\[[0-9;]*m")


def render(pieces, width: int = 80) -> str:
    out: list[str] = []
    renderer = StreamRenderer(out.append, width)
    for piece in pieces:
        renderer.feed(piece)
    renderer.finish()
    return "".join(out)


def seen(text: str, width: int = 80) -> str:
    return SGR.sub("", render([text], width))


@pytest.mark.parametrize(
    "source, shown",
    [
        ("plain words\n", "plain words\n"),
        ("# Title\n", "Title\n"),
        ("some **bold** and *italic* and `code`\n", "some bold and italic and code\n"),
        ("2 * 3 * 4 and snake_case_name\n", "2 * 3 * 4 and snake_case_name\n"),
        ("- one\n- two\n", "• one\n• two\n"),
        ("1. one\n2. two\n", "1. one\n2. two\n"),
        ("> said\n", "│ said\n"),
        ("```python\nx = 1  # **no**\n```\nafter", "  x = 1  # **no**\nafter\n"),
        ("| a | bb |\n|---|---|\n| ccc | d |\nend", "a    bb\nccc  d\nend\n"),
        ("`a*b*c` and \\*stars\\*\n", "a*b*c and *stars*\n"),
        ("no newline", "no newline\n"),
        ("a\n\nb\n", "a\n\nb\n"),
    ],
)
def test_block_reads_like_text(source: str, shown: str):
    assert seen(source) == shown


def test_bold_is_bold_and_ends():
    assert render(["a **b** c"]) == "a \x1b[0m\x1b[1mb\x1b[0m c\n"


def test_code_in_a_fence_is_coloured():
    assert "\x1b[" in render(["```python\ndef f(): pass\n```\n"])


def test_words_appear_before_their_line_ends():
    out: list[str] = []
    StreamRenderer(out.append, 80).feed("three whole words and ha")
    assert "".join(out) == "three whole words and "


def test_long_line_wraps_at_words_under_its_bullet():
    assert seen("- aaaa bbbb cccc dddd eeee", 20) == "• aaaa bbbb cccc\n  dddd eeee\n".replace(
        "cccc\n", "cccc \n"
    )


def test_model_cannot_drive_the_terminal():
    assert "\x1b]0;" not in render(["\x1b]0;title\x07 hello\x9b31m"])
    assert clean("a\x1b[2Jb\r\n\tc\x00") == "a[2Jb\n\tc"


@given(
    st.text(alphabet="ab *_`#->|1.\n~\\é漢", max_size=60),
    st.lists(st.integers(1, 7), min_size=1, max_size=60),
)
def test_pieces_do_not_change_what_is_shown(text: str, sizes: list[int]):
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    pieces.append(text[at:])
    assert render(pieces, 24) == render([text], 24)


def test_plain_keeps_text_and_separates_thinking():
    out: list[str] = []
    plain = PlainRenderer(out.append)
    plain.think("hm")
    plain.feed("**yes**")
    plain.finish()
    assert "".join(out) == "hm\n\n**yes**\n"
