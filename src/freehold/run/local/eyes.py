"""What a model sees: pictures of a chat become ids in its prompt, and features for the rows they stand for.

Knows a tower, the engine's ids and the text that marks a picture in a template; knows no protocol, and no file of
pictures but through pictures/. Computing is encoding.py's: a picture is opened and computed once as long as its
features are remembered.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadTemplate, UnsupportedModel, UsageError
from freehold.base.serving import FEATURE_BYTES
from freehold.base.types import Image, Message
from freehold.run import models, pictures
from freehold.run.engine.cache.disk import sources_digest
from freehold.run.engine.pictures import PICTURE_IDS, PictureIds, PromptPictures, same_places
from freehold.run.local.encoding import EncodeQueue, Seeing, WantedPicture, joined, placed
from freehold.run.local.features import FeatureCache
from freehold.run.models.seeing import LoadedTower
from freehold.run.models.tower import PicturePlan, TokenBudget
from freehold.run.pictures.opening import PictureSize, header
from freehold.run.tokenizer import ChatTemplate, Rendered, Tokenizer

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

PLANS = 4096  # pictures whose sizes are kept
LOW_TOKENS = 256  # of a picture whose detail is "low"
TEMPLATES = 16  # of which it is known whether they have a place for pictures
# Stands for a picture where a template takes texts alone, until it is rendered: private-use characters.
STAND_IN = "\ue0f4\ue0f5\ue0f4"
TOLD = 4  # pictures of a prompt of which a note says what they became
FEWER = 0.9  # of its pixels, below which a picture is said to be seen smaller


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture of a prompt: its bytes, and what its size becomes."""

    data: bytes
    digest: bytes  # of the bytes, the plan and the tower: of all that its features depend on
    plan: PicturePlan
    place: str  # in the chat
    note: str = ""  # what a user should know of how it is seen


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """A prompt with ids for the rows of its pictures; no feature is computed yet."""

    ids: list[int]
    pictures: tuple[PlacedPicture, ...]
    rows: I32  # as PromptPictures has them
    places: I32 | None
    after: int
    spans: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Tokens of its pictures' rows."""
        return sum(picture.plan.tokens for picture in self.pictures)

    @property
    def bare(self) -> PlacedPrompt:
        """It without the bytes of its pictures."""
        return replace(self, pictures=tuple(replace(picture, data=b"") for picture in self.pictures))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how pictures are seen: smaller than they are, one frame of several."""
        notes = [f"{p.place}: {p.note}" for p in self.pictures if p.note]
        more = (f"so are {len(notes) - TOLD} more pictures",) if len(notes) > TOLD else ()
        return (*notes[:TOLD], *more)


class Eyes:
    """A tower beside an engine; safe from many threads. Close it when done."""

    def __init__(
        self,
        tower: LoadedTower,
        tokenizer: Tokenizer,
        both: bool = False,
        budget: TokenBudget | None = None,
        disk: Path | None = None,
    ) -> None:
        """`both`: whether rows of a picture see each other in the text model.

        `budget`: tokens of a picture, in place of the model's own limits. `disk`: a folder in which features outlive
        the process. Raises UnsupportedModel where the vocabulary has no token that marks a picture, UsageError for a
        budget that the tower does not take.
        """
        mark = tokenizer.token_id(tower.mark)
        if mark is None:
            raise UnsupportedModel(
                f"{tower.name} marks a picture by {tower.mark}, which this model has no token for",
                "take the mmproj file of the same model",
            )
        if budget is not None:
            with _named("image_tokens"):
                tower.plan(1024, 1024, budget)
        self._tower, self._tokenizer, self._mark, self._budget = tower, tokenizer, mark, budget
        self._basis = hashlib.sha256(repr(_dependencies(tower)).encode()).digest()
        self._written, self._spelled = tower.written or tower.mark, tower.spelled or tower.mark
        self.span_rows = tower.span_rows(budget) if both else 0  # see Engine
        self._ids = PictureIds()
        self._plans: OrderedDict[tuple[bytes, bool], tuple[PicturePlan, str]] = OrderedDict()
        self._places_in: OrderedDict[str, bool] = OrderedDict()  # by a template's source
        self._lock = Lock()  # of the tables
        self._cache = FeatureCache(FEATURE_BYTES, None if disk is None else disk / "pictures")
        self._queue = EncodeQueue(tower, self._cache)

    @property
    def nbytes(self) -> int:
        """Bytes of the tower's weights, and of features at most."""
        return self._tower.nbytes + FEATURE_BYTES

    # --- marks in a chat's text --------------------------------------------------------------------

    def render(self, template: ChatTemplate, messages: Sequence[Message], **options: Any) -> Rendered:
        """Render a chat, with a mark for each of its pictures; see ChatTemplate.render.

        A template that has no place for pictures gets their marks within the texts, each on a line of its own.
        """
        if next(_images(messages), None) is None:
            return template.render(messages, **options)
        if self._has_place(template):
            return _replaced(template.render(messages, **options), self._written, self._spelled)
        rendered = template.render([_as_text(message) for message in messages], **options)
        return _replaced(rendered, STAND_IN, self._spelled)

    def notes(self, template: ChatTemplate | None) -> tuple[str, ...]:
        """Say what a user should know of how pictures enter a prompt."""
        if template is None or self._has_place(template):
            return ()
        return ("its chat template has no place for pictures: their marks stand on lines of their own",)

    def _has_place(self, template: ChatTemplate) -> bool:
        """Tell whether a template writes a mark for a picture, by rendering one."""
        with self._lock:
            known = self._places_in.get(template.source)
        if known is None:
            known = False
            with suppress(BadTemplate):
                probe = Message("user", "x", parts=(Image(), "x"))
                known = self._written in template.render([probe]).guarded
            with self._lock:
                self._places_in[template.source] = known
                while len(self._places_in) > TEMPLATES:
                    self._places_in.popitem(last=False)
        return known

    # --- sizes and ids -----------------------------------------------------------------------------

    def place(
        self,
        ids: Sequence[int],
        messages: Sequence[Message],
        opened: dict[int, PlacedPicture] | None = None,
    ) -> PlacedPrompt | None:
        """Put the ids of pictures in place of their marks in a rendered chat; None without pictures.

        `opened`: pictures by the id of their Image, of a caller that holds them and tries parts of one chat.
        Raises UsageError naming a picture that cannot be read, by message and part, and for a template without
        marks; what pictures/ raises.
        """
        opened = {} if opened is None else opened
        pictures: list[PlacedPicture] = []
        for image, where in _images(messages):
            if id(image) not in opened:
                opened[id(image)] = self._placed(image, where)
            pictures.append(opened[id(image)])
        if not pictures:
            return None
        marks = sum(id == self._mark for id in ids)
        if marks != len(pictures):
            raise UsageError(
                f"the chat has {len(pictures)} pictures and its template writes {marks} of their marks",
                "this chat template has no place for pictures: take the model's own",
            )
        return self._expanded(ids, pictures)

    def marked(self, ids: Sequence[int]) -> list[int]:
        """Return a prompt's ids with the mark for each row of a picture: with ids that the vocabulary has."""
        return [self._mark if id >= PICTURE_IDS else id for id in ids]

    def _placed(self, image: Image, place: str) -> PlacedPicture:
        data = _bytes_of(image, place)
        key, low = hashlib.sha256(data).digest(), image.detail == "low"
        with self._lock:
            known = self._plans.get((key, low))
        if known is None:
            with _named(place):
                size = header(data)
                plan = self._planned(size, low)
            known = plan, "; ".join((*size.notes, *_seen_smaller(size, plan)))
            with self._lock:
                self._plans[key, low] = known
                while len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
        plan, note = known
        about = repr((plan.resizes, plan.patches, plan.tokens, plan.layout)).encode()
        whole = hashlib.sha256(self._basis + key + hashlib.sha256(about).digest()).digest()
        return PlacedPicture(data, whole, plan, place, note)

    def _planned(self, size: PictureSize, low: bool) -> PicturePlan:
        """Return what a picture becomes within the budget; `low`: in LOW_TOKENS, if that has room for so few."""
        plan = self._tower.plan(size.width, size.height, self._budget)
        if not low or plan.tokens <= LOW_TOKENS:
            return plan
        least = 1 if self._budget is None else self._budget.least
        return self._tower.plan(size.width, size.height, TokenBudget(least, max(least, LOW_TOKENS)))

    def _expanded(self, ids: Sequence[int], pictures: Sequence[PlacedPicture]) -> PlacedPrompt:
        out: list[int] = []
        rows: list[int] = []
        places: list[I32] = []
        spans: list[tuple[int, int]] = []
        turn, first, waiting = 0, 0, iter(pictures)
        for id in ids:
            if id != self._mark:
                out.append(id)
                rows.append(-1)
                places.append(same_places(np.array([turn])))
                turn += 1
                continue
            picture = next(waiting)
            plan, own = picture.plan, iter(self._ids.of(picture.digest, picture.plan.tokens))
            number = first
            for item in self._laid_out(plan):
                if item < 0:
                    out.append(next(own))
                    rows.append(number)
                    number += 1
                else:
                    out.append(item)
                    rows.append(-1)
            if self.span_rows:
                spans.append((len(out) - plan.tokens, len(out)))
            first += plan.tokens
            if plan.places is not None:
                places.append(plan.places + np.int32(turn))
            turn += plan.advance
        placed = np.concatenate(places) if all(p.plan.places is not None for p in pictures) else None
        return PlacedPrompt(out, tuple(pictures), np.array(rows, np.int32), placed, turn, tuple(spans))

    def _laid_out(self, plan: PicturePlan) -> Iterator[int]:
        """Yield what takes the place of a mark: -1 for each of the picture's rows, ids for the texts between."""
        for item in plan.layout:
            if isinstance(item, int):
                yield from (-1 for _ in range(item))
            else:
                id = self._tokenizer.token_id(item)
                yield from self._tokenizer.encode(item, bos=False) if id is None else (id,)

    # --- features ----------------------------------------------------------------------------------

    def begin(
        self, prompt: PlacedPrompt, client: str = "", tenant: str = "", admitted: bool = False
    ) -> Seeing:
        """Begin to compute the pictures of a prompt; `shown` puts them into it once that is done.

        `client`: whose turn it takes; `tenant`: whose features it may use; `admitted`: no limit refuses it.
        Raises Overloaded.
        """
        wanted = [WantedPicture((tenant, p.digest), p.data, p.plan, p.place) for p in prompt.pictures]
        return self._queue.see(wanted, client, admitted)

    def shown(self, prompt: PlacedPrompt, seeing: Seeing) -> PromptPictures:
        """Return the pictures of a prompt with their features. Raises what opening or computing them did."""
        digests = tuple((p.digest, p.plan.tokens) for p in prompt.pictures)
        features = joined(seeing.features())
        return PromptPictures(
            features, prompt.rows, self._mark, prompt.places, prompt.after, prompt.spans, digests=digests
        )

    def see(self, prompt: PlacedPrompt) -> PromptPictures:
        """Compute the pictures of a prompt, and wait for them. Raises Stopped too."""
        seeing = self.begin(prompt)
        seeing.wait()
        return self.shown(prompt, seeing)

    @property
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        return {
            "images_encoded": self._cache.computed,
            "image_hits": self._cache.hits,
            "image_disk_hits": self._cache.disk_hits,
            "image_bytes": self._cache.nbytes,
        }

    def close(self) -> None:
        """End what is computed, and write what is quick to write. Safe to call twice."""
        self._queue.close()


