"""Sizing hardware: the least that does, what it rests on, and a reason for each that does not."""

from __future__ import annotations

import pytest

from freehold.base import catalog
from freehold.base.catalog.hardware import devices, rig
from freehold.base.errors import ModelNotFound, UsageError
from freehold.choose.advisor.places import COUNTS, Load, Sizing, size
from freehold.choose.choosing import hardware

SMALL, LARGE = "Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-V3"


def sized(model: str, users: int = 1, pace: float = 10.0) -> Sizing:
    return size(catalog.model(model), Load(users, 1000, 300), context=8192, pace=pace)


def test_every_device_is_an_option_or_says_why_not():
    found = sized(SMALL, 4)
    named = {o.rig.device.name for o in found.options} | {f.rig.device.name for f in found.failures}
    assert named == {d.name for d in devices()}
    assert all(f.why for f in found.failures)


def test_options_have_room_and_speed_for_all_users():
    for option in sized(LARGE, 50).options:
        assert option.streams >= 50 and option.answer.low <= option.answer.mid
        assert option.answer.mid >= 10 and option.memory <= option.rig.memory_bytes
        assert option.rig.count in COUNTS


def test_the_cheapest_to_rent_stands_first():
    rents = [o.rent.mid for o in sized(SMALL, 4).options if o.rent and o.line.command]
    assert rents == sorted(rents) and len(rents) > 5


def test_more_users_and_a_faster_pace_need_more():
    few, many = sized(LARGE, 1), sized(LARGE, 200)
    fewest = {o.rig.device.name: o.rig.count for o in few.options}
    assert all(o.rig.count >= fewest.get(o.rig.device.name, 1) for o in many.options)
    assert len(many.options) < len(few.options)
    assert not sized(LARGE, 200, pace=500).options


def test_a_large_model_needs_more_than_one_small_gpu():
    found = sized(LARGE)
    assert "rtx-4090" in {f.rig.device.name for f in found.failures}
    failed = next(f for f in found.failures if f.rig.device.name == "rtx-4090")
    assert failed.rig == rig("8xrtx-4090") and "GiB" in failed.why


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"users": 0}, "users = 0"),
        ({"context": 1_000_000}, "was made for"),
        ({"context": 500}, "more than a context of 500"),
        ({"quant": "Q99"}, "Q99"),
        ({"engine": "vlm"}, "no engine named"),
    ],
)
def test_numbers_that_cannot_be_are_refused(given: dict, says: str):
    with pytest.raises(UsageError, match=says):
        hardware(SMALL, **given)


def test_an_unknown_model_and_an_embedder_are_refused():
    with pytest.raises(ModelNotFound):
        hardware("no-such-model-9b")
    with pytest.raises(UsageError, match="makes no text"):
        hardware("BAAI/bge-m3")
