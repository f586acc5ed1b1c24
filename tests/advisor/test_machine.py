from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.choose.advisor import machine
from freehold.choose.advisor.machine import FILE, KEPT, Rates


def test_the_median_of_what_was_measured_alone_counts(tmp_path: Path):
    for gb_s in (30, 50, 40):
        machine.keep(tmp_path, "a", Rates(gb_s, 10 * gb_s))
    machine.keep(tmp_path, "a", Rates(1, 1, busy=True))
    machine.keep(tmp_path, "b", Rates(7, 70, busy=True))
    assert machine.kept(tmp_path, "a") == Rates(40, 400)
    assert machine.kept(tmp_path, "b") == Rates(7, 70, busy=True)
    assert machine.kept(tmp_path, "c") is None


def test_what_is_kept_has_a_bound(tmp_path: Path):
    for i in range(1, KEPT + 5):
        machine.keep(tmp_path, "a", Rates(i, i))
    rows = json.loads((tmp_path / FILE).read_text())["a"]
    assert [row["read_gb_s"] for row in rows] == list(range(5, KEPT + 5))


def test_measurements_beside_others_go_first(tmp_path: Path):
    machine.keep(tmp_path, "a", Rates(40, 400))
    for _ in range(KEPT):
        machine.keep(tmp_path, "a", Rates(9, 90, busy=True))
    assert machine.kept(tmp_path, "a") == Rates(40, 400)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"a": [{"read_gb_s": -1, "int8_gops": 5}, 3]}', '{"a": 5}', "\0\0"]
)
def test_a_damaged_file_counts_as_none_and_is_written_anew(tmp_path: Path, damage: str):
    (tmp_path / FILE).write_text(damage)
    assert machine.kept(tmp_path, "a") is None
    machine.keep(tmp_path, "a", Rates(5, 50))
    assert machine.kept(tmp_path, "a") == Rates(5, 50)


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path):
    (tmp_path / "home").write_text("a file")
    machine.keep(tmp_path / "home", "a", Rates(5, 50))
    assert machine.kept(tmp_path / "home", "a") is None


def test_nothing_is_measured_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not machine.here(tmp_path, measure=False).rates.measured
    monkeypatch.setattr(machine, "_megabytes", lambda: 16)
    found = [machine.here(tmp_path) for _ in range(machine.FIRST + 2)]
    assert found[0].rates.measured
    assert machine.kept(tmp_path, machine.name_here()) == found[-1].rates
    assert len(json.loads((tmp_path / FILE).read_text())[machine.name_here()]) == machine.FIRST
    assert 0 < found[0].free <= found[0].memory


def test_drivers_names_lead_to_the_catalogue():
    gib = 1 << 30
    names = {
        ("NVIDIA H100 80GB HBM3", 80): "h100",
        ("NVIDIA H100 PCIe", 80): "h100-pcie",
        ("NVIDIA A100-SXM4-40GB", 40): "a100-40gb",
        ("NVIDIA GeForce RTX 4090", 24): "rtx-4090",
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16): "",
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16): "",
        ("Tesla T4", 15): "t4",
        ("A card of 2031", 15): "",
    }
    for (title, size), name in names.items():
        assert machine.gpu_device(title, size * gib) == name, title
    assert machine.mac_device("Apple M4 Max") == "m4-max"
    assert machine.mac_device("Apple M9") == ""


def test_the_best_of_crowded_measurements_counts(tmp_path: Path):
    for gb_s in (3, 9, 5):
        machine.keep(tmp_path, "a", Rates(gb_s, 10 * gb_s, busy=True))
    assert machine.kept(tmp_path, "a") == Rates(9, 90, busy=True)


def test_a_crowd_is_what_others_take_of_the_cores_that_we_want(monkeypatch: pytest.MonkeyPatch):
    from freehold.base import machine as system

    clock = {"wall": 0.0, "own": 0.0, "all": 0.0}
    monkeypatch.setattr(system.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(system.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(system, "_busy_seconds", lambda: clock["all"])
    monkeypatch.setattr(system, "default_threads", lambda: 4)
    monkeypatch.setattr(system.psutil, "cpu_count", lambda: 8)
    crowd = system.Crowd()
    assert crowd.share() == 0.0
    clock.update(wall=10.0, own=40.0, all=40.0)
    assert crowd.share() == 0.0
    clock.update(all=80.0)  # four others on the four cores that are left
    assert crowd.share() == 0.0
    clock.update(own=20.0)  # six of eight are others'
    assert crowd.share() == pytest.approx(0.5)
