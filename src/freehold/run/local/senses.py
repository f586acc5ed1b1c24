"""What a model sees and hears: pictures and sounds of a chat become ids in its prompt, and features for their rows.

A Sense is one tower. Eyes make rows of a picture, whose number follows from its size; Ears make rows of a sound, which
is opened before its prompt is laid out, as no header says how many samples there are, and those that were opened last
are kept for the tower. Senses puts those of a model into prompts, each part of a message where it is. Knows the
engine's ids and the text that marks a part in a template; knows no protocol, no file of pictures but through pictures/,
and no form of sound but through sounds/. Computing is encoding.py's: a picture or a sound is opened and computed once
as long as its features are remembered.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadTemplate, ContextOverflow, UnsupportedModel, UsageError
from freehold.base.serving import FEATURE_BYTES
from freehold.base.types import Audio, Image, Message, Part, Role
from freehold.run import models, pictures, sounds
from freehold.run.engine.cache.disk import sources_digest
from freehold.run.engine.sequence import PICTURE_IDS, PictureIds, PromptPictures, same_places
from freehold.run.local.encoding import (
    EncodeQueue,
    FeatureCache,
    Seeing,
    WantedPicture,
    joined,
    opened_pixels,
    placed,
)
from freehold.run.models.seeing import LoadedTower
from freehold.run.models.tower import PicturePlan, TokenBudget
from freehold.run.pictures.decoders import in_turn_of
from freehold.run.pictures.opening import PictureSize, header
from freehold.run.sounds import open_sound
from freehold.run.tokenizer import ChatTemplate, Rendered, Tokenizer
from freehold.run.tokenizer.history import PROBE_CALL, PROBE_CHAT

I32 = NDArray[np.int32]

PLANS = 4096  # pictures or sounds whose sizes are kept
TEMPLATES = 16  # of which it is known in whose messages they have a place for pictures, and for sounds
MAX_ROWS = 1 << 21  # of all pictures of a prompt: a hundred of Qwen's largest have 1.6 million
STAND_IN_BYTES = (
    16  # of chance in what stands for a picture until a chat is rendered: no text of a chat has it
)
TOLD = 4  # pictures of a prompt of which a note says what they became


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture or a sound of a prompt: its bytes, and what its size becomes."""

    data: bytes
    digest: bytes  # of the bytes, the plan and the tower: of all that its features depend on
    plan: PicturePlan
    place: str  # in the chat
    note: str = ""  # what a user should know of how it is seen
    sense: str = "picture"  # Sense.what


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """A prompt with ids for the rows of its pictures and sounds; no feature is computed yet."""

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
    def senses(self) -> frozenset[str]:
        """Which senses its pictures and sounds are for: Sense.what."""
        return frozenset(picture.sense for picture in self.pictures)

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


class Sense(ABC):
    """One tower beside an engine: of pictures, or of sounds."""

    part: ClassVar[type[Image] | type[Audio]]  # of a message
    what: ClassVar[str]
    span_rows = 0  # see Engine

    def __init__(
        self,
        tower: LoadedTower,
        tokenizer: Tokenizer,
        disk: Path | None,
        opens: Callable[[bytes, PicturePlan], Sequence[Any]],
        room: ModuleType,
        decoder: str,
    ) -> None:
        """`opens`: turns a file's bytes into arrays, by `room`, with a decoder of this version.

        Raises UnsupportedModel where the vocabulary has no token that marks a part.
        """
        self.guards = frozenset(filter(None, (tower.mark, tower.written)))
        self.tokenizer = tokenizer.guarding(sorted(self.guards))  # the model's, whose marks no message writes
        mark = self.tokenizer.added_id(tower.mark)
        if mark is None:
            raise UnsupportedModel(
                f"{tower.name} marks a {self.what} with {tower.mark}, but this model has no such token",
                "use the mmproj file of the same model",
            )
        row = self.tokenizer.token_id(tower.row)
        self.tower, self.mark, self.row = tower, mark, mark if row is None else row
        self.written, self.spelled = tower.written or tower.mark, tower.spelled or tower.mark
        about = {
            "tower": tower.digest,
            "table": native.isa(),
            "native": native.REVISION,
            "forward": sources_digest(models),
            "opening": sources_digest(room),
            "decoder": decoder,
        }
        self.basis = hashlib.sha256(
            repr(about).encode()
        ).digest()  # of features, beside a file's bytes and its plan
        self.cache = FeatureCache(FEATURE_BYTES, disk)
        self.queue = EncodeQueue(tower, self.cache, opens)

    @property
    def nbytes(self) -> int:
        """Bytes of the tower's weights, and of features at most."""
        return self.tower.nbytes + FEATURE_BYTES

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""

    @abstractmethod
    def placed(self, part: Image | Audio, place: str, client: str) -> PlacedPicture:
        """Return a part of a message with what its size becomes. Raises UsageError naming `place`."""


