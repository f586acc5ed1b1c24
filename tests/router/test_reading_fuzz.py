"""Whatever stands in gateway.toml, it is read or refused with BadGateway, and a key it holds is never quoted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.route.router.reading import read_text
from freehold.route.router.toml.table import BadGateway, Outside
from tests.router.mistaken import KEY, SOUND

OUTSIDE = Outside(
    environment={"OPENAI_API_KEY": KEY}, keyring=lambda name: KEY, has_model=lambda name: "qwen" in name
)
WORDS = sorted(
    {*SOUND.split(), "{}", "[[", "]]", "=", "nan", "-1", '"""', "'", "1e999999999999", "é", "\0", "9" * 5000}
)
VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "0.5", "nan", "true", '""', '"x"', '"env:A"', "1979-05-27", '"1s"', "'a\\b'", '"\\u0000"']
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]")
        | st.lists(inner, max_size=3).map(
            lambda v: "{" + ", ".join(f"k{i} = {x}" for i, x in enumerate(v)) + "}"
        )
    ),
    max_leaves=5,
)


def refused_at_most(text: str | bytes) -> None:
    try:
        read_text(text, OUTSIDE)
    except BadGateway as e:
        assert e.mistakes
        for mistake in e.mistakes:
            assert 0 <= mistake.line <= text.count("\n" if isinstance(text, str) else b"\n") + 1  # type: ignore[arg-type]
            assert mistake.message
        assert KEY not in e.message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_words_put_in_and_taken_out_are_read_or_refused(data: Any):
    words = SOUND.replace("\n", " \n ").split(" ")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at : at + data.draw(st.integers(0, 3))] = [data.draw(st.sampled_from(WORDS))]
    refused_at_most(" ".join(words))


@pytest.mark.heavy
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_value_of_any_other_shape_is_read_or_refused(data: Any):
    lines = SOUND.split("\n")
    assignments = [i for i, line in enumerate(lines) if " = " in line]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(assignments))
        lines[at] = f"{lines[at].split(' = ')[0]} = {data.draw(VALUES)}"
    refused_at_most("\n".join(lines))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SOUND)), st.integers(0, 40), st.binary(max_size=20))
def test_bytes_in_the_middle_are_read_or_refused(at: int, gone: int, put: bytes):
    data = SOUND.encode()
    refused_at_most(data[:at] + put + data[at + gone :])


def test_a_key_in_the_file_is_never_quoted():
    for wrong in (KEY, f"env:{KEY}", f"keyring: {KEY}", f"evn:{KEY}", f"{KEY}:x", f"https://{KEY}@host"):
        refused_at_most(SOUND.replace("env:OPENAI_API_KEY", wrong))
