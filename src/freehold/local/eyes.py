"""What a model sees: pictures of a chat become ids in its prompt, and features for the rows they stand for.

Knows a tower, the engine's ids and the text that marks a picture in a template; knows no protocol, and no file of
pictures but through pictures/. A picture is opened and computed once as long as its features are remembered.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.engine.pictures import PICTURE_IDS, PictureIds, PromptPictures, same_places
from freehold.errors import BadTemplate, UnsupportedModel, UsageError
from freehold.models.seeing import LoadedTower
from freehold.models.tower import PicturePlan, TokenBudget
from freehold.pictures.opening import header, open_picture
from freehold.serving import FEATURE_BYTES
from freehold.stopping import check_stopped
from freehold.tokenizer import ChatTemplate, Rendered, Tokenizer
from freehold.types import Image, Message

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

PLANS = 4096  # pictures whose sizes are kept
LOW_TOKENS = 256  # of a picture whose detail is "low"
TEMPLATES = 16  # of which it is known whether they have a place for pictures
# Stands for a picture where a template takes texts alone, until it is rendered: private-use characters.
STAND_IN = "\ue0f4\ue0f5\ue0f4"
PAUSE_S = 0.0003  # between two sections of a tower: until a step that waits for the threads has woken


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture of a prompt: its bytes, and what its size becomes."""

    data: bytes
    digest: bytes  # of the bytes, the plan and the tower: of all that its features depend on
    plan: PicturePlan
    place: str  # in the chat


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """A prompt with ids for the rows of its pictures; no feature is computed yet."""

    ids: list[int]
    pictures: tuple[PlacedPicture, ...]
    rows: I32  # as PromptPictures has them
    places: I32 | None
    after: int
    spans: tuple[tuple[int, int], ...]


class Eyes:
    """A tower beside an engine; safe from many threads, of which one computes features at a time."""

    def __init__(self, tower: LoadedTower, tokenizer: Tokenizer, both: bool = False) -> None:
        """`both`: whether rows of a picture see each other in the text model.

        Raises UnsupportedModel where the vocabulary has no token that marks a picture.
        """
        mark = tokenizer.token_id(tower.mark)
        if mark is None:
            raise UnsupportedModel(
                f"{tower.name} marks a picture by {tower.mark}, which this model has no token for",
                "take the mmproj file of the same model",
            )
        self._tower, self._tokenizer, self._mark = tower, tokenizer, mark
        self._written, self._spelled = tower.written or tower.mark, tower.spelled or tower.mark
        self.span_rows = tower.span_rows if both else 0  # see Engine
        self._ids = PictureIds()
        self._plans: OrderedDict[tuple[bytes, bool], PicturePlan] = OrderedDict()
        self._features: OrderedDict[bytes, F32] = OrderedDict()
        self._kept_bytes = 0
        self._places_in: OrderedDict[str, bool] = OrderedDict()  # by a template's source
        self._lock = Lock()  # of the tables
        self._computing = Lock()
        self.encoded = 0  # pictures computed so far

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
            plan = self._plans.get((key, low))
        if plan is None:
            with _named(place):
                size = header(data)
                plan = self._tower.plan(size.width, size.height)
                if low and plan.tokens > LOW_TOKENS:
                    plan = self._tower.plan(size.width, size.height, TokenBudget(1, LOW_TOKENS))
            with self._lock:
                self._plans[key, low] = plan
                while len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
        whole = hashlib.sha256(key + repr(plan.resizes).encode() + self._tower.digest.encode()).digest()
        return PlacedPicture(data, whole, plan, place)

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

    def see(self, prompt: PlacedPrompt) -> PromptPictures:
        """Return the pictures of a prompt with their features, computing those that are not remembered.

        Between two sections of the tower the thread lets a step go first, and ends if its work is no longer wanted.
        """
        features = [self._features_of(picture) for picture in prompt.pictures]
        return PromptPictures(
            np.concatenate(features), prompt.rows, self._mark, prompt.places, prompt.after, prompt.spans
        )

    def _features_of(self, picture: PlacedPicture) -> F32:
        if (known := self._known(picture.digest)) is not None:
            return known
        with self._computing:
            if (known := self._known(picture.digest)) is not None:
                return known
            with _named(picture.place):
                _, pixels = open_picture(picture.data, lambda width, height: picture.plan.resizes)
            (features,) = self._tower.features([(picture.plan, pixels)], _let_others)
            self.encoded += 1
        with self._lock:
            self._features[picture.digest] = features
            self._kept_bytes += features.nbytes
            while self._kept_bytes > FEATURE_BYTES and len(self._features) > 1:
                self._kept_bytes -= self._features.popitem(last=False)[1].nbytes
        return features

    def _known(self, digest: bytes) -> F32 | None:
        with self._lock:
            features = self._features.get(digest)
            if features is not None:
                self._features.move_to_end(digest)
            return features


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
        raise type(e)(f"{place}: {e.message}", e.hint, place) from None


def _let_others() -> None:
    check_stopped()
    time.sleep(PAUSE_S)


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


def _bytes_of(image: Image, place: str) -> bytes:
    with _named(place):
        return image.decoded()