class SeenTogether:
    """The features of one request's pictures and sounds while they are computed: Seeing of each sense, in one."""

    def __init__(self, parts: Sequence[tuple[Seeing, Sequence[int]]]) -> None:
        """`parts`: of each sense what it computes, and the places of those among all."""
        self._parts = parts

    @property
    def done(self) -> bool:
        """Whether `features` returns without waiting."""
        return any(seeing.failed for seeing, _ in self._parts) or all(
            seeing.done for seeing, _ in self._parts
        )

    @property
    def opening_s(self) -> float:
        """Seconds that opening took."""
        return sum(seeing.opening_s for seeing, _ in self._parts)

    @property
    def encoding_s(self) -> float:
        """Seconds that the towers took."""
        return sum(seeing.encoding_s for seeing, _ in self._parts)

    def wakes(self, wake: Callable[[], object]) -> None:
        """Call `wake` once it is done, from the thread that computed the last one."""
        for seeing, _ in self._parts:
            seeing.wakes(lambda: wake() if self.done else None)

    def wait(self) -> None:
        """Wait until it is done. Raises Stopped if the caller's work is no longer wanted."""
        try:
            for seeing, _ in self._parts:
                seeing.wait()
        except BaseException:
            self.cancel()
            raise

    def features(self) -> list[NDArray[np.float32]]:
        """Return the features in the order of the prompt. Raises what opening or computing one did, with its place."""
        for seeing, _ in self._parts:
            if seeing.failed:
                seeing.features()
        order = {
            n: each for seeing, own in self._parts for n, each in zip(own, seeing.features(), strict=True)
        }
        return [order[n] for n in sorted(order)]

    def cancel(self) -> None:
        """Leave: what nothing else waits for is dropped within a section. Harmless once it is done."""
        for seeing, _ in self._parts:
            seeing.cancel()


