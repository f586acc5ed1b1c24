"""What a model sees: a picture of a chat becomes the rows that its tower makes of its size.

Knows a tower and a picture's size; knows no prompt (senses.py), and no file of pictures but through pictures/.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from freehold.base.types import Audio, Image
from freehold.run import pictures
from freehold.run.local.encoding import opened_pixels
from freehold.run.local.senses import PLANS, PlacedPicture, Sense, named, version_of
from freehold.run.models.seeing import LoadedTower
from freehold.run.models.tower import PicturePlan, TokenBudget
from freehold.run.pictures.decoders import in_turn_of
from freehold.run.pictures.opening import PictureSize, header
from freehold.run.tokenizer import Tokenizer

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
