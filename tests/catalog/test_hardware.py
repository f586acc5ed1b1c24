"""Hardware is found as people write it, and every figure has a source and a date."""

from __future__ import annotations

from datetime import date

import pytest

from freehold.base.catalog import hardware
from freehold.base.catalog.hardware import Device, devices, rig
from freehold.base.errors import StoreError, UsageError


@pytest.mark.parametrize("device", devices(), ids=lambda d: d.name)
def test_every_device_is_dated_sourced_and_plausible(device: Device):
    assert device.source and device.title and device.generation
    assert date(2026, 1, 1) <= device.checked <= date.today()
    # a byte of memory is read between once and a thousand times a second on everything that is sold
    assert 0.2 <= device.bandwidth_gb_s / device.memory_gib <= 1000
    assert (device.capability >= 6) == (device.vendor == "NVIDIA")
    for money in (*device.rents, *device.prices):
        assert money.source and money.checked <= date.today()
    assert not device.rents or device.rent.mid < 20  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text, name, count",
    [
        ("h100", "h100", 1),
        ("2xH100", "h100", 2),
        ("8 x b200", "b200", 8),
        ("72xgb200", "gb200", 72),
        ("RTX 4090", "rtx-4090", 1),
        ("4090", "rtx-4090", 1),
        ("NVIDIA GeForce GTX 1050 Ti", "gtx-1050-ti", 1),
        ("m4-max", "m4-max", 1),
        ("c8g.8xlarge", "c8g.8xlarge", 1),
    ],
)
def test_hardware_is_found_as_people_write_it(text: str, name: str, count: int):
    found = rig(text)
    assert (found.device.name, found.count) == (name, count)


def test_a_rig_is_so_many_times_its_device():
    one, two = rig("h100"), rig("2xh100")
    assert two.memory_bytes == 2 * one.memory_bytes == 2 * 80 << 30
    assert two.rent and one.rent and two.rent.mid == pytest.approx(2 * one.rent.mid)
    assert two.name == "2xh100"


def test_a_mac_is_taken_with_the_memory_it_was_bought_with():
    assert rig("m4-max").memory_bytes == 128 << 30
    assert rig("m4-max:64gb").memory_bytes == 64 << 30
    with pytest.raises(UsageError, match="has 36, 48, 64, 128 GB"):
        rig("m4-max:7gb")


@pytest.mark.parametrize(
    "text, says",
    [
        ("h1000", "did you mean h100"),
        ("0xh100", "such as 8xh100"),
        ("73xh100", "such as 8xh100"),
        ("!!", "write a device"),
        ("", "write"),
    ],
)
def test_what_is_no_hardware_is_refused_with_the_way_out(text: str, says: str):
    with pytest.raises(UsageError) as e:
        rig(text)
    assert says in e.value.hint


def test_narrow_weights_are_multiplied_at_the_rate_of_a_unit_that_takes_them():
    assert rig("h100").device.rate(8) == 1978
    assert rig("h100").device.rate(16) == 989
    assert rig("b200").device.rate(4.25) == 9000


def test_of_several_rents_the_newest_counts_and_bad_data_says_where():
    text = (
        'vendor = "X"\n[sources]\ns = "somewhere"\n[[device]]\nname = "a"\ntitle = "A"\nkind = "gpu"\n'
        'generation = "g"\nmemory_gib = 8\nbandwidth_gb_s = 100\nwatts = 10\nsource = "s"\nchecked = 2026-01-01\n'
    )
    rent = "[[device.rent]]\nlow = {0}\nmid = {0}\nhigh = {0}\nchecked = {1}\nsource = 's'\n"
    (made,) = hardware.parse("x.toml", text + rent.format(3.0, "2026-05-01") + rent.format(2.0, "2026-02-01"))
    assert made.rent and made.rent.mid == 3.0
    with pytest.raises(StoreError, match=r"x\.toml: a: unknown key 'colour'"):
        hardware.parse("x.toml", text + "colour = 1\n")
    with pytest.raises(StoreError, match="not a range"):
        hardware.parse("x.toml", text + rent.format(-1.0, "2026-02-01"))
