"""Contexts of the catalogue against config.json: an engine refuses a plan that asks for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import schema
from freehold.base.errors import StoreError

ROWS = [
    line.split("\t")
    for line in (Path(__file__).parent / "contexts.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def test_contexts_are_those_of_the_published_configurations():
    wrong = [
        (name, catalog.model(name).context, int(stated))
        for name, stated, _ in ROWS
        if catalog.model(name).context != int(stated)
    ]
    assert not wrong
    assert len(ROWS) >= 200


@pytest.mark.parametrize("name", ["qwen3:8b", "qwen3:32b", "qwen2.5:7b", "Qwen/QwQ-32B"])
def test_what_a_card_stretches_stands_beside_the_context(name: str):
    model = catalog.model(name)
    assert model.stretch is not None
    assert model.context in (32768, 40960) and model.stretch.context == 131072


def test_a_stretch_already_in_the_configuration_is_no_second_one():
    model = catalog.model("deepseek-ai/DeepSeek-V3")  # its config.json has yarn itself
    assert model.context == 163840 and model.stretch is None


@pytest.mark.parametrize(
    "stretch",
    ['{ kind = "yarn" }', '{ kind = "linear", factor = 4.0, original = 8 }',
     '{ kind = "yarn", factor = 0.5, original = 8, theta = 1e6 }', '{ kind = "none", factor = 2.0 }'],
)  # fmt: skip
def test_a_stretch_that_is_none_is_named_with_its_line(stretch: str):
    text = f'[[model]]\nid = "a/b"\nsources = ["x"]\nchecked = 2026-12-01\nstretch = {stretch}\n'
    with pytest.raises(StoreError, match=r"own\.toml:5: a/b: a stretch"):
        schema.parse("own.toml", text)
