"""A stranger's picture to pixels by Pillow: the first frame, turned by its EXIF, on white, in RGB of eight bits.

Limits of size are checked once the header is read, before pixels exist; those of time and memory are the process's
(child.py). Formats are those of FORMATS, and no others of Pillow's are tried. What Pillow leaves wrong is put right
here: grey of 16 bits, which it clips to white, the colour that stands for nothing in a PNG of other than 8 bits, EXIF
behind a PNG's pixels, the size of a WebP's canvas, which it allocates before it looks.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

# Each registers its format. Image.open loads every plugin there is, where one that it is to try is not registered.
from PIL import (
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from freehold.base.errors import UsageError
from freehold.run.pictures.limits import HINT, MAX_PIXELS, MAX_SIDE

PLUGINS = (GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
# A JPEG may have a second picture, and EXIF is TIFF: neither is opened for itself.
WITHIN = (MpoImagePlugin, TiffImagePlugin)
with suppress(ImportError):  # before Pillow 11.3
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a confined process starts none

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF")
Step = tuple[int, int, str]  # width, height, filter
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
_WHITE = (255, 255, 255)
_WHY = 160  # characters of Pillow's words

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow checks it at places of its own, too
Image.WARN_POSSIBLE_FORMATS = True  # so that a refusal has a reason


class PictureFile:
    """A picture whose header was read. `width` and `height`: as it is seen; `notes`: what of it is not seen."""

    def __init__(self, data: bytes, name: str) -> None:
        """Read the header of a file in the format `name`. Raises UsageError, MemoryError."""
        self._name = name
        self.notes: list[str] = []
        with self._explained():
            if name == "WEBP":
                _check_size(*_webp_canvas(data))
            self._image: Image.Image | None = _opened(data, name)
            _check_size(*self._image.size)
            self._depth = data[24] if name == "PNG" else 8  # bits of a channel
            self._turn = self._turn_of(self._image, data)
            if _is_animated(self._image, data, name):
                self.notes.append("an animation: only its first frame is used")
        width, height = self._image.size
        self.width, self.height = (height, width) if self._turn in _SIDEWAYS else (width, height)

    def pixels(self) -> Image.Image:
        """Return the picture in RGB. Can be called once. Raises UsageError, MemoryError."""
        image, self._image = self._image, None
        assert image is not None
        with self._explained():
            image.load()
            image = _rgb(image, self._depth)
            return image if self._turn is None else image.transpose(self._turn)

    def _turn_of(self, image: Image.Image, data: bytes) -> Image.Transpose | None:
        if self._name == "PNG" and "exif" not in image.info and (exif := _exif_behind_pixels(data)):
            image.info["exif"] = b"Exif\0\0" + exif
        # A PNG's own `getexif` decodes its pixels, and a JPEG's own hides what is wrong with it.
        bare = Image.new("1", (1, 1))
        bare.info = image.info
        try:
            return _TURNS.get(bare.getexif().get(ExifTags.Base.Orientation, 1))
        except MemoryError:
            raise
        except Exception:
            self.notes.append("its EXIF cannot be read, so it is seen as it is stored")
            return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what Pillow raises as UsageError, and keep what it warns of as notes."""
        name = "WebP" if self._name == "WEBP" else self._name
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                yield
            except (UsageError, MemoryError):
                raise
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
                count = int((re.findall(r"\d+", str(e)) or [MAX_PIXELS])[0])
                raise UsageError(
                    f"the picture has {count:,} pixels; the limit is {MAX_PIXELS:,}", HINT
                ) from e
            except UnidentifiedImageError as e:  # its text is of an object; the reason was a warning
                why = _words(seen[-1].message) if seen else "its header cannot be read"
                why = why.removeprefix(f"{self._name} opening failed. ")
                raise UsageError(f"the {name} file is truncated or damaged: {why}") from e
            except Exception as e:
                if "out of memory" in str(e).lower():
                    raise MemoryError from e
                how = "truncated" if "truncated" in str(e).lower() else "truncated or damaged"
                raise UsageError(f"the {name} file is {how}: {_words(e)}") from e
        if seen:
            others = f", and {len(seen) - 1:,} more" if len(seen) > 1 else ""
            self.notes.append(f"the file is irregular: {_words(seen[0].message)}{others}")


