"""Pictures on their way to an engine: looked at before it gets them, and counted where it does not count them itself.

Engines decode what they are sent in their own process, some of them the whole of a bomb, so a picture's header is read
here first, in the process that can be killed (pictures/). Knows a deployment's plan; knows no protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Image, Message
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.planning.eyes import tower_counts

KEPT = 4096  # pictures whose sizes are remembered: a chat sends all of its again with each turn
# Formats that an engine reads, by their names in pictures/opening.py; an engine that is not here reads all of them.
_READS = {"llamacpp": ("PNG", "JPEG", "GIF")}  # stb_image
Size = tuple[int, int]


class PictureDoor:
    """The door of one deployment: no picture passes that our own engine would refuse by its header."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, tuple[Size, str]] = OrderedDict()
        self._tokens_of: OrderedDict[tuple[str, Size], int] = OrderedDict()  # by the tower's file and a size

    async def check(self, job: Job, plan: DeployPlan) -> None:
        """Look at a job's pictures. Raises UsageError naming one by its place, as opening.header does.

        An address passes: the engine's wire refuses it by name. Our own engine looks for itself.
        """
        plan = plan.inner or plan
        pictures = list(_pictures(job))
        if pictures and plan.engine != "freehold":
            await asyncio.to_thread(self._check, pictures, plan)

    async def tokens(self, job: Job, plan: DeployPlan) -> int | None:
        """Return how many tokens a job's pictures become by our arithmetic; None: the tower is none of ours."""
        return await asyncio.to_thread(self._tokens, list(_pictures(job)), plan.inner or plan)

    def _check(self, pictures: list[tuple[Image, str]], plan: DeployPlan) -> None:
        reads = _READS.get(plan.engine)
        for image, place in pictures:
            _, kind = self._size(image, place)
            if reads is not None and kind not in reads:
                raise UsageError(
                    f"{place}: the picture has the format {kind}; the engine of {plan.model.name} reads "
                    f"{', '.join(reads)}",
                    "save it as PNG or JPEG",
                    place,
                )

    def _tokens(self, pictures: list[tuple[Image, str]], plan: DeployPlan) -> int | None:
        tower = plan.model.tower
        if tower is None or not tower.name:
            return None
        source = tower.file or plan.model.source
        sizes = [self._size(image, place)[0] for image, place in pictures]
        if missing := sorted({size for size in sizes if (source, size) not in self._tokens_of}):
            counts = tower_counts(source, missing).get("tokens")
            if not counts:
                return None
            self._tokens_of |= {(source, size): count for size, count in zip(missing, counts, strict=True)}
        total = sum(self._tokens_of[source, size] for size in sizes)
        while len(self._tokens_of) > KEPT:
            self._tokens_of.popitem(last=False)
        return total

    def _size(self, image: Image, place: str) -> tuple[Size, str]:
        """Return width, height and format of a picture. Raises UsageError with its place."""
        from freehold.run.pictures.opening import header

        try:
            data = image.decoded()
            digest = hashlib.sha256(data).digest()
            if (known := self._sizes.get(digest)) is None:
                size = header(data)
                known = (size.width, size.height), size.format
                self._sizes[digest] = known
                while len(self._sizes) > KEPT:
                    self._sizes.popitem(last=False)
        except UsageError as e:
            raise type(e)(f"{place}: {e.message}", e.hint, place) from None
        return known


def without_pictures(job: Job) -> Job:
    """Return a chat's job with its texts alone, of which an engine's tokenizer counts the tokens."""
    return replace(job, messages=tuple(_texts(message) for message in job.messages or ()))


def pictures_of(job: Job) -> bool:
    """Return whether a job has pictures."""
    return any(isinstance(part, Image) for message in job.messages or () for part in message.parts)


def _texts(message: Message) -> Message:
    texts = tuple(part for part in message.parts if not isinstance(part, Image))
    if len(texts) == len(message.parts):
        return message
    return replace(message, content="".join(str(text) for text in texts), parts=())


def _pictures(job: Job) -> Iterator[tuple[Image, str]]:
    """Yield the pictures that a job brings with it, each with where it stands."""
    for i, message in enumerate(job.messages or ()):
        for j, part in enumerate(message.parts):
            if isinstance(part, Image) and not part.url:
                yield part, part.place or f"messages[{i}].parts[{j}]"
