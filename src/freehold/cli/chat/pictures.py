"""Pictures and sounds in a terminal: attached to a message, and refused where a model does not take them.

A picture's file is recognised where it is dropped.

Knows paths and messages; knows no model and no decoding: the model's side opens what is in a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.types import Audio, Image, Message, media_type_of
from freehold.run.store import Store
from freehold.run.store.eyes import has_tower
from freehold.serve.tools.pictures import shown_to

MAX_LINE = 8192  # characters of a line that may be paths
# Of all pictures of a request: a server takes 16 MiB, in which base64 is a third longer and text has its place.
MAX_SENT_BYTES = 11 << 20
_NAMED = 5  # models of a sentence
UNSAVED = "a saved chat keeps the text of the message, but not the audio"


def check_sees(name: str, can_see: bool) -> None:
    """Raise UsageError for pictures that a model cannot be shown."""
    if not can_see:
        raise UsageError(
            f"{name} cannot read pictures",
            "freehold list shows which models can; in a chat, /model NAME switches to one",
        )


def check_hears(name: str, can_listen: bool) -> None:
    """Raise UsageError for sounds that a model cannot hear."""
    if not can_listen:
        raise UsageError(
            f"{name} cannot process audio",
            "freehold list shows which models can; freehold transcribe turns a recording into text",
        )


def tool_pictures(
    messages: Sequence[Message], can_see: bool, who: Callable[[], Sequence[str]] = tuple
) -> tuple[Message, ...]:
    """Return a chat with those pictures of tools that a model is shown; see freehold.serve.tools.pictures.

    `who`: looks for models that see, for one that reads text alone.
    """
    unseen = not can_see and any(message.role == "tool" and message.parts for message in messages)
    return shown_to(messages, can_see, MAX_SENT_BYTES, who() if unseen else ())


def installed_seeing(store: Store) -> tuple[str, ...]:
    """Return installed models that come with a tower, as many of them as a sentence takes."""
    names: list[str] = []
    for model in store.list():
        with suppress(FreeholdError, OSError):
            if model.state == "ready" and len(names) < _NAMED and has_tower(model):
                names.append(model.name)
    return tuple(names)


def with_images(images: Sequence[Image | Audio], text: str) -> Message:
    """Return a message of the user's: its pictures and sounds, then its text."""
    return Message("user", text, parts=(*images, *([text] if text else ())) if images else ())


def images_of(message: Message) -> tuple[Image, ...]:
    """Return a message's pictures."""
    return tuple(part for part in message.parts if isinstance(part, Image))


def attached_of(message: Message) -> tuple[Image | Audio, ...]:
    """Return a message's pictures and sounds."""
    return tuple(part for part in message.parts if not isinstance(part, str))


def described(name: str, image: Image | Audio) -> str:
    """Return an attached picture or sound in words."""
    if isinstance(image, Audio):
        return f"{name}: audio of {image.size / 1000:,.1f} kB"
    return f"{name}: {image.media_type.removeprefix('image/').upper()}, {image.size / 1000:,.1f} kB"


def dropped(line: str) -> tuple[Path, ...]:
    """Return the pictures' files that a line is nothing but the paths of; none for any other line.

    Terminals write the path of a file that is dropped on them with quotes, backslashes or as a file: URL.
    """
    text = line.strip()
    if not text or "\n" in text or len(text) > MAX_LINE:
        return ()
    if _is_picture(whole := _path(text)):
        return (whole,)
    try:
        paths = tuple(map(_path, shlex.split(text)))
    except ValueError:  # a quote that is not closed
        return ()
    return paths if all(map(_is_picture, paths)) else ()


def _path(word: str) -> Path:
    if word.startswith("file://"):
        return Path(unquote(urlsplit(word).path))
    try:
        return Path(word).expanduser()
    except RuntimeError:  # the home of an unknown user
        return Path(word)


def _is_picture(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return bool(media_type_of(file.read(32)))
    except (OSError, ValueError):  # too long, or a NUL
        return False
