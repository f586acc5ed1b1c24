"""Pictures in the results of tools: opened once, shown to a model that sees, named to one that reads text.

No user sent them, so no answer fails because of one: what cannot be shown is left out, and the result's text says so.
Knows messages and limits; knows no server of tools, no chat's file and no protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.types import MAX_PICTURES, Image, Message

_TRIED = 64  # pixels a side of what a picture is opened to, to know that it can be


def tool_message(
    content: str, call: str, name: str, images: Sequence[Image] = (), *, failed: bool = False
) -> Message:
    """Return the result of a tool, its pictures behind the text that names them."""
    parts = (*([content] if content else ()), *images) if images else ()
    return Message("tool", content, tool_call_id=call, name=name, parts=parts, failed=failed)


def usable(urls: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the data: URLs whose pictures can be opened, and a line on each of the others. Blocks.

    A damaged picture would fail this answer and all that follow it in its chat. Without Pillow, and where no process
    can be started, nothing is known of them and all are returned.
    """
    if find_spec("PIL") is None:
        return tuple(urls), ()
    kept: list[str] = []
    lines: list[str] = []
    for url in urls:
        try:
            _open(url)
        except UsageError as e:
            lines.append(f"[A picture is left out here: {e.message}.]")
            continue
        except FreeholdError:
            pass
        kept.append(url)
    return tuple(kept), tuple(lines)


def _open(url: str) -> None:
    from freehold.run.pictures.opening import Resize, open_picture

    open_picture(
        Image.at(url).decoded(),
        lambda width, height: [[Resize(min(width, _TRIED), min(height, _TRIED), "bilinear")]],
    )


def shown_to(
    messages: Sequence[Message],
    sees: bool,
    most_bytes: int,
    who: Sequence[str] = (),
) -> tuple[Message, ...]:
    """Return a chat with those pictures of tools that a model is shown, and a sentence for each that it is not.

    `sees`: whether the model reads pictures; `who`: models that do, for one that does not. A request holds MAX_PICTURES
    and `most_bytes` of them; the user's come first, then those of the newest results.
    """
    if not sees:
        return tuple(
            _without(m, _count(m), text_only(_count(m), who)) if _is_shown(m) else m for m in messages
        )
    users = [part for m in messages if not _is_shown(m) for part in m.parts if isinstance(part, Image)]
    room, left = most_bytes - sum(image.size for image in users), MAX_PICTURES - len(users)
    out: list[Message] = []
    for message in reversed(messages):
        if _is_shown(message):
            beyond = 0
            for image in _images(message):
                fits = left > 0 and image.size <= room and not beyond
                beyond += not fits
                room, left = room - image.size * fits, left - fits
            if beyond:
                limit = f"a request holds at most {MAX_PICTURES} pictures and {most_bytes:,} bytes of them"
                message = _without(message, beyond, left_out(beyond, limit))
        out.append(message)
    return tuple(out[::-1])


def text_only(count: int, who: Sequence[str] = ()) -> str:
    """Return what a model that reads text alone gets in place of pictures. `who`: models that see."""
    hint = f" {', '.join(who)} can see pictures." if who else ""
    return left_out(count, "this model reads text only", hint)


def left_out(count: int, why: str, hint: str = "") -> str:
    """Return the sentence that stands in a result's text for pictures that a model is not shown."""
    pictures = "A picture is" if count == 1 else f"{count} pictures are"
    return f"\n[{pictures} left out here: {why}.{hint}]"


def _is_shown(message: Message) -> bool:
    return message.role == "tool" and bool(_images(message))


def _images(message: Message) -> list[Image]:
    return [part for part in message.parts if isinstance(part, Image)]


def _count(message: Message) -> int:
    return len(_images(message))


def _without(message: Message, count: int, sentence: str) -> Message:
    """Return a message without its last `count` pictures, with a sentence in their place."""
    images, content = _images(message), message.content + sentence
    kept = images[: len(images) - count]
    parts = (content, *kept) if kept else ()
    return replace(message, content=content, parts=parts)
