"""Processors and memory of machines that are not here, by what they said: recorded/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.machine import (
    CoreKind,
    Host,
    PageSizes,
    cache_megabytes,
    mac_available_bytes,
    memory_kills,
    page_sizes,
    parse_sysctl,
    processor,
    usable_cores,
)
from freehold.choose.advisor.machine import mac_device

RECORDED = Path(__file__).parent / "recorded"
GB = 1 << 30


def mac(name: str, **more: str) -> Host:
    said = parse_sysctl((RECORDED / f"macos-{name}.sysctl").read_text(encoding="utf-8"))
    return Host("darwin", Path("/nowhere"), lambda: {**said, **more})


def linux(folder: Path, name: str, files: dict[str, str] | None = None) -> Host:
    text = (RECORDED / f"linux-{name}.cpuinfo").read_text(encoding="utf-8")
    for path, content in {"proc/cpuinfo": text, **(files or {})}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    return Host("linux", folder)


# --- macOS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, title, computing, others",
    [
        ("m1", "Apple M1", 4, 4),  # names no level
        ("m4-max", "Apple M4 Max", 12, 4),
        ("m5", "Apple M5", 4, 6),  # Super and Efficiency: no level is called Performance
        ("m5-pro", "Apple M5 Pro", 15, 0),  # Super and Performance
        ("m6", "Apple M6", 6, 6),  # three levels
        ("i7", "Intel(R) Core(TM) i7-6700K CPU @ 4.00GHz", 4, 0),  # eight logical ones
    ],
)
def test_efficiency_cores_of_a_mac_do_not_compute(name: str, title: str, computing: int, others: int):
    chip = processor(mac(name))
    assert chip.title == title
    assert sum(k.count for k in chip.kinds if not k.computes) == others
    assert usable_cores(chip, set(range(64)), None, mac(name)) == computing


def test_a_macs_features_have_linux_spelling():
    assert processor(mac("m1")).features == ("dotprod", "fhm", "fp16")
    assert processor(mac("m4-max")).features == ("bf16", "dotprod", "fhm", "fp16", "i8mm", "sme")
    assert processor(mac("i7")).features == ("avx2", "f16c", "fma")


def test_a_python_under_rosetta_is_noticed():
    translated = mac("i7", **{"sysctl.proc_translated": "1"})
    assert processor(translated).is_translated
    assert not processor(mac("m4-max", **{"sysctl.proc_translated": "0"})).is_translated


def test_a_mac_without_sysctl_has_one_core():
    host = Host("darwin", Path("/nowhere"), dict)
    assert processor(host).title == "Mac"
    assert usable_cores(processor(host), {0, 1}, None, host) == 1


def test_macs_are_found_in_the_catalogue():
    assert mac_device(processor(mac("m4-max")).name) == "m4-max"


@pytest.mark.parametrize(
    "pressure, level, expected",
    [(1, 80, 9 * GB), (1, 40, 16 * GB * 40 // 100), (2, 80, 9000 * 16384), (4, 80, 9000 * 16384)],
)
def test_memory_of_a_mac_is_bounded_by_its_pressure(pressure: int, level: int, expected: int):
    changed = {"kern.memorystatus_vm_pressure_level": f"{pressure}", "kern.memorystatus_level": f"{level}"}
    assert mac_available_bytes(9 * GB, mac("pressed", **changed).sysctl()) == expected


def test_memory_of_a_mac_that_says_nothing_is_what_psutil_counts():
    assert mac_available_bytes(9 * GB, {}) == 9 * GB


def test_a_mac_has_large_pages_and_no_huge_ones():
    assert page_sizes(mac("m1")) == PageSizes(16384, 0, "")
    assert cache_megabytes(mac("m4-max")) == 16 and cache_megabytes(mac("i7")) == 8


# --- Linux on ARM -------------------------------------------------------------------------------------


def test_a_raspberry_pi_is_named_by_its_device_tree(tmp_path: Path):
    tree = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.1\0"}
    chip = processor(linux(tmp_path, "pi5", tree))
    assert chip.title == "Raspberry Pi 5 Model B Rev 1.1 (Cortex-A76)"
    assert chip.kinds == (CoreKind("Cortex-A76", 4, True),)
    assert chip.features == ("dotprod", "fp16")


def test_a_board_without_a_device_tree_is_named_by_cpuinfo_and_never_by_its_serial(tmp_path: Path):
    chip = processor(linux(tmp_path, "pi5"))
    assert chip.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert "0000000000000000" not in str(chip)


def test_a_virtual_machine_has_no_board(tmp_path: Path):
    chip = processor(linux(tmp_path, "graviton3", {"proc/device-tree/model": "linux,dummy-virt\0"}))
    assert chip.title == "Neoverse-V1"
    assert chip.features == ("bf16", "dotprod", "fhm", "fp16", "i8mm", "sve")


def test_sve2_is_told_from_sve(tmp_path: Path):
    chip = processor(linux(tmp_path, "neoverse-v3ae"))
    assert chip.title == "Neoverse-V3AE" and "sve2" in chip.features


def test_an_unknown_core_is_named_by_its_numbers_and_only_shared_features_count(tmp_path: Path):
    chip = processor(linux(tmp_path, "unknown"))
    assert chip.title == "ARM core 0x41/0xfff"
    assert chip.features == ("fp16",), "the second core has no dot product"


CAPACITIES = {
    "as the kernel measured": [(459, "1800000")] * 4 + [(1024, "2400000")] * 4,
    "as device trees give them": [(377, "1800000")] * 4 + [(1024, "2400000")] * 4,
    "without capacities": [(0, "1800000")] * 4 + [(0, "2400000")] * 4,
    "without either": [(0, "")] * 8,
}


@pytest.mark.parametrize("rows", CAPACITIES.values(), ids=CAPACITIES)
def test_small_cores_do_not_compute(tmp_path: Path, rows: list[tuple[int, str]]):
    files = {}
    for cpu, (capacity, clock) in enumerate(rows):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files |= {f"{folder}/cpu_capacity": f"{capacity}\n"} if capacity else {}
        files |= {f"{folder}/cpufreq/cpuinfo_max_freq": f"{clock}\n"} if clock else {}
    host = linux(tmp_path, "rk3588", files)
    chip = processor(host)
    assert chip.title == "Cortex-A76 + Cortex-A55"
    assert chip.kinds == (CoreKind("Cortex-A76", 4, True), CoreKind("Cortex-A55", 4, False))
    assert usable_cores(chip, set(range(8)), None, host) == 4
    assert usable_cores(chip, set(range(8)), 2.5, host) == 3


def test_a_process_bound_to_small_cores_uses_them(tmp_path: Path):
    host = linux(tmp_path, "rk3588")
    assert usable_cores(processor(host), {0, 1}, None, host) == 2


def test_cores_of_one_design_at_other_clocks_all_compute(tmp_path: Path):
    capacities = [853, 853, 1024, 1024]
    files = {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": f"{c}" for i, c in enumerate(capacities)}
    host = linux(tmp_path, "pi5", files)
    assert usable_cores(processor(host), set(range(4)), None, host) == 4


def test_siblings_are_one_core(tmp_path: Path):
    files = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}\n"
        for i in range(4)
    }
    host = linux(tmp_path, "pi5", files)
    assert processor(host).kinds == (CoreKind("Cortex-A76", 2, True),)
    assert usable_cores(processor(host), set(range(4)), None, host) == 2


def test_huge_pages_are_reported_with_their_mode(tmp_path: Path):
    folder = "sys/kernel/mm/transparent_hugepage"
    files = {f"{folder}/enabled": "always [madvise] never\n", f"{folder}/hpage_pmd_size": f"{32 << 20}\n"}
    host = linux(tmp_path, "pi5", files)
    assert page_sizes(host, 16384) == PageSizes(16384, 32 << 20, "madvise")
    assert page_sizes(Host("linux", tmp_path / "none"), 4096) == PageSizes(4096, 0, "")


def test_the_largest_cache_is_read(tmp_path: Path):
    folder = "sys/devices/system/cpu/cpu0/cache"
    files = {f"{folder}/index{i}/size": size for i, size in enumerate(("64K", "64K", "512K", "2M"))}
    assert cache_megabytes(linux(tmp_path, "pi5", files)) == 2


def test_kills_are_counted_where_the_kernel_says_so(tmp_path: Path):
    assert memory_kills(linux(tmp_path, "pi5")) is None
    assert memory_kills(linux(tmp_path, "pi5", {"proc/vmstat": "oom_kill 3\n"})) == 3
