"""Whatever a file holds, it is opened or refused by name, and nothing stays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.run.pictures.opening import PictureSize, Resize, header, open_picture
from tests.pictures import makers as m
from tests.pictures.test_decoders import open_descriptors

VALID = [
    m.saved(m.pattern(30, 20), "PNG"),
    m.png(9, 9, 16, m.GREY, m.rows_of([range(9)] * 9, ">u2"), before=m.chunk(b"tRNS", b"\0\3")),
    m.saved(m.pattern(30, 20), "PNG", "P"),
    m.animation([m.pattern(), 255 - m.pattern()], "PNG"),
    m.saved(m.pattern(30, 20), "JPEG"),
    m.saved(m.pattern(30, 20), "JPEG", "CMYK", progressive=True),
    m.with_exif(m.pattern(30, 20), "JPEG", 6),
    m.saved(m.pattern(30, 20), "GIF"),
    m.animation([m.pattern(), 255 - m.pattern()], "GIF"),
    m.saved(m.pattern(30, 20), "WEBP"),
    m.saved(m.pattern(30, 20, 4), "WEBP", lossless=True),
    m.animation([m.pattern(), 255 - m.pattern()], "WEBP"),
]
if m.HAS_AVIF:
    VALID.append(m.saved(m.pattern(30, 20), "AVIF"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, left out, repeated, or cut off."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[at] ^= draw(st.integers(1, 255))
            case 1:
                data[at : at + draw(st.integers(1, 8))] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                del data[at : at + draw(st.integers(1, 32))]
        if not data:
            return b""
    return bytes(data[: draw(st.integers(len(data) // 2, len(data)))])


def is_opened_or_refused(data: bytes) -> None:
    try:
        size, arrays = open_picture(data, lambda width, height: [[Resize(8, 6, "bicubic")]])
    except UsageError as e:
        assert e.message and "answered with something else" not in e.message
        return
    assert [array.shape for array in arrays] == [(6, 8, 3)] and header(data) == size
    assert isinstance(size, PictureSize)


@pytest.mark.heavy
@settings(max_examples=400)
@given(damaged())
def test_damaged_pictures_are_opened_or_refused(data: bytes):
    is_opened_or_refused(data)


@pytest.mark.heavy
@settings(max_examples=150)
@given(st.sampled_from(VALID), st.integers(4, 40), st.binary(max_size=400))
def test_bytes_behind_a_valid_beginning_are_opened_or_refused(valid: bytes, kept: int, rest: bytes):
    is_opened_or_refused(valid[:kept] + rest)


def test_valid_pictures_are_opened():
    is_opened_or_refused(VALID[0])  # the process that stays has started
    before = open_descriptors()
    for data in VALID:
        assert header(data).width in (30, 20, 12, 9)
        is_opened_or_refused(data)
    assert open_descriptors() == before
