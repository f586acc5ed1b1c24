"""Cases with pictures: from the data's folder or from the line, distinguished by their bytes, answered by a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.evals import pictures as pictured
from freehold.adapt.evals.samples import read
from freehold.base.errors import UsageError
from freehold.base.types import Image, Message
from tests.tools.hostile import png

URL = Image.of(png()).as_url


@pytest.fixture
def cases(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png() + b"\0")  # other bytes

    def write(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return path

    return write


def part(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def chat(*content: Any, **judge: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*content]}], **(judge or {"exact": "x"})}


def test_a_prompt_s_pictures_come_before_it(cases):
    (case,) = read(cases({"prompt": "What?", "images": ["a.png", URL], "exact": "x"})).cases
    seen = Image.of(png())
    assert case.messages == (Message("user", "What?", parts=(seen, seen, "What?")),)
    assert case.table["images"][0] == "a.png" and case.table["images"][1].startswith("sha256:")


def test_a_message_has_them_among_its_parts(cases):
    line = chat({"type": "text", "text": "a"}, part("a.png", detail="low"), {"type": "text", "text": "b"})
    samples = read(cases(line, {"prompt": "What?", "exact": "x"}))
    (message,) = samples.cases[0].messages
    assert message.content == "ab" and [type(p) for p in message.parts] == [str, Image, str]
    assert samples.pictured == (1,) and message.parts[1] == Image(
        "image/png", URL.partition(",")[2], detail="low"
    )


def test_other_pictures_are_other_cases_and_the_same_bytes_are_the_same(cases):
    ask = {"prompt": "What?", "exact": "x"}
    one, other, none = read(cases({**ask, "images": ["a.png"]}, {**ask, "images": ["b.png"]}, ask)).cases
    assert len({one.digest, other.digest, none.digest}) == 3
    (inline,) = read(cases({**ask, "images": [URL]})).cases
    assert inline.digest == one.digest


def test_a_line_with_a_picture_may_be_longer_than_one_of_text(cases):
    large = Image.of(png() + bytes(300_000)).as_url
    (case,) = read(cases({"prompt": "What?", "images": [large], "exact": "x"})).cases
    assert pictured.images_of(case.messages)[0].size > 300_000
    with pytest.raises(UsageError, match="more than a case may have"):
        read(cases({"prompt": "x" * 300_000, "exact": "x"}))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ({"images": ["c.png"]}, "c.png cannot be read"),
        ({"images": ["own.jsonl"]}, "is not a PNG, JPEG, GIF, WebP or AVIF"),
        ({"images": ["../a.png"]}, "outside the folder of the data file"),
        ({"images": ["/etc/passwd"]}, "outside the folder of the data file"),
        ({"images": ["https://example.com/a.png"]}, "addresses are not fetched"),
        ({"images": ["file:///etc/passwd"]}, "addresses are not fetched"),
        ({"images": ["data:image/png;base64,###"]}, "not base64"),
        ({"images": ["a\0.png"]}, "no valid path"),
        ({"images": []}, "list of 1 to 100 pictures"),
        ({"images": ["a.png"] * 101}, "list of 1 to 100 pictures"),
        ({"images": "a.png"}, "list of 1 to 100 pictures"),
        ({"images": [7]}, "neither a data: URL nor the name of a file"),
        ({"images": ["a.png"], "choices": ["a", "b"], "answer": 0}, "choices are scored as texts"),
    ],
)
def test_a_picture_that_is_none_is_named_with_its_line(cases, line: dict[str, Any], part: str):
    judge = {} if "choices" in line else {"exact": "x"}
    with pytest.raises(UsageError) as e:
        read(cases({"prompt": "What?", **judge, **line}), scored=True)
    assert "line 1: " in str(e.value) and part in str(e.value)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (chat({"type": "video", "url": "a"}), "is of type 'video'; expected text or image_url"),
        (chat("a"), "is of type 'None'"),
        (chat(), "content is an empty list"),
        (chat(part("a.png", detail="best")), "detail is 'best'"),
        (chat(*[part("a.png")] * 101), "more than 100 pictures"),
        ({**chat(part("a.png")), "images": ["a.png"]}, "images is for cases with a prompt"),
        ({"messages": [{"role": "system", "content": [part("a.png")]}, *chat("q")["messages"]], "exact": "x"},
         "a message of the system has a picture"),
    ],
)  # fmt: skip
def test_parts_that_are_none_are_named(cases, line: dict[str, Any], part: str):
    with pytest.raises(UsageError, match=part):
        read(cases(line))


def test_all_pictures_of_a_file_have_one_limit_and_a_file_counts_once(cases, monkeypatch):
    monkeypatch.setattr(pictured, "MOST_BYTES", len(png()))
    lines = [{"prompt": f"What {i}?", "images": ["a.png"], "exact": "x"} for i in range(3)]
    assert len(read(cases(*lines)).cases) == 3
    with pytest.raises(UsageError, match="the pictures of the cases have more than"):
        read(cases(*lines, {"prompt": "And?", "images": ["b.png"], "exact": "x"}))