class Senses:
    """The towers of a model beside its engine; safe from many threads. Close it when done."""

    def __init__(self, *senses: Sense) -> None:
        """`senses`: one or two of different kinds, each made with the tokenizer of the one before."""
        self._senses = senses
        self.tokenizer = senses[-1].tokenizer  # the model's, whose marks no message writes
        self.span_rows = max(sense.span_rows for sense in senses)  # see Engine
        self._ids = PictureIds()
        self._places_in: OrderedDict[tuple[str, Role, str], bool] = OrderedDict()  # by a template's source
        self._lock = Lock()  # of the table

    @property
    def nbytes(self) -> int:
        """Bytes of the towers' weights, and of features at most."""
        return sum(sense.nbytes for sense in self._senses)

    @property
    def kinds(self) -> frozenset[str]:
        """What may stand in messages: Sense.what."""
        return frozenset(sense.what for sense in self._senses)

    # --- marks in a chat's text --------------------------------------------------------------------

    def render(self, template: ChatTemplate, messages: Sequence[Message], **options: Any) -> Rendered:
        """Render a chat, with a mark for each of its pictures and sounds; see ChatTemplate.render.

        Where a template has no place for one, it gets a mark within the texts, on a line of its own: in all messages,
        or in those of tools alone.
        """
        turns = template.turns(messages)
        if next(shown_parts(turns), None) is None:
            return template.render(messages, **options)
        stand_ins = {sense.what: _stand_in() for sense in self._senses}
        shown = [self._with_stand_ins(template, m, stand_ins) for m in turns]
        rendered = template.render(shown, **options)
        for sense in self._senses:
            if any(isinstance(part, sense.part) for m in shown for part in m.parts):
                rendered = _replaced(rendered, sense.written, sense.spelled)
            rendered = _replaced(rendered, stand_ins[sense.what], sense.spelled)
        return rendered

    def _with_stand_ins(
        self, template: ChatTemplate, message: Message, stand_ins: Mapping[str, str]
    ) -> Message:
        """Return a message with text in place of the parts that the template has no place for."""
        texts: dict[type[Any], str] = {
            sense.part: f"{stand_ins[sense.what]}\n"
            for sense in self._senses
            if any(isinstance(part, sense.part) for part in message.parts)
            and not self._has_place(template, message.role, sense)
        }
        if not texts:
            return message
        parts = tuple(texts.get(type(part), part) for part in message.parts)
        content = "".join(part for part in parts if isinstance(part, str))
        return replace(message, content=content, parts=parts if _count([*parts]) else ())

    def guarding(self, template: ChatTemplate) -> ChatTemplate:
        """Return a template that keeps what it writes for pictures and sounds from messages."""
        return template.guarding(frozenset().union(*(sense.guards for sense in self._senses)))

    def notes(self, template: ChatTemplate | None) -> tuple[str, ...]:
        """Say what a user should know of how pictures and sounds enter a prompt."""
        if template is None:
            return ()
        guarded = self.guarding(template)
        return tuple(
            f"its chat template has no place for {sense.what}s: their marks stand on lines of their own"
            for sense in self._senses
            if not self._has_place(guarded, "user", sense)
        )

    def _has_place(self, template: ChatTemplate, role: Role, sense: Sense) -> bool:
        """Tell whether a template writes a mark for a part of a message of `role`, by rendering one."""
        key = template.source, role, sense.what
        with self._lock:
            known = self._places_in.get(key)
        if known is None:
            known = False
            with suppress(BadTemplate, UsageError):
                known = template.render(_probe(role, sense.part())).guarded.count(sense.written) == 1
            with self._lock:
                self._places_in[key] = known
                while len(self._places_in) > TEMPLATES * len(get_args(Role)) * len(self._senses):
                    self._places_in.popitem(last=False)
        return known

    # --- sizes and ids -----------------------------------------------------------------------------

    def place(
        self,
        rendered: Rendered,
        template: ChatTemplate,
        messages: Sequence[Message],
        opened: dict[int, PlacedPicture] | None = None,
        client: str = "",
    ) -> PlacedPrompt | None:
        """Put ids in place of the marks that `template` wrote for `messages`; None without pictures and sounds.

        `opened`: those by the id of their part, of a caller that keeps them and tries parts of one chat.
        `client`: in whose turn they are opened. Raises UsageError naming what cannot be read, by message and part, and
        for a template without marks; what pictures/ and sounds/ raise.
        """
        opened = {} if opened is None else opened
        places: dict[int, str] = {}  # as the caller counts messages
        for part, place in shown_parts(messages):
            places.setdefault(id(part), place)
        parts = [part for part, _ in shown_parts(template.turns(messages))]  # as they were rendered
        if not parts:
            return None
        ids, waiting = list[int](), dict[int, PlacedPicture]()
        for sense in self._senses:
            own = [part for part in parts if isinstance(part, sense.part)]
            if not own:
                continue
            ids, marks = self.tokenizer.encode_marked(rendered, sense.mark)
            if len(marks) != len(own):
                raise UsageError(
                    f"the chat has {len(own)} {sense.what}s and its template writes {len(marks)} of their marks",
                    f"this chat template has no place for {sense.what}s: use the model's own",
                )
            for part in own:
                if id(part) not in opened:
                    opened[id(part)] = sense.placed(part, places[id(part)], client)
            waiting |= zip(marks, (opened[id(part)] for part in own), strict=True)
        if (rows := sum(picture.plan.tokens for picture in waiting.values())) > MAX_ROWS:
            kinds = " and ".join(f"{sense.what}s" for sense in self._senses)
            raise ContextOverflow(
                f"the chat's {len(waiting)} {kinds} become {rows:,} tokens; the limit is {MAX_ROWS:,}",
                f"send fewer or smaller {kinds}",
            )
        return self._expanded(ids, waiting)

    def marked(self, prompt: PlacedPrompt) -> list[int]:
        """Return a prompt's ids as published prompts have them: with ids of the vocabulary for rows of pictures."""
        by_kind = {sense.what: sense.row for sense in self._senses}
        rows = [by_kind[picture.sense] for picture in prompt.pictures for _ in range(picture.plan.tokens)]
        return [
            rows[row] if id >= PICTURE_IDS else id
            for id, row in zip(prompt.ids, prompt.rows.tolist(), strict=True)
        ]

    def _expanded(self, ids: Sequence[int], waiting: Mapping[int, PlacedPicture]) -> PlacedPrompt:
        """Put each picture and sound in the place of its mark, an index of `ids`."""
        pictures = [waiting[at] for at in sorted(waiting)]
        out: list[int] = []
        rows: list[int] = []
        places: list[I32] = []
        spans: list[tuple[int, int]] = []
        turn, first = 0, 0
        for at, id in enumerate(ids):
            picture = waiting.get(at)
            if picture is None:
                out.append(id)
                rows.append(-1)
                places.append(same_places(np.array([turn])))
                turn += 1
                continue
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
            if self.span_rows and picture.sense == "picture":
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
                id = self.tokenizer.token_id(item)
                yield from self.tokenizer.encode(item, bos=False) if id is None else (id,)

    # --- features ----------------------------------------------------------------------------------

    def begin(
        self, prompt: PlacedPrompt, client: str = "", tenant: str = "", admitted: bool = False
    ) -> SeenTogether:
        """Begin to compute the pictures and sounds of a prompt; `shown` puts them into it once that is done.

        `client`: whose turn it takes; `tenant`: whose features it may use; `admitted`: no limit refuses it.
        Raises Overloaded.
        """
        parts: list[tuple[Seeing, Sequence[int]]] = []
        try:
            for sense in self._senses:
                own = {n: p for n, p in enumerate(prompt.pictures) if p.sense == sense.what}
                wanted = [WantedPicture((tenant, p.digest), p.data, p.plan, p.place) for p in own.values()]
                if wanted:
                    parts.append((sense.queue.see(wanted, client, admitted), [*own]))
        except BaseException:
            SeenTogether(parts).cancel()
            raise
        return SeenTogether(parts)

    def shown(self, prompt: PlacedPrompt, seeing: SeenTogether) -> PromptPictures:
        """Return the pictures of a prompt with their features. Raises what opening or computing them did."""
        digests = tuple((p.digest, p.plan.tokens) for p in prompt.pictures)
        features = joined(seeing.features())
        mark = self._senses[0].mark
        return PromptPictures(
            features, prompt.rows, mark, prompt.places, prompt.after, prompt.spans, digests=digests
        )

    def see(self, prompt: PlacedPrompt) -> PromptPictures:
        """Compute the pictures of a prompt, and wait for them. Raises Stopped too."""
        seeing = self.begin(prompt)
        seeing.wait()
        return self.shown(prompt, seeing)

    @property
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        return {name: count for sense in self._senses for name, count in sense.counts.items()}

    def close(self) -> None:
        """End what is computed, and write what is quick to write. Safe to call twice."""
        for sense in self._senses:
            sense.queue.close()


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
def named(place: str) -> Iterator[None]:
    """Put the place of a picture or a sound before what is wrong with it."""
    try:
        yield
    except UsageError as e:
        raise placed(e, place) from None


