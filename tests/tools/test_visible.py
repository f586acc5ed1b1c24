"""What a terminal would obey or not show is shown by its number, in names, descriptions and arguments alike."""

from __future__ import annotations

import pytest

from freehold.serve.tools.mcp.use import visible, visible_json

HIDDEN = [
    *(chr(n) for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))),  # direction
    *"\u200b\u200c\u200d\u200e\u200f\u2060\u2061\ufeff\u00ad\u061c\u180e",  # no width
    *"\u115f\u3164\uffa0\u034f\ufe0f\U000e0100\U000e0041",  # fillers, selectors, tags
    *"\x00\x07\x08\x1b\r\x7f\x85\x9b\u2028\u2029\u00a0\u3000\ue000\ud800",
]


@pytest.mark.parametrize("c", HIDDEN, ids=lambda c: f"U+{ord(c):04X}")
def test_what_cannot_be_seen_is_shown_by_its_number(c: str):
    assert visible(f"a{c}b") == f"a\\u{{{ord(c):x}}}b"


def test_what_can_be_seen_stays():
    text = "Größe\t漢字 𝄞 😀\nsecond line"
    assert visible(text) == text


def test_a_name_stays_on_one_line():
    assert visible("echo\nAllow? yes\tno", lines=False) == "echo\\u{a}Allow? yes\\u{9}no"


def test_arguments_are_shown_whole_with_escapes_undone_and_made_visible():
    shown = visible_json('{"path": "a\\u202eb", "big": 12345678901234567890, "\\u200bkey": ["\\u001b[2J"]}')
    assert shown.splitlines() == [
        "{",
        '  "path": "a\\u{202e}b",',
        '  "big": 12345678901234567890,',
        '  "\\u{200b}key": [',
        '    "\\u001b[2J"',
        "  ]",
        "}",
    ]


@pytest.mark.parametrize("text", ["{not json\u202e", "[" * 100_000, "9" * 5000])
def test_arguments_that_are_none_are_shown_as_they_are(text: str):
    assert visible_json(text) == visible(text)
