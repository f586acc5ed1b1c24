"""What a refresh reads out of a configuration; the hub's side is tests/cli/test_models.py's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.base import catalog
from freehold.run.store.hub import text_half

CONFIGS = json.loads((Path(__file__).parents[1] / "catalog" / "configs.json").read_text(encoding="utf-8"))
NOWHERE = Path("/nowhere/catalogue.toml")


@pytest.mark.parametrize("published", CONFIGS, ids=lambda c: c["id"])
def test_the_text_half_is_told_where_files_hold_more(published: dict[str, Any]):
    """As the catalogue has it, so that refreshing a known model changes nothing."""
    told = text_half(published["config"], published["total"]).get("text_parameters", 0)
    assert told == catalog.model(published["id"], NOWHERE).text_parameters


@pytest.mark.parametrize(
    "config", [None, [], {}, {"model_type": "rwkv"}, {"model_type": "llama", "hidden_size": "8"}]
)
def test_a_configuration_that_cannot_be_counted_tells_nothing(config: Any):
    assert text_half(config, 10**9) == {}
