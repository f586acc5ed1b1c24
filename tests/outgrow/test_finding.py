"""Which engine a model is run by here: accelerators that are faked, llama-server a script on PATH."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.choose.advisor import fit as fits
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue
from freehold.choose.advisor.machine import Gpu, Machine, Rates
from freehold.outgrow import finding
from freehold.outgrow.finding import EngineAtHand, EnginesHere, choose, look

GIB = 1 << 30
CARD = Gpu("NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB, "rtx-4090")
LISTS = "Available devices:\n  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23650 MiB free)\n"
NONE = "Available devices:\n  (none)\n"
LLAMA = EngineAtHand("llamacpp", Path("/usr/bin/llama-server"), ("CUDA0: NVIDIA GeForce RTX 4090",))


def cpu(memory: int = 16 * GIB, gb_s: float = 40.0) -> fits.Place:
    """This machine with our own engine, as it was never measured."""
    rates = Rates(gb_s, 10 * gb_s)
    return fits.Place("this machine", "freehold", Machine("a CPU", "avx2", 8, memory, memory, False, rates))


def anatomy(name: str = "qwen3:8b", quant: str = "Q4_K_M") -> Anatomy:
    return from_catalogue(catalog.model(name), quant)


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho asked >> {folder}/asked\ncat <<'E'\n{text}E\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "driven", lambda: True)
    monkeypatch.setattr(finding, "accelerators", lambda: ((CARD,), ""))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder


def test_without_a_driver_no_program_is_started(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "driven", lambda: False)
    script(path, "llama-server", LISTS)
    assert look(tmp_path) == EnginesHere()
    assert [e.name for e in look(tmp_path, always=True).engines] == ["llamacpp"]
    assert not (path / "asked").exists()


def test_looking_imports_nothing_and_starts_nothing_where_no_gpu_is() -> None:
    """`freehold run` looks at each start: what it costs is counted in modules, as seconds are the machine's."""
    program = """
import sys
had = set(sys.modules)
from freehold.outgrow import finding
rooms = {'advisor', 'catalog', 'providers', 'subprocess'}
assert not [m for m in set(sys.modules) - had if set(m.split('.')) & rooms]
finding.driven = lambda: False
before, events = set(sys.modules), []
sys.addaudithook(lambda name, args: events.append(name))
from pathlib import Path
assert not finding.look(Path('/nowhere')).accelerated
new = sorted(set(sys.modules) - before)
assert new == [], new
assert not [e for e in events if e.startswith(('subprocess', 'os.posix_spawn', 'os.fork', 'ctypes'))], events
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("gpu")
def test_llama_server_on_path_is_asked_for_its_devices(tmp_path: Path, path: Path) -> None:
    program = script(path, "llama-server", LISTS)
    (found,) = look(tmp_path).engines
    assert (found.name, found.program) == ("llamacpp", program)
    assert found.devices == ("CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23650 MiB free)",)


@pytest.mark.usefixtures("gpu")
def test_llama_server_built_for_processors_is_not_taken(tmp_path: Path, path: Path) -> None:
    script(path, "llama-server", NONE)
    found = look(tmp_path)
    assert "build for processors" in found.engines[0].note
    choice = choose(anatomy(), "gguf", found, cpu())
    assert choice.engine == "freehold"
    assert "build for processors" in choice.reason


@pytest.mark.usefixtures("gpu", "path")
def test_engine_in_an_environment_of_ours_is_found(tmp_path: Path) -> None:
    script(tmp_path / "environments" / "llamacpp-b9000" / "bin", "llama-server", LISTS)
    (found,) = look(tmp_path).engines
    assert found.name == "llamacpp"
    assert found.devices


@pytest.mark.usefixtures("gpu")
def test_of_several_builds_the_one_that_uses_the_gpu_is_started(tmp_path: Path, path: Path) -> None:
    on_path = script(path, "llama-server", NONE)
    assert finding.named(tmp_path, "llamacpp") == next(iter(look(tmp_path).engines))
    ours = script(tmp_path / "environments" / "llamacpp-b9000" / "bin", "llama-server", LISTS)
    found = finding.named(tmp_path, "llamacpp")
    assert found is not None and found.program == ours != on_path
    assert finding.named(tmp_path, "vllm") is None


@pytest.mark.usefixtures("gpu")
def test_llama_server_that_hangs_is_named_and_left(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "ASKED_S", 0.2)
    (path / "llama-server").write_text("#!/bin/sh\nsleep 20\n", encoding="utf-8")
    (path / "llama-server").chmod(0o755)
    started = time.monotonic()
    (found,) = look(tmp_path).engines
    assert "no answer in 0.2 s" in found.note
    assert time.monotonic() - started < 15


def test_gpu_is_chosen_by_both_predictions_and_says_so() -> None:
    choice = choose(anatomy(), "gguf", EnginesHere((CARD,), "", (LLAMA,)), cpu())
    assert choice.engine == "llamacpp"
    assert choice.speeds["llamacpp"] > 5 * choice.speeds["freehold"]
    told = f"{choice.speeds['llamacpp']:.0f} tokens/s predicted on NVIDIA GeForce RTX 4090"
    assert choice.reason == f"{told}, {choice.speeds['freehold']:.0f} on the CPU"


def test_processor_is_chosen_where_it_is_predicted_to_be_faster() -> None:
    choice = choose(anatomy(), "gguf", EnginesHere((CARD,), "", (LLAMA,)), cpu(gb_s=4000.0))
    assert choice.engine == "freehold"
    assert "predicted on the CPU" in choice.reason


def test_gpu_whose_free_memory_is_taken_by_others_is_not_chosen() -> None:
    busy = replace(CARD, free=2 * GIB)
    choice = choose(anatomy(), "gguf", EnginesHere((busy,), "", (LLAMA,)), cpu())
    assert choice.engine == "freehold"
    assert "2.1 GB free does not hold" in choice.reason


def test_two_equal_gpus_hold_what_one_does_not() -> None:
    large = anatomy("llama3.3:70b")
    one = choose(large, "gguf", EnginesHere((CARD,), "", (LLAMA,)), cpu(64 * GIB))
    two = choose(large, "gguf", EnginesHere((CARD, CARD), "", (LLAMA,)), cpu(64 * GIB))
    assert (one.engine, two.engine) == ("freehold", "llamacpp")
    assert "predicted on 2 x NVIDIA GeForce RTX 4090" in two.reason


def test_gpu_without_an_engine_is_named_with_what_would_use_it() -> None:
    choice = choose(anatomy(), "gguf", EnginesHere((CARD,)), cpu())
    assert choice.engine == "freehold"
    assert "NVIDIA GeForce RTX 4090 is available, but no engine for it" in choice.reason
    assert choice.advice.startswith("llama-server built with CUDA")
    assert "tokens/s" in choice.advice


def test_files_decide_between_engines() -> None:
    vllm = EngineAtHand("vllm", Path("/opt/env/bin/vllm"))
    both = EnginesHere((CARD,), "", (LLAMA, vllm))
    assert choose(anatomy(quant="BF16"), "safetensors", both, cpu(64 * GIB)).engine == "vllm"
    assert choose(anatomy(), "gguf", both, cpu()).engine == "llamacpp"


def test_gpu_that_the_catalogue_does_not_know_is_taken_where_its_memory_holds_the_model() -> None:
    unknown = Gpu("NVIDIA GeForce RTX 9999", 48 * GIB, 47 * GIB, "")
    choice = choose(anatomy(), "gguf", EnginesHere((unknown,), "", (LLAMA,)), cpu())
    assert choice.engine == "llamacpp"
    assert "no figures of NVIDIA GeForce RTX 9999" in choice.reason


def test_apple_chip_takes_mlx_for_safetensors() -> None:
    mlx = EngineAtHand("mlx", Path("/opt/env/bin/mlx_lm.server"))
    mac = EnginesHere((), "m4-max", (mlx,))
    rates = Rates(30.0, 200.0)
    place = fits.Place("this machine", "freehold", Machine("M4", "neon", 8, 32 * GIB, 24 * GIB, False, rates))
    choice = choose(anatomy("qwen3:0.6b", "BF16"), "safetensors", mac, place)
    assert choice.engine == "mlx", choice


def test_amd_gpus_are_read_from_the_kernel_s_files(tmp_path: Path) -> None:
    card = tmp_path / "card1" / "device"
    card.mkdir(parents=True)
    told = {"vendor": "0x1002", "mem_info_vram_total": str(24 * GIB), "mem_info_vram_used": str(GIB)}
    told["product_name"] = "Radeon RX 7900 XTX"
    for name, text in told.items():
        (card / name).write_text(f"{text}\n", encoding="utf-8")
    (found,) = finding.amd(tmp_path)
    assert (found.title, found.memory, found.free) == ("Radeon RX 7900 XTX", 24 * GIB, 23 * GIB)
