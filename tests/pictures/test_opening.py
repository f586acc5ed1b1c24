"""Pictures that hurt have the right pixels, or are refused by name."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freehold.base.errors import UsageError
from freehold.run.pictures import limits, opening
from freehold.run.pictures.opening import Resize, header, open_picture
from tests.pictures import makers as m

AS_IS: Sequence[Sequence[Resize]] = [[]]
WIDE = m.pattern(12, 7)


def seen(data: bytes) -> m.U8:
    """Return a picture's pixels in its own size."""
    size, (pixels,) = open_picture(data, lambda width, height: AS_IS)
    assert pixels.shape == (size.height, size.width, 3) and pixels.dtype == np.uint8
    return pixels


def works() -> bool:
    """Return whether a picture is opened rightly, after what came before."""
    return bool((seen(m.saved(WIDE, "PNG")) == WIDE).all())


@dataclass(frozen=True)
class Right:
    """A file and the pixels that it stands for."""

    data: bytes
    pixels: m.U8
    format: str = "PNG"
    notes: tuple[str, ...] = ()


def palette_png(clear: bytes) -> Right:
    indices = np.arange(12).reshape(3, 4) % 4
    colours = np.array([[250, 3, 9], [0, 200, 7], [5, 6, 240], [90, 91, 92]], np.uint8)
    chunks = m.chunk(b"PLTE", colours.tobytes()) + (m.chunk(b"tRNS", clear) if clear else b"")
    alpha = np.frombuffer(clear.ljust(4, b"\xff"), np.uint8)
    pixels = np.concatenate([colours[indices], alpha[indices][..., None]], axis=-1)
    return Right(m.png(4, 3, 2, m.PALETTE, m.packed_rows(indices, 2), before=chunks), m.on_white(pixels))


def deep_grey() -> np.ndarray:
    return (np.arange(24).reshape(4, 6) * 2_741 + 130).astype(np.uint16)


def grey_of_bits(bits: int, clear: int | None = None) -> Right:
    values = np.arange(20).reshape(4, 5) % (1 << bits)
    chunks = m.chunk(b"tRNS", clear.to_bytes(2)) if clear is not None else b""
    shown = values * (255 // ((1 << bits) - 1))
    return Right(
        m.png(5, 4, bits, m.GREY, m.packed_rows(values, bits), before=chunks),
        m.grey(np.where(values == clear, 255, shown) if clear is not None else shown),
    )


def deep_grey_with_a_clear_value() -> Right:
    """Two values with the same upper byte, of which one stands for nothing."""
    values = np.array([[0x1234, 0x1235, 0x3434]], np.uint16)
    data = m.png(3, 1, 16, m.GREY, m.rows_of(values, ">u2"), before=m.chunk(b"tRNS", b"\x12\x34"))
    return Right(data, m.grey([[255, 0x12, 0x34]]))


def deep_rgb(clear: bytes = b"") -> Right:
    values = (np.arange(4 * 5 * 3).reshape(4, 5, 3) * 1_057 + 255).astype(np.uint16)
    chunks = m.chunk(b"tRNS", values[1, 2].astype(">u2").tobytes()) if clear else b""
    pixels = (values >> 8).astype(np.uint8)
    if clear:
        pixels[1, 2] = 255
    return Right(m.png(5, 4, 16, m.RGB, m.rows_of(values, ">u2"), before=chunks), pixels)


def deep_alpha(colour: int, channels: int) -> Right:
    values = (np.arange(4 * 5 * channels).reshape(4, 5, channels) * 811 + 99).astype(np.uint16)
    upper = (values >> 8).astype(np.uint8)
    pixels = upper if channels == 4 else upper[..., [0, 0, 0, 1]]
    return Right(m.png(5, 4, 16, colour, m.rows_of(values, ">u2")), m.on_white(pixels))


def clear_colour() -> Right:
    pixels = WIDE.copy()
    pixels[2, 3] = 255
    clear = WIDE[2, 3].astype(">u2").tobytes()
    return Right(m.png(12, 7, 8, m.RGB, m.rows_of(WIDE), before=m.chunk(b"tRNS", clear)), pixels)


def rgba() -> Right:
    pixels = m.pattern(16, 16, 4)
    return Right(m.saved(pixels, "PNG"), m.on_white(pixels))


def alpha_in_webp() -> Right:
    pixels = m.pattern(16, 16, 4)
    data = m.saved(pixels, "WEBP", lossless=True, exact=True)
    return Right(data, m.on_white(pixels), "WebP")


def grey_alpha() -> Right:
    pixels = m.pattern(9, 5, 2)
    return Right(m.saved(pixels, "PNG", "LA"), m.on_white(pixels[..., [0, 0, 0, 1]]))


def one_bit() -> Right:
    values = WIDE[..., 0] > 120
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return Right(file.getvalue(), m.grey(values * 255))


def gif(**options: int) -> Right:
    indices = (np.arange(20 * 24).reshape(20, 24) % 5).astype(np.uint8)
    colours = np.arange(768).astype(np.uint8).reshape(256, 3)[::-1].copy()
    image = Image.frombytes("P", (24, 20), indices.tobytes())
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "GIF", optimize=False, **options)
    pixels = colours[indices]
    if "transparency" in options:
        pixels[indices == options["transparency"]] = 255
    return Right(file.getvalue(), pixels, "GIF")


