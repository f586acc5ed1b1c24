"""`freehold doctor` looks at the machine only; `freehold bench` puts a ceiling beside each speed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from freehold import _native as native
from freehold.base.config import load_settings
from freehold.base.machine import CoreKind, Processor, cpu_quota
from freehold.base.platforms import can_confine
from freehold.choose.advisor.machine import Gpu
from freehold.cli import main
from freehold.cli.report.verify import notes
from freehold.outgrow import finding
from freehold.run.local import load, open_model
from freehold.run.store import Store
from tests.vectors.files import write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_doctor_touches_no_network_and_writes_nothing(capsys, monkeypatch, home):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("cpu", "kernels", "threads", "memory", "home", "stores", "versions"):
        assert f"\n{name}" in "\n" + out
    assert native.isa() in out
    assert list(home.iterdir()) == []


def test_doctor_as_json(capsys):
    assert main.run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kernels"]["runnable"] == native.isas()
    assert 1 <= facts["threads"]["usable"] <= facts["threads"]["logical"]
    assert 0 < facts["memory"]["available"] <= facts["memory"]["total"]


def test_doctor_lists_gpus_and_engines_at_hand(capsys, monkeypatch, home):
    program = home / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho 'Available devices:'\necho '  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23650 MiB free)'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    card = Gpu("NVIDIA GeForce RTX 4090", 24 << 30, 23 << 30, "rtx-4090")
    monkeypatch.setattr(finding, "driven", lambda: True)
    monkeypatch.setattr(finding, "accelerators", lambda: ((card,), ""))
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "engines      NVIDIA GeForce RTX 4090, 24.7 GB free of 25.8 GB\n" in out
    assert f"llamacpp: {program} (CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23650 MiB free))" in out
    program.unlink()
    assert main.run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["engines"]
    assert told["found"] == []
    assert "llama-server built with CUDA" in told["advice"]


def test_every_format_has_a_road_on_every_table(capsys):
    assert main.run(["doctor", "--kernels", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    types = {row["type"]: row for row in facts["types"]}
    assert {"F32", "F16", "BF16", "Q5_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ2_0", "IQ1_S"} <= types.keys()
    for row in types.values():
        assert set(row["route"]) == set(native.isas())
    assert types["Q5_0"]["route"]["scalar"] == "own"


def test_kernel_table_is_readable(capsys):
    assert main.run(["doctor", "--kernels"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "own" in rows["Q4_0"] and "converted" in rows["IQ4_XS"]


def chip(*kinds: CoreKind, translated: bool = False) -> Processor:
    return Processor("Apple M4 Max", "", kinds, ("dotprod",), is_translated=translated)


def test_on_arm_doctor_says_what_was_never_measured_and_asks_for_a_report():
    emulated, *_, invitation = notes(chip(), "neon", "aarch64", False)
    assert "correct by emulation, fast by model, not yet measured" in emulated
    assert "bench smollm2:135m --report" in invitation
    plain = notes(chip(), "scalar", "arm64", True)
    assert "plain loops" in plain[0] and "cross-compilation" in plain[1]


def test_on_measured_machines_doctor_has_no_notes():
    assert notes(chip(), "avx2", "x86_64", False) == []


def test_doctor_notices_rosetta():
    assert "Rosetta" in notes(chip(translated=True), "avx2", "x86_64", True)[0]


def test_doctor_tells_cores_that_compute_from_those_left_out(capsys, monkeypatch):
    mixed = chip(CoreKind("Performance", 12, True), CoreKind("Efficiency", 4, False))
    monkeypatch.setattr("freehold.base.machine.processor", lambda: mixed)
    assert main.run(["doctor"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "cores that compute" in x)
    assert line.endswith("cores that compute: 12 Performance; too slow for these, not used: 4 Efficiency")


@pytest.mark.parametrize("text, cpus", [("200000 100000", 2.0), ("max 100000", None), ("nonsense", None)])
def test_cpu_quota_is_read(tmp_path: Path, text, cpus):
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    assert cpu_quota(tmp_path) == cpus


def test_bench_prints_speeds_and_ceilings(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "measure_read_gb_s", lambda threads: 20.0)
    monkeypatch.setattr(native, "measure_int8_gops", lambda threads, tiles=False: 0.0 if tiles else 400.0)
    path = write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")
    options = [
        "--prompt",
        "40",
        "--tokens",
        "4",
        "--depth",
        "70",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--kv-type",
        "q8",
    ]
    assert main.run(["bench", str(path), *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    facts = json.loads(last)
    for name in ("prefill_tok_s", "decode_tok_s", "load_s", "read_gb_s", "int8_gops", "bytes_per_token"):
        assert facts[name] > 0
    with load(path, context=64, kv_type="q8") as llm:
        read = facts["bytes_per_token"] + 70 * llm.cache_bytes_per_token
    assert facts["decode_ceiling_tok_s"] == pytest.approx(20e9 / read, rel=0.01)
    assert facts["prefill_ceiling_tok_s"] == pytest.approx(400e9 / 2 / facts["weights_per_token"], rel=0.01)
    assert facts["machine"] and facts["version"] and facts["rounds"] == 2 and facts["kv_type"] == "q8"
    assert any("GB/s read" in line for line in lines)


@pytest.mark.parametrize(
    "option", [["--prompt", "64"], ["--tokens", "8"], ["--depth", "64"], ["--kv-type", "f32"]]
)
def test_what_a_comparison_fixes_is_refused(option, capsys):
    assert main.run(["bench", "m", "--peers", *option]) == 2
    assert f"{option[0]} is fixed" in capsys.readouterr().err


def test_peers_need_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("freehold.cli.bench.ROOT", tmp_path)
    path = write_gguf("llama", tmp_path / "tiny.gguf")
    assert main.run(["bench", str(path), "--peers"]) == 2
    assert "benches/" in capsys.readouterr().err


def test_peers_are_measured_by_a_program_of_the_checkout(monkeypatch, tmp_path):
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("freehold.cli.bench.subprocess.run", run)
    path = write_gguf("llama", tmp_path / "tiny.gguf")
    assert main.run(["bench", str(path), "--peers", "--rounds", "2"]) == 0
    assert Path(ran[0][1]).is_file() and ran[0][2:] == [str(path), "--rounds", "2"]


# --- doctor --verify -----------------------------------------------------------------------------------


@pytest.fixture
def held(home: Path) -> tuple[Path, Path]:
    """A model of the store's own and its pack."""
    store = Store(load_settings())
    made = write_gguf("qwen2", home / "made.gguf", dtype="Q8_0")
    ref = store.take_in(made, hashlib.sha256(made.read_bytes()).hexdigest())
    with open_model(ref, context=64, threads=1, packs=store.packs):
        pass
    (pack,) = store.packs.iterdir()
    return ref.path, pack