def resized(image: Image.Image, plan: Iterable[Sequence[Step]]) -> Iterator[Image.Image]:
    """Yield what becomes of a picture by each list of resizes. What a list begins with as the one before is kept."""
    done: list[tuple[Step, Image.Image]] = []
    for resizes in plan:
        same = 0
        while same < min(len(done), len(resizes)) and done[same][0] == tuple(resizes[same]):
            same += 1
        del done[same:]
        for width, height, name in resizes[same:]:
            before = done[-1][1] if done else image
            done.append(((width, height, name), before.resize((width, height), _FILTERS[name])))
        yield done[-1][1] if done else image


def warm_up() -> None:
    """Open small pictures, so that a fork has every module that they need."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in FORMATS[:4]:  # writing AVIF starts threads
        file = io.BytesIO()
        Image.new("RGBA" if name in ("PNG", "WEBP") else "L", (3, 2)).save(file, name, exif=exif)
        picture = PictureFile(file.getvalue(), name)
        for image in resized(picture.pixels(), [[(4, 4, "bicubic")]]):
            image.tobytes()


def _opened(data: bytes, name: str) -> Image.Image:
    if name not in FORMATS or name not in Image.OPEN:
        raise UsageError(f"this Pillow does not read {name}", "save the picture as PNG or JPEG")
    return Image.open(io.BytesIO(data), formats=[name])


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise UsageError(
            f"the picture has {width:,} x {height:,} pixels; the limit of a side is {MAX_SIDE:,}", HINT
        )
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"the picture has {width:,} x {height:,} = {width * height:,} pixels; the limit is {MAX_PIXELS:,}",
            HINT,
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height by the first chunk, 0 where it does not say."""
    kind, chunk = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(chunk[4:7], "little") + 1, int.from_bytes(chunk[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(chunk[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", chunk, 6)
    return (width & 0x3FFF, height & 0x3FFF) if kind == b"VP8 " else (0, 0)


def _exif_behind_pixels(data: bytes) -> bytes:
    """Return the EXIF of a PNG, which may have it behind its pixels."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _is_animated(image: Image.Image, data: bytes, name: str) -> bool:
    """Tell whether frames follow. A second picture in a JPEG is a smaller or deeper one of the same."""
    if name == "JPEG":
        return False
    try:
        # A GIF is read on for the answer: another reader of it, so that this one stays at its first frame.
        return bool(getattr(_opened(data, name) if name == "GIF" else image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # the frames that follow are damaged
        return True


def _rgb(image: Image.Image, depth: int) -> Image.Image:
    """Return a picture in RGB of eight bits, on white. `depth`: bits of a channel in the file."""
    if image.mode.startswith("I"):
        return _upper_bits(image)
    clear = image.info.get("transparency")
    if depth != 8 and image.mode in ("L", "RGB") and clear is not None:  # Pillow leaves it in the file's bits
        image.info["transparency"] = _eight_bits(clear, depth)
    if image.has_transparency_data:
        return _on_white(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(value: int | tuple[int, ...], depth: int) -> int | tuple[int, ...]:
    if isinstance(value, tuple):
        return tuple(each >> 8 for each in value)
    most = (1 << depth) - 1
    return (value & most) * (255 // most)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(image, mask=image)
    return white


def _upper_bits(image: Image.Image) -> Image.Image:
    """Return grey of 16 bits by its upper eight, white where a value stands for nothing."""
    pairs = (image if image.mode == "I;16" else image.convert("I;16")).tobytes()  # lower byte first
    upper = Image.frombytes("L", image.size, pairs[1::2])
    clear = image.info.get("transparency")
    if clear is not None:
        lower = Image.frombytes("L", image.size, pairs[::2])
        upper.paste(255, mask=ImageChops.darker(_where(upper, clear >> 8), _where(lower, clear & 255)))
    return upper.convert("RGB")


def _where(image: Image.Image, value: int) -> Image.Image:
    return image.point([255 if each == value else 0 for each in range(256)])


def _words(error: object) -> str:
    """Return the first line of what Pillow says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_WHY]