def jpeg(mode: str = "RGB", **options: object) -> Right:
    data = m.saved(m.pattern(40, 24), "JPEG", mode, **options)
    return Right(data, m.by_pillow(data), "JPEG")


def turned_jpeg(orientation: int) -> Right:
    data = m.with_exif(m.pattern(40, 24), "JPEG", orientation)
    return Right(data, m.turned(m.by_pillow(data), orientation), "JPEG")


def strange_exif(exif: bytes, *notes: str) -> Right:
    data = m.saved(m.pattern(40, 24), "JPEG", exif=exif)
    return Right(data, m.by_pillow(data), "JPEG", notes)


def two_pictures_in_a_jpeg() -> Right:
    first, second = Image.fromarray(m.pattern(40, 24)), Image.fromarray(m.pattern(20, 12))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    return Right(file.getvalue(), m.by_pillow(file.getvalue()), "JPEG")


def jpeg_and_zip() -> Right:
    whole = jpeg()
    file = io.BytesIO(whole.data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("run.sh", "echo hello")
    return Right(file.getvalue(), whole.pixels, "JPEG")


def jpeg_then_text() -> Right:
    whole = jpeg()
    return Right(whole.data + b"<script>alert(1)</script>" * 99, whole.pixels, "JPEG")


def exif_in_png(*, behind: bool) -> Right:
    exif = m.chunk(b"eXIf", m.exif_block(6))
    before, after = (b"", exif) if behind else (exif, b"")
    data = m.png(12, 7, 8, m.RGB, m.rows_of(WIDE), before=before, after=after)
    return Right(data, m.turned(WIDE, 6))


def turned_webp() -> Right:
    return Right(m.with_exif(WIDE, "WEBP", 8, lossless=True), m.turned(WIDE, 8), "WebP")


def avif() -> Right:
    data = m.with_exif(m.pattern(40, 24), "AVIF", 6)
    return Right(data, m.turned(m.by_pillow(data), 6), "AVIF")


FRAMES = [m.pattern(20, 10), 255 - m.pattern(20, 10), m.pattern(20, 10)[::-1].copy()]


def animated(name: str, format: str = "", **options: object) -> Right:
    data = m.animation(FRAMES, name, **options)
    return Right(data, m.by_pillow(data), format or name, (m.ANIMATED,))


RIGHT = {
    "rgb": lambda: Right(m.saved(WIDE, "PNG"), WIDE),
    "grey": lambda: Right(m.saved(WIDE[..., :1], "PNG"), m.grey(WIDE[..., 0])),
    "one bit": one_bit,
    "grey of one bit with a clear value": lambda: grey_of_bits(1, 1),
    "grey of two bits": lambda: grey_of_bits(2),
    "grey of two bits with a clear value": lambda: grey_of_bits(2, 2),
    "grey of four bits with a clear value": lambda: grey_of_bits(4, 9),
    "grey of eight bits with a clear value": lambda: grey_of_bits(8, 7),
    "grey of 16 bits": lambda: Right(m.png(6, 4, 16, 0, m.rows_of(deep_grey(), ">u2")), m.grey(deep_grey() >> 8)),
    "grey of 16 bits with a clear value": deep_grey_with_a_clear_value,
    "rgb of 16 bits": deep_rgb,
    "rgb of 16 bits with a clear colour": lambda: deep_rgb(b"yes"),
    "rgb with a clear colour": clear_colour,
    "rgba": rgba,
    "rgba of 16 bits": lambda: deep_alpha(m.RGBA, 4),
    "grey and alpha": grey_alpha,
    "grey and alpha of 16 bits": lambda: deep_alpha(m.GREY_ALPHA, 2),
    "palette": lambda: palette_png(b""),
    "palette with one clear colour": lambda: palette_png(b"\xff\0"),
    "palette with alpha": lambda: palette_png(b"\x40\x80\xff\0"),
    "1 x 1": lambda: Right(m.saved(m.pattern(1, 1), "PNG"), m.pattern(1, 1)),
    "3000 x 40": lambda: Right(m.saved(m.pattern(3000, 40), "PNG"), m.pattern(3000, 40)),
    "40 x 3000": lambda: Right(m.saved(m.pattern(40, 3000), "PNG"), m.pattern(40, 3000)),
    "32,768 wide": lambda: Right(m.saved(m.pattern(32_768, 2), "PNG"), m.pattern(32_768, 2)),
    "interlaced": lambda: Right(m.adam7(m.pattern(21, 19)), m.pattern(21, 19)),
    "interlaced 1 x 1": lambda: Right(m.adam7(m.pattern(1, 1)), m.pattern(1, 1)),
    "exif before a png's pixels": lambda: exif_in_png(behind=False),
    "exif behind a png's pixels": lambda: exif_in_png(behind=True),
    "a png's text": lambda: Right(
        m.png(12, 7, 8, m.RGB, m.rows_of(WIDE), before=m.chunk(b"tEXt", b"Comment\0<svg>")), WIDE
    ),
    "animated png": lambda: animated("PNG"),
    "gif": gif,
    "gif with a clear colour": lambda: gif(transparency=3),
    "interlaced gif": lambda: gif(interlace=1),
    "animated gif": lambda: animated("GIF"),
    "webp": lambda: Right(m.saved(WIDE, "WEBP", lossless=True), WIDE, "WebP"),
    "lossy webp": lambda: Right(d := m.saved(m.pattern(40, 24), "WEBP"), m.by_pillow(d), "WebP"),
    "webp with alpha": alpha_in_webp,
    "turned webp": turned_webp,
    "animated webp": lambda: animated("WEBP", "WebP", lossless=True),
    "jpeg": jpeg,
    "grey jpeg": lambda: jpeg("L"),
    "cmyk jpeg": lambda: jpeg("CMYK"),
    "progressive jpeg": lambda: jpeg(progressive=True),
    **{f"jpeg turned by {n}": lambda n=n: turned_jpeg(n) for n in range(1, 9)},
    "exif that turns by 9": lambda: strange_exif(b"Exif\0\0" + m.exif_block(9)),
    "exif of nothing": lambda: strange_exif(b"Exif\0\0"),
    "exif that is none": lambda: strange_exif(
        b"Exif\0\0 not at all", "its EXIF cannot be read, so it is seen as it is stored"
    ),
    "two pictures in a jpeg": two_pictures_in_a_jpeg,
    "a jpeg that is a zip": jpeg_and_zip,
    "a jpeg with a script behind it": jpeg_then_text,
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_pixels_are_right(name: str):
    right = RIGHT[name]()
    size, (pixels,) = open_picture(right.data, lambda width, height: AS_IS)
    assert (size.format, size.notes) == (right.format, right.notes)
    assert (size.height, size.width) == right.pixels.shape[:2]
    np.testing.assert_array_equal(pixels, right.pixels)
    assert header(right.data) == size


@pytest.mark.skipif(not m.HAS_AVIF, reason="this Pillow has no AVIF")
@pytest.mark.heavy
def test_avif_is_turned_and_its_first_frame_seen():
    right = avif()
    np.testing.assert_array_equal(seen(right.data), right.pixels)
    data = m.animation(FRAMES, "AVIF")
    assert header(data).notes == (m.ANIMATED,)
    np.testing.assert_array_equal(seen(data), m.by_pillow(data))


def test_alpha_is_mixed_as_by_the_processors_of_the_models():
    """They lay a picture over white by `alpha_composite`, or paste it: both round alike."""
    values = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).astype(np.uint8)
    pixels = values[..., [0, 0, 0, 1]]
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, (255, 255, 255))
    np.testing.assert_array_equal(
        seen(m.saved(pixels, "PNG")), np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    )


