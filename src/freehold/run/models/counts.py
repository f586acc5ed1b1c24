"""`python -m freehold.run.models.counts`: which tower a file holds, and how many tokens it makes of pictures.

A line of JSON in, {"file": ..., "text": ..., "sizes": [[width, height], ...]}, one out, as `answer` returns. For
processes that have no engine, such as the HTTP server (outgrow/planning/eyes.py asks): this one ends with its answer.
Reads headers alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from freehold.base.errors import FreeholdError
from freehold.run.formats import open_model_file
from freehold.run.models.binding.bind import read_source
from freehold.run.models.binding.towers import TowerSource, read_tower

_LARGE = 1 << 13  # pixels of a side, beyond every limit of tokens
_RATIOS = 48  # shapes of pictures that are tried, in steps of a side


def answer(file: str, sizes: Sequence[Sequence[int]], text: str = "") -> dict[str, Any]:
    """Return a tower's `name`, the `least` and `most` tokens of a picture, whether rows are computed `whole`.

    `text`: the file of the text model, which decides that; without one all models of such a tower do.
    `tokens`: what each size becomes, marks between rows among them; 0 for a size that the tower refuses. {} where the
    file holds none of our towers.
    """
    try:
        with closing(open_model_file(file)) as opened:
            source = read_tower(opened)
    except (FreeholdError, OSError):
        return {}
    if source is None:
        return {}
    least, most = _limits(source)
    return {
        "name": source.tower.name,
        "least": least,
        "most": most,
        "whole": source.tower.span_rows(source.cfg, None) > 0 and _sees_both_ways(text),
        "tokens": [_tokens(source, width, height) for width, height in sizes],
    }


def _limits(source: TowerSource) -> tuple[int, int]:
    """Return the fewest and the most tokens of a picture: as the config has them, else by trying shapes."""
    tower, cfg = source.tower, source.cfg
    if tower.name in ("qwen3vl", "qwen25vl"):
        return cfg.least // cfg.block**2, cfg.most // cfg.block**2
    counts = [tower.plan(cfg, 1, 1, None).tokens]
    for step in range(_RATIOS):
        other = _LARGE - step * _LARGE // (_RATIOS + 1)
        counts += [tower.plan(cfg, *sides, None).tokens for sides in ((_LARGE, other), (other, _LARGE))]
    return min(counts), cfg.most if tower.name.startswith("gemma4") else max(counts)


def _sees_both_ways(text: str) -> bool:
    """Whether rows of a picture see each other in a text model: of Gemma 4 E2B and E4B they do not."""
    if not text:
        return True
    try:
        with closing(open_model_file(text)) as opened:
            model = read_source(opened)
        return model.family.both(model.cfg)
    except (FreeholdError, OSError):
        return True


def _tokens(source: TowerSource, width: int, height: int) -> int:
    try:
        layout = source.tower.plan(source.cfg, width, height, None).layout
    except FreeholdError:
        return 0
    return sum(item if isinstance(item, int) else 1 for item in layout)


if __name__ == "__main__":
    request = json.loads(sys.stdin.readline())
    json.dump(answer(request["file"], request["sizes"], request.get("text", "")), sys.stdout)