def _replaced(rendered: Rendered, old: str, new: str) -> Rendered:
    """Replace what a template wrote, and nothing that a user did: both texts are cut at the same places."""
    if old == new:
        return rendered
    guarded = rendered.guarded.split(old)
    texts: list[str] = []
    at = 0
    for piece in guarded:
        texts.append(rendered.text[at : at + len(piece)])
        at += len(piece) + len(old)
    return replace(rendered, text=new.join(texts), guarded=new.join(guarded))


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put a picture's place before what is wrong with it."""
    try:
        yield
    except UsageError as e:
        raise placed(e, place) from None


def _images(messages: Sequence[Message]) -> Iterator[tuple[Image, str]]:
    """Yield the pictures of a chat in order, each with where it stands."""
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            if isinstance(part, Image):
                yield part, part.place or f"messages[{i}].parts[{j}]"


def _as_text(message: Message) -> Message:
    """Return a message whose text has a stand-in for each picture, on a line of its own."""
    if not any(isinstance(part, Image) for part in message.parts):
        return message
    lines = [part if isinstance(part, str) else f"{STAND_IN}\n" for part in message.parts]
    return replace(message, content="".join(lines), parts=())


def _seen_smaller(size: PictureSize, plan: PicturePlan) -> tuple[str, ...]:
    """Return a note on a picture that is seen with fewer pixels than it has."""
    ends = [each[-1] for each in plan.resizes if each]
    if not ends or sum(end.width * end.height for end in ends) >= FEWER * size.width * size.height:
        return ()
    largest = max(ends, key=lambda end: end.width * end.height)
    return (
        f"its {size.width:,} x {size.height:,} pixels are seen as {largest.width:,} x {largest.height:,}, "
        f"{plan.tokens:,} tokens",
    )


def _dependencies(tower: LoadedTower) -> dict[str, object]:
    """List what features depend on besides a picture's bytes and its plan."""
    try:
        decoder = importlib.metadata.version("pillow")
    except importlib.metadata.PackageNotFoundError:
        decoder = ""  # no picture is opened then
    return {
        "tower": tower.digest,
        "table": native.isa(),
        "native": native.REVISION,
        "forward": sources_digest(models),
        "opening": sources_digest(pictures),
        "decoder": decoder,
    }


def _bytes_of(image: Image, place: str) -> bytes:
    with _named(place):
        return image.decoded()