# --- refused by name --------------------------------------------------------------------------------------------------

CAN_BE_SEEN = m.saved(WIDE, "PNG")
REFUSED = {
    "nothing": (b"", "is empty"),
    "a zero": (b"\0", r"begins with b'\\x00'"),
    "ten megabytes and one": (
        b"\x89PNG\r\n\x1a\n".ljust(limits.MAX_BYTES + 1), "10,485,761 bytes; the limit is 10,485,760",
    ),
    "text": (b"What is in this picture?", "begins with b'What is '"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "has the format SVG"),
    "svg behind a comment": (b"\xef\xbb\xbf\n<?xml version='1.0'?><!-- x --><svg/>", "has the format SVG"),
    "html": (b"<!DOCTYPE html><html><body>404", "has the format HTML"),
    "xml": (b"<?xml version='1.0'?><plist/>", "has the format XML"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "has the format PostScript"),
    "tiff": (m.saved(WIDE, "TIFF"), "has the format TIFF"),
    "psd": (b"8BPS\0\1" + bytes(60), "has the format PSD"),
    "fits": (b"SIMPLE  =                    T".ljust(2880), "has the format FITS"),
    "bmp": (m.saved(WIDE, "BMP"), "has the format BMP"),
    "ico": (m.saved(m.pattern(16, 16), "ICO"), "has the format ICO"),
    "pdf": (b"%PDF-1.7\n", "has the format PDF"),
    "zip": (b"PK\3\4" + bytes(40), "has the format ZIP"),
    "a sound in RIFF": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), "has the format RIFF"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "has the format HEIC"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "is a video"),
    "ppm": (b"P6 1 1 255 abc", "begins with b'P6 1 1 2'"),
    "a png's first bytes": (CAN_BE_SEEN[:8], "PNG file is truncated"),
    "a jpeg's first bytes": (b"\xff\xd8\xff", "JPEG file is truncated"),
    "a gif's first bytes": (b"GIF89a", "GIF file is truncated"),
    "a webp's first bytes": (b"RIFF\x24\0\0\0WEBPVP8 ", "WebP file is truncated"),
    "an avif's first bytes": (b"\0\0\0\x18ftypavif\0\0\0\0avif", "AVIF"),
    "tiff behind a png's first bytes": (CAN_BE_SEEN[:8] + m.saved(WIDE, "TIFF"), "PNG file is truncated or damaged"),
    "a png of no width": (m.png_bomb(0, 9), "PNG file is"),
    "a png with a wrong checksum": (CAN_BE_SEEN.replace(b"IHDR", b"IHDQ", 1), "PNG file is truncated or damaged"),
    "a png of an unknown colour": (m.png(4, 4, 8, 5, bytes(99)), "PNG file is truncated or damaged"),
    "a png whose text claims to be its alpha": (
        m.png(12, 7, 8, m.RGB, m.rows_of(WIDE), before=m.chunk(b"tEXt", b"transparency\0white")), "PNG file is",
    ),
    "a text of a png that unpacks to gigabytes": (
        m.png(12, 7, 8, m.RGB, m.rows_of(WIDE), before=m.chunk(b"zTXt", b"A\0\0" + zlib.compress(bytes(1 << 24)))),
        "PNG file is truncated or damaged",
    ),
    "a png 65,535 wide": (m.png_bomb(65_535, 1), "65,535 x 1 pixels; the limit of a side is 32,768"),
    "a png 32,769 high": (m.png_bomb(1, 32_769), "1 x 32,769 pixels"),
    "a png of 900 megapixels": (m.png_bomb(30_000, 30_000), "900,000,000 pixels; the limit is 67,108,864"),
    "a png one row too high": (m.png_bomb(8192, 8193), "67,117,056 pixels; the limit is 67,108,864"),
    "a png of all that 32 bits hold": (m.png_bomb(0xFFFFFFFF, 0xFFFFFFFF), "pixels|PNG file is"),
    "a jpeg 65,535 wide": (m.jpeg_stating(65_535, 9), "65,535 x 9 pixels; the limit of a side is 32,768"),
    "a jpeg of four gigapixels": (m.jpeg_stating(65_535, 65_535), "4,294,836,225 pixels; the limit is 67,108,864"),
    "a gif of four gigapixels": (m.gif_stating(65_535, 65_535), "4,294,836,225 pixels; the limit is 67,108,864"),
    "a webp of 268 megapixels": (m.webp_stating(16_383, 16_383), "16,383 x 16,383 = 268,402,689 pixels"),
    "a webp of 16 million a side": (m.webp_stating(1 << 24, 1), "16,777,216 x 1 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_picture_is_refused_by_name(name: str):
    data, why = REFUSED[name]
    with pytest.raises(UsageError) as refused:
        seen(data)
    assert re.search(why, refused.value.message), refused.value.message


def test_a_size_beyond_the_limits_is_refused_before_there_are_pixels():
    for data in (m.png_bomb(30_000, 30_000), m.jpeg_stating(65_535, 65_535), m.webp_stating(16_383, 16_383)):
        with pytest.raises(UsageError, match="the limit is 67,108,864"):
            header(data)
    assert header(m.jpeg_stating(8192, 8192)).width == 8192  # of which it has some pixels


WHOLE = {
    "PNG": m.saved(m.pattern(200, 100), "PNG"),
    "JPEG": m.saved(m.pattern(200, 100), "JPEG"),
    "progressive JPEG": m.saved(m.pattern(200, 100), "JPEG", progressive=True),
    "GIF": m.saved(m.pattern(200, 100), "GIF"),
    "WebP": m.saved(m.pattern(200, 100), "WEBP"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_truncated_is_refused_or_has_all_pixels(name: str):
    """A file may miss what stands behind its pixels, such as its end mark."""
    whole, data = seen(WHOLE[name]), WHOLE[name]
    refused = 0
    for left in (*range(1, 40, 6), *(len(data) * part // 16 for part in range(1, 16)), *range(-9, 0)):
        try:
            np.testing.assert_array_equal(seen(data[:left]), whole)
        except UsageError as e:
            assert "truncated" in e.message or "begins with" in e.message or "format RIFF" in e.message
            refused += 1
    assert refused >= 20


def test_the_last_frames_of_an_animation_may_be_damaged():
    for name in ("GIF", "PNG"):
        data = m.animation(FRAMES, name)
        whole = seen(data)
        cut = data[: len(data) * 2 // 3]
        assert header(cut).notes == (m.ANIMATED,)
        np.testing.assert_array_equal(seen(cut), whole)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_resizes_follow_one_another_as_pillow_does_them():
    data = m.saved(m.pattern(120, 70), "PNG")
    first, second = Resize(90, 64, "lanczos"), Resize(33, 47, "bicubic")
    plan = [[first, second], [], [first], [first, Resize(8, 8, "bilinear")], [Resize(240, 9, "bilinear")]]
    sizes: list[tuple[int, int]] = []
    size, arrays = open_picture(data, lambda width, height: sizes.append((width, height)) or plan)
    assert sizes == [(120, 70)] == [(size.width, size.height)]
    filters = {name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "lanczos")}
    for resizes, pixels in zip(plan, arrays, strict=True):
        image = Image.fromarray(m.pattern(120, 70))
        for each in resizes:
            image = image.resize((each.width, each.height), filters[each.filter])
        np.testing.assert_array_equal(pixels, np.asarray(image))


def test_a_plan_sees_the_size_after_turning():
    data = m.with_exif(m.pattern(40, 24), "JPEG", 6)
    size, (pixels,) = open_picture(data, lambda width, height: [[Resize(width // 2, height // 2, "bicubic")]])
    assert (size.width, size.height, pixels.shape) == (24, 40, (20, 12, 3))


def test_what_a_plan_raises_reaches_the_caller_and_the_next_picture_is_opened():
    class NoRoom(Exception):
        pass

    def plan(width: int, height: int) -> Sequence[Sequence[Resize]]:
        raise NoRoom(f"{width} x {height}")

    with pytest.raises(NoRoom, match="12 x 7"):
        open_picture(CAN_BE_SEEN, plan)
    assert works()


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ([[Resize(8192, 8193, "bicubic")]], "67,117,056 pixels in all; the limit is 67,108,864"),
        ([[Resize(4096, 4096, "bicubic")]] * 5, "83,886,080 pixels in all"),
        ([[Resize(8192, 8193, "bicubic"), Resize(2, 2, "bicubic")]], "pixels in all"),
        ([[Resize(0, 9, "bicubic")]], "0 x 9 pixels; a side may have 1 to 32,768"),
        ([[Resize(32_769, 9, "bicubic")]], "32,769 x 9 pixels"),
    ],
)
def test_a_plan_beyond_its_limits_is_refused(plan: list[list[Resize]], why: str):
    with pytest.raises(UsageError, match=why):
        open_picture(CAN_BE_SEEN, lambda width, height: plan)


# --- no more of Pillow than is needed ---------------------------------------------------------------------------------

LOADED = """
import sys, json
from pathlib import Path
from freehold.run.pictures import pillow
pillow.warm_up()
for path in Path(sys.argv[1]).iterdir():
    for name in pillow.FORMATS:
        try:
            pillow.PictureFile(path.read_bytes(), name).pixels()
        except (pillow.UsageError, MemoryError):
            pass
print(json.dumps([name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin")]))
"""


@pytest.mark.heavy
def test_other_formats_of_pillow_are_never_loaded(tmp_path: Path):
    files = [right().data for right in RIGHT.values()] + [data for data, _ in REFUSED.values()]
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    command = [sys.executable, "-c", LOADED, str(tmp_path)]
    got = subprocess.run(command, capture_output=True, text=True, check=True)
    of_pillow = ("Bmp", "Ppm")  # which Pillow loads whenever it opens a file, and does not try
    ours = ("Gif", "Jpeg", "Png", "WebP", "Avif", "Mpo", "Tiff")
    loaded = {name.removeprefix("PIL.").removesuffix("ImagePlugin") for name in json.loads(got.stdout)}
    assert loaded <= {*ours, *of_pillow}


def test_a_callers_process_imports_no_pillow():
    code = (
        "import sys; from freehold.run.pictures.opening import open_picture\n"
        "open_picture(sys.stdin.buffer.read(), lambda w, h: [[]]); print('PIL' in sys.modules)"
    )
    got = subprocess.run([sys.executable, "-c", code], input=CAN_BE_SEEN, capture_output=True, check=True)
    assert got.stdout.split() == [b"False"]


def test_an_answer_of_the_decoders_is_not_trusted():
    """A decoder that a picture took over may answer anything."""

    class Talk:
        def __init__(self, reply: object) -> None:
            self.reply = reply

        def send(self, message: bytes) -> None: ...

        def send_bytes(self, data: bytes) -> None: ...

        def receive(self) -> object:
            return self.reply

    for wrong in (
        {},
        {"width": 0, "height": 5, "notes": []},
        {"width": 5, "height": -1, "notes": []},
        {"width": 1e9, "height": 5, "notes": []},
        {"width": True, "height": 5, "notes": []},
        {"width": 32_000, "height": 32_000, "notes": []},
        {"width": 5, "height": 5, "notes": "none"},
    ):
        with pytest.raises(UsageError, match="answered with something else"):
            opening._size(Talk(wrong), b"", "PNG")  # type: ignore[arg-type]
    noted = {"width": 5, "height": 5, "notes": ["\x1b[2J" + "x" * 999] * 99}
    size = opening._size(Talk(noted), b"", "PNG")  # type: ignore[arg-type]
    assert len(size.notes) == 8 and size.notes[0] == "?[2J" + "x" * 296
    with pytest.raises(UsageError, match=r"^no\?way$"):
        opening._size(Talk({"error": "no\nway"}), b"", "PNG")  # type: ignore[arg-type]
