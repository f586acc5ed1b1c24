"""Towers whose files state sizes that no model has: refused by name, or bounded, before memory is taken for them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import FreeholdError, UsageError
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import MAX_TOKENS, check_tokens

# One model of each tower, and the sizes of pictures that are planned where a file is not refused.
SEEING = [name for name in make.names() if make.config(name).sees and make.config(name).mmproj]
NAMES = sorted({make.config(name).mmproj.get("clip.projector_type"): name for name in SEEING}.values())
SIZES = [(1, 1), (3000, 40), (8192, 8192)]
WRONG = [0, -1, 1, 2**20, 2**31, 2**63 - 1, float("nan"), float("inf"), 1e-30, "x", [], [0.0, 0.0, 0.0], True]


@pytest.mark.parametrize("name", NAMES)
def test_a_key_with_a_wrong_value_is_an_error_with_its_name_or_a_bounded_plan(name: str, tmp_path: Path):
    tiny = make.config(name)
    path = make.write_mmproj(tiny, tmp_path / "mmproj.gguf")
    with closing(open_model_file(path)) as opened:
        source = read_tower(opened)
    assert source is not None
    tower, refused = source.tower, 0
    keys = [key for key in tiny.mmproj if key.startswith("clip.") and "projector_type" not in key]
    for key in keys:
        for value in WRONG:
            stated: dict[str, Any] = {
                **tiny.mmproj,
                key: np.array(value) if isinstance(value, list) else value,
            }
            counted = {f"clip.{each}": 64 for each in tower.rows_of}
            try:
                cfg = tower.config_from_gguf(Fields({**stated, **counted}, "clip."))
            except FreeholdError as e:
                assert e.message
                refused += 1
                continue
            for size in SIZES:
                try:
                    planned = tower.plan(cfg, *size, None)
                    check_tokens(planned.tokens)
                except UsageError:
                    continue
                assert planned.tokens <= MAX_TOKENS and (
                    planned.places is None or len(planned.places) <= MAX_TOKENS
                )
    assert refused > len(keys)
