"""Pictures as values: what a file begins with decides, sizes are bounded, and base64 is read in pieces."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import freehold
from freehold.base.errors import UsageError
from freehold.base.types import MAX_PICTURE_BYTES, Image, Message, media_type_of

HEADS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "image/avif": b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif",
}
PNG = HEADS["image/png"] + bytes(20)


@pytest.mark.parametrize("media_type", HEADS)
def test_first_bytes_tell_the_media_type_and_the_name_does_not(media_type: str, tmp_path: Path):
    data = HEADS[media_type] + bytes(range(40))
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    for image in (Image.open(path), Image.open(str(path)), Image.of(data)):
        assert image == Image(media_type, base64.b64encode(data).decode())
        assert image.decoded() == data
        assert Image.at(image.as_url) == image


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"<svg/>", b"%!PS", b"RIFF\0\0\0\0WAVE", b"GIF88a", b"BM" * 20]
)
def test_other_formats_are_refused_by_name(data: bytes, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not a PNG, JPEG, GIF, WebP or AVIF picture") as e:
        Image.open(path)
    assert str(path) in e.value.message and e.value.hint
    assert media_type_of(data) == ""


def test_file_that_is_not_there_is_named(tmp_path: Path):
    for path in (tmp_path / "none.png", tmp_path, "a\0b"):
        with pytest.raises(UsageError, match="cannot be read"):
            Image.open(path)


def test_picture_is_bounded(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG.ljust(MAX_PICTURE_BYTES, b"\0"))
    assert len(Image.open(path).decoded()) == MAX_PICTURE_BYTES
    path.write_bytes(PNG.ljust(MAX_PICTURE_BYTES + 1, b"\0"))
    with pytest.raises(UsageError, match="has more than 10,485,760 bytes"):
        Image.open(path)
    with pytest.raises(UsageError, match="10,485,760"):
        Image.in_base64("A" * (MAX_PICTURE_BYTES // 3 * 4 + 8))


@given(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 196_607, 196_608, 196_609, 400_000]))
def test_base64_in_pieces_is_base64(extra: int, size: int):
    data = PNG + bytes(size + extra)
    image = Image.of(data)
    assert image.data == base64.b64encode(data).decode() and image.decoded() == data
    assert Image.in_base64(image.data, place="x") == image


@pytest.mark.parametrize(
    "text",
    ["A", "AA=A", "AAAA=", "AA==AAAA", "AAA\n", "ÄAAA", "AA==" + "A" * (1 << 18), "A" * 262_142 + "==AAAA"],
)
def test_what_is_not_base64_is_refused(text: str):
    with pytest.raises(UsageError, match="is not base64"):
        Image.in_base64(text, "image/png")
    with pytest.raises(UsageError, match="is not base64"):
        Image("image/png", text).decoded()


def test_place_is_told_in_errors_and_is_no_part_of_a_picture():
    here = Image.at("data:image/png;base64,aGk=", place="messages[1].content[0]")
    assert here == Image.at("data:image/png;base64,aGk=") and hash(here) == hash(Image.at(here.as_url))
    with pytest.raises(UsageError, match=r"^messages\[1\].content\[0\] is of media type 'image/tiff'"):
        Image.at("data:image/tiff;base64,aGk=", place="messages[1].content[0]")
    with pytest.raises(UsageError, match=r"^the picture has the detail 'best'; expected low, high, auto"):
        Image.at("data:image/png;base64,aGk=", "best")
    with pytest.raises(UsageError, match="addresses are not fetched"):
        Image.at("https://example.com/a.png").decoded()


def test_message_of_parts_has_their_texts_as_content():
    image = freehold.Image.of(PNG)
    assert Message("user", parts=("What ", image, "is it?")).content == "What is it?"
    assert Message("user", parts=(image,)).content == ""
    assert Message("user", "What?", parts=(image,)) == Message("user", parts=(image, "What?"))
    assert Message("user", "a\nb", parts=("a", image, "b")).content == "a\nb"
    assert "iVBOR" not in repr(image)


@pytest.mark.parametrize(
    "read",
    [
        lambda: Image.of(b"%PDF-1.7 and pages"),
        lambda: Image.in_base64("JVBERi0xLjc="),
        lambda: Image.at("data:application/pdf;base64,JVBERi0xLjc="),
    ],
)
def test_a_pdf_is_refused_with_the_way_to_pictures_of_its_pages(read):
    with pytest.raises(UsageError) as refused:
        read()
    assert "pdftoppm -r 144 -png" in refused.value.hint


def test_a_jpeg_that_a_client_calls_jpg_is_a_jpeg():
    data = base64.b64encode(HEADS["image/jpeg"] + bytes(40)).decode()
    assert Image.at(f"data:image/jpg;base64,{data}").media_type == "image/jpeg"