def shown_parts(messages: Sequence[Message]) -> Iterator[tuple[Image | Audio, str]]:
    """Yield the pictures and sounds of a chat in order, each with where it stands."""
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            if not isinstance(part, str):
                yield part, part.place or f"messages[{i}].parts[{j}]"


def _count(parts: Sequence[Part]) -> int:
    return sum(not isinstance(part, str) for part in parts)


def _stand_in() -> str:
    """Return what stands for a picture where a template takes texts alone: private-use characters, drawn each time."""
    return "".join(chr(0xE100 + byte) for byte in secrets.token_bytes(STAND_IN_BYTES))


def _probe(role: Role, part: Image | Audio) -> list[Message]:
    """Return a chat whose message of `role` is a picture or a sound, and a word."""
    parts = (part, "x")
    match role:
        case "tool":
            return [
                *PROBE_CHAT,
                Message("tool", parts=parts, tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name),
            ]
        case "assistant":
            return [Message("user", "x"), Message("assistant", parts=parts)]
        case "system":
            return [Message("system", parts=parts), Message("user", "x")]
        case "user":
            return [Message("user", parts=parts)]


def version_of(package: str) -> str:
    """Return the version of a package that opens files for a sense; "" where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- eyes ------------------------------------------------------------------------------------------

LOW_TOKENS = 256  # of a picture whose detail is "low"
FEWER = 0.9  # of its pixels, below which a picture is said to be seen smaller


class Eyes(Sense):
    """A tower of pictures beside an engine; safe from many threads. Close it when done."""

    part = Image
    what = "picture"

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
        super().__init__(
            tower,
            tokenizer,
            None if disk is None else disk / "pictures",
            opened_pixels,
            pictures,
            version_of("pillow"),
        )
        if budget is not None:
            with named("image_tokens"):
                tower.plan(1024, 1024, budget)
        self._budget = budget
        self.span_rows = tower.span_rows(budget) if both else 0  # see Engine
        self._plans: OrderedDict[tuple[bytes, bool], tuple[PicturePlan, str]] = OrderedDict()
        self._lock = Lock()  # of the table

    @property
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        return {
            "images_encoded": self.cache.computed,
            "image_hits": self.cache.hits,
            "image_disk_hits": self.cache.disk_hits,
            "image_bytes": self.cache.nbytes,
        }

    def placed(self, part: Image | Audio, place: str, client: str) -> PlacedPicture:
        """Return a picture with what its size becomes; `client`: in whose turn its header is read."""
        assert isinstance(part, Image)
        image = part
        with named(place):
            data = image.decoded()
        key, low = hashlib.sha256(data).digest(), image.detail == "low"
        with self._lock:
            known = self._plans.get((key, low))
        if known is None:
            with named(place), in_turn_of(client):
                size = header(data)
                plan = self._planned(size, low)
            known = plan, "; ".join((*size.notes, *_seen_smaller(size, plan)))
            with self._lock:
                self._plans[key, low] = known
                while len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
        plan, note = known
        about = repr((plan.resizes, plan.patches, plan.tokens, plan.layout)).encode()
        whole = hashlib.sha256(self.basis + key + hashlib.sha256(about).digest()).digest()
        return PlacedPicture(data, whole, plan, place, note)

    def _planned(self, size: PictureSize, low: bool) -> PicturePlan:
        """Return what a picture becomes within the budget; `low`: in LOW_TOKENS, if that has room for so few."""
        plan = self.tower.plan(size.width, size.height, self._budget)
        if not low or plan.tokens <= LOW_TOKENS:
            return plan
        least = 1 if self._budget is None else self._budget.least
        return self.tower.plan(size.width, size.height, TokenBudget(least, max(least, LOW_TOKENS)))


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


# --- ears ------------------------------------------------------------------------------------------

F32 = NDArray[np.float32]

BEYOND = 4  # times the seconds that a tower takes are opened: a file of megabytes may last for hours
KEPT = 8  # sounds whose samples are kept until the tower takes them


class Ears(Sense):
    """A tower of sounds beside an engine; safe from many threads. Close it when done."""

    part = Audio
    what = "sound"

    def __init__(self, tower: LoadedTower, tokenizer: Tokenizer, disk: Path | None = None) -> None:
        """`disk`: a folder in which features outlive the process.

        Raises UnsupportedModel where the vocabulary has no token that marks a sound.
        """
        folder = None if disk is None else disk / "sounds"
        super().__init__(tower, tokenizer, folder, self._samples, sounds, version_of("av"))
        self._plans: OrderedDict[bytes, PicturePlan] = OrderedDict()
        self._open: OrderedDict[bytes, F32] = OrderedDict()
        self._lock = Lock()  # of the tables

    @property
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        return {"sounds_encoded": self.cache.computed, "sound_hits": self.cache.hits}

    def placed(self, part: Image | Audio, place: str, client: str) -> PlacedPicture:
        """Return a sound with what its samples become."""
        assert isinstance(part, Audio)
        with named(place):
            data = part.decoded()
        key = hashlib.sha256(data).digest()
        with self._lock:
            plan = self._plans.get(key)
        if plan is None:
            with named(place):
                samples = self._opened(data)
                plan = self.tower.plan(len(samples), 1)
            with self._lock:
                self._plans[key], self._open[key] = plan, samples
                for table, most in ((self._plans, PLANS), (self._open, KEPT)):
                    while len(table) > most:
                        table.popitem(last=False)
        whole = hashlib.sha256(self.basis + key).digest()
        return PlacedPicture(data, whole, plan, place, sense=self.what)

    def _samples(self, data: bytes, plan: PicturePlan) -> Sequence[Any]:
        """Return what the tower takes of a sound: its samples, float32 [n]."""
        with self._lock:
            samples = self._open.pop(hashlib.sha256(data).digest(), None)
        return (self._opened(data) if samples is None else samples,)

    def _opened(self, data: bytes) -> F32:
        """Return a sound's samples: of some seconds more than the tower takes, which then says so."""
        return open_sound(data, BEYOND * self.tower.tower.most_seconds).samples