def verified(capsys) -> tuple[int, dict[str, dict]]:
    capsys.readouterr()
    code = main.run(["doctor", "--verify", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["sound"] == (code == 0)
    return code, {f["kind"]: f for f in facts["files"]}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20_000] ^= 4
    path.write_bytes(data)


def test_verify_finds_sound_files_sound(held, capsys):
    code, found = verified(capsys)
    assert code == 0 and {f["state"] for f in found.values()} == {"sound"} and len(found) == 2


@pytest.mark.parametrize("which", ["model", "pack"])
def test_verify_names_a_flipped_bit_and_the_way_out(which: str, held, capsys):
    path = held[which == "pack"]
    flip(path)
    code, found = verified(capsys)
    other = {"model": "pack", "pack": "model"}[which]
    assert code == 1 and (found[which]["state"], found[other]["state"]) == ("damaged", "sound")
    assert found[which]["path"] == str(path)
    assert found["pack"]["name"] == found["model"]["name"] != ""
    assert ("freehold rm" if which == "model" else f"remove {path}") in found[which]["hint"]
    assert main.run(["doctor", "--verify"]) == 1
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("damaged"))
    assert line.endswith(str(path))
    assert path.exists(), "doctor only looks"


def test_verify_names_a_file_that_is_gone_or_cut_short(held, capsys):
    model, pack = held
    os.truncate(pack, 5000)
    model.unlink()
    code, found = verified(capsys)
    assert code == 1 and (found["model"]["state"], found["pack"]["state"]) == ("missing", "damaged")


def test_doctor_says_what_decodes_pictures_and_whether_it_is_closed_in(capsys, monkeypatch):
    pytest.importorskip("PIL")
    assert main.run(["doctor", "--json"]) == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert pictures["closed_in"] is can_confine() and pictures["pillow"]
    assert {"PNG", "JPEG", "GIF", "WebP"} <= {*pictures["formats"]}
    assert main.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"pictures     Pillow {pictures['pillow']}: PNG, GIF, JPEG" in out
    assert ("without access to files" in out) is can_confine()
    monkeypatch.setattr("freehold.base.platforms.can_confine", lambda: False)
    assert main.run(["doctor"]) == 0 and "this system has no sandbox" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main.run(["doctor"]) == 0
    assert "no decoder: pip install 'freehold[eyes]' installs Pillow" in capsys.readouterr().out
