"""What is trained and quantised is a model itself: one that was created around it is refused with its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.adapt.align import AlignSettings, align
from freehold.adapt.distil import DistilSettings, distil
from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.adapt.quantize.planning import QuantizeRequest
from freehold.adapt.quantize.quantising import quantise
from freehold.adapt.reinforce.course import ReinforceSettings, ReinforceSources, reinforce
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.run.store import ModelRef
from freehold.run.store.overlays import Overlay

ITSELF = ModelRef("tiny", Path("tiny.gguf"), "gguf", "", 0, "user", "file:tiny.gguf", "", ())
CREATED = replace(ITSELF, name="mine", overlay=Overlay("mine", "tiny", system="Be brief."))
FILE, OUT = Path("none.jsonl"), Path("out")


@pytest.mark.parametrize(
    "verb",
    [
        lambda: finetune(CREATED, FILE, OUT, FinetuneSettings()),
        lambda: align(CREATED, FILE, OUT, AlignSettings()),
        lambda: reinforce(CREATED, ReinforceSources("none.py"), OUT, ReinforceSettings(steps=1)),
        lambda: distil(CREATED, ITSELF, FILE, OUT, DistilSettings()),
        lambda: distil(ITSELF, CREATED, FILE, OUT, DistilSettings()),
        lambda: quantise(CREATED, OUT, QuantizeRequest(), Settings(home=OUT)),
    ],
)
def test_a_created_model_is_refused_with_its_base(verb: Callable[[], object]):
    with pytest.raises(UsageError, match="mine was created from tiny") as told:
        verb()
    assert "name tiny" in told.value.hint
