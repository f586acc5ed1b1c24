"""Chooses the first models of a person who names none: what runs well here, can be fetched here, and answers.

The order is that of `freehold advise chat`. Models without a published result come after those with one, larger ones
first: among small chat models, size is the best predictor that is always known. Knows no store and no network: the
caller says what each model's download takes.
Path: choosing.starters -> starters(advice, download) -> Starter; the first one is the default
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from freehold.advisor.advice import Advice, Judged
from freehold.advisor.interval import Interval
from freehold.catalog.model import Model

PACE = 10.0  # tokens a second that a first model reaches at least: about twice the speed of reading
# Bytes of a model that was not named: five minutes at 100 Mbit/s. A larger one is asked for by name.
MOST_DOWNLOAD = 4_000_000_000
SHOWN = 3
_PACKED_TOO = 2  # a packed copy takes about as much as the file


@dataclass(frozen=True, slots=True)
class Download:
    """A model's file: its size, and where it comes from: here, hub or package index."""

    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Starter:
    """A model to begin with. `name`: what `run` and `pull` take. `speed`: tokens a second, predicted for here."""

    name: str
    model: Model
    download: Download
    memory: int  # bytes while it runs
    speed: Interval
    pace: float  # what of `speed` counts: the middle, or the high end where others computed while it was measured

    @property
    def held(self) -> bool:
        """Whether its file is on this machine."""
        return self.download.source == "here"

    @property
    def disk(self) -> int:
        """Bytes on the disk once it ran: the file and its packed copy, about."""
        return self.download.bytes * _PACKED_TOO

    @property
    def about(self) -> str:
        """One line on the model: its maker, what it was made for, its languages and its licence."""
        model = self.model
        purpose = "code and chat" if "coder" in self.name else "chat"
        languages = max(len(model.languages), model.languages_stated)
        spoken = (
            f"{languages} languages" if languages > 1 else "English" if model.languages == ("en",) else ""
        )
        return ", ".join(filter(None, (f"{model.lab}: {purpose}", spoken, model.licence)))


def starters(
    advice: Advice, download: Callable[[Model], Download | None], count: int = SHOWN
) -> tuple[Starter, ...]:
    """Return the best `count` models of an advice for chats that can be had here; `download` None: it cannot be.

    `advice`: for any speed. Models of PACE or more come in its order; where there is none, the fastest come first.
    Left out are base models, which continue a text instead of answering, models that always reason first, and
    downloads above MOST_DOWNLOAD.
    """
    unproven = sorted(advice.unproven, key=lambda j: (-j.model.params_b, j.model.id))
    ranked = (_starter(judged, download) for judged in (*advice.picks, *advice.below, *unproven))
    able = [s for s in ranked if s is not None]
    fast = [s for s in able if s.pace >= PACE]
    return tuple((fast or sorted(able, key=lambda s: -s.pace))[:count])


def _starter(judged: Judged, download: Callable[[Model], Download | None]) -> Starter | None:
    model, placed = judged.model, judged.placement
    if not model.name or placed is None or model.instructed is False or model.thinking == "only":
        return None
    fetched = download(model)
    if fetched is None or (fetched.bytes > MOST_DOWNLOAD and fetched.source != "here"):
        return None
    pace = placed.decode.mid if placed.sure else placed.decode.high
    return Starter(model.name, model, fetched, placed.memory, placed.decode, pace)
