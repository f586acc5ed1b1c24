"""Checks of a built wheel: what it carries, what its module asks of the system, and what it offers to others.

Linux: the manylinux tag (auditwheel), libraries of glibc alone, one exported symbol. macOS: the oldest system,
libSystem alone, the same symbol. Stable ABI: no symbol outside it (abi3audit). Knows files; builds nothing.
Path: wheels.main -> check -> members, elf | macho, audit, stable, tables
"""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 4_000_000
CARRIED = (
    ".dist-info/sboms/freehold.cdx.json",
    ".dist-info/licenses/LICENSE",
    ".data/data/share/bash-completion/completions/freehold",
    ".data/data/share/zsh/site-functions/_freehold",
    ".data/data/share/fish/vendor_completions.d/freehold.fish",
    "freehold/serve/http/console/static/index.html",
    "freehold/serve/http/console/static/THIRD_PARTY.txt",
)
EXPORTED = {"PyInit__native"}
# zig's linker for macOS cannot hide what the C++ library defines weakly (operators new and delete), nor two of its own.
WEAK = re.compile(r"_Z[nd][aelw].*|_ZT?[A-Z]*N?K?8nanobind.*|_mh_dylib_header|__dso_handle")
GLIBC = re.compile(r"(libc|libm|libdl|librt|libpthread|ld-linux[-\w]*)\.so\.\d")
SYSTEM = {"/usr/lib/libSystem.B.dylib"}
OLDEST_MACOS = (11, 0)


def check(wheel: Path, python: str) -> list[str]:
    """Return what is wrong with a wheel; `python` can import its module where the platform is this one."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        modules = [name for name in names if re.search(r"(^|/)_native\..*so$", name)]
        if len(modules) != 1:
            return [f"{len(modules)} native modules: {modules}"]
        module = archive.read(modules[0])
    wrong = [*members(names), *size(wheel)]
    if str(ROOT).encode() in module:
        wrong.append(f"the module names the folder {ROOT}")
    wrong += macho(module) if "macosx" in wheel.name else elf(module)
    if "manylinux" in wheel.name:
        wrong += audit(wheel)
    if "abi3" in wheel.name:
        wrong += stable(wheel)
    if f"linux_2_28_{platform.machine()}" in wheel.name and sys.platform == "linux":
        wrong += tables(wheel, python)
    return wrong


def tables(wheel: Path, python: str) -> Iterator[str]:
    """Yield a kernel table that this processor runs, and that the module does not offer."""
    asked = "from freehold import _native; print(*_native.isas())"
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        run = [python, "-c", asked]
        done = subprocess.run(run, env=os.environ | {"PYTHONPATH": folder}, capture_output=True, text=True)
    if done.returncode:
        yield f"does not import: {done.stderr[-300:]}"
        return
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    for flag, table in (
        ("avx2", "avx2"),
        ("avx_vnni", "avxvnni"),
        ("avx512_vnni", "avx512"),
        ("avx512_vbmi2", "vbmi"),
        ("asimddp", "neon"),
    ):
        if flag in flags and table not in done.stdout.split():
            yield f"offers {done.stdout.split()}, no {table}, on a processor with {flag}"


def size(wheel: Path) -> list[str]:
    """Return whether it is larger than a wheel may be."""
    held = wheel.stat().st_size
    return [f"{held:,} bytes; at most {LARGEST:,}"] if held > LARGEST else []


def members(names: list[str]) -> Iterator[str]:
    """Yield what is missing, and what a wheel must not carry."""
    yield from (f"no {end}" for end in CARRIED if not any(name.endswith(end) for name in names))
    stray = [name for name in names if re.search(r"__pycache__|\.pyc$|\.libs/|/tests?/", name)]
    if stray:
        yield f"stray files: {stray}"


def elf(module: bytes) -> Iterator[str]:
    """Yield what a Linux module has that it must not."""
    from elftools.elf.elffile import ELFFile

    read = ELFFile(io.BytesIO(module))
    dynamic = read.get_section_by_name(".dynamic")
    needed = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
    if strange := [name for name in needed if not GLIBC.fullmatch(name)]:
        yield f"needs {strange}"
    if any(tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH") for tag in dynamic.iter_tags()):
        yield "has a search path of its own"
    if read.get_section_by_name(".debug_info") or read.get_section_by_name(".symtab"):
        yield "is not stripped"
    symbols = read.get_section_by_name(".dynsym").iter_symbols()
    defined = (s for s in symbols if s.entry.st_shndx != "SHN_UNDEF")
    exported = {s.name for s in defined if s.entry.st_info.bind in ("STB_GLOBAL", "STB_WEAK")}
    if exported != EXPORTED:
        yield f"exports {sorted(exported)[:5]} ({len(exported)} symbols), not {sorted(EXPORTED)}"


def macho(module: bytes) -> Iterator[str]:
    """Yield what a macOS module has that it must not."""
    from macholib.MachO import MachO
    from macholib.SymbolTable import SymbolTable

    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(module)
        file.flush()
        read = MachO(file.name)
        table = SymbolTable(read)
    (header,) = read.headers
    libraries, oldest = set(), None
    for load, command, data in header.commands:
        name = load.get_cmd_name()
        if name in ("LC_LOAD_DYLIB", "LC_LOAD_WEAK_DYLIB"):
            libraries.add(data.rstrip(b"\0").decode())
        elif name == "LC_BUILD_VERSION":
            oldest = (command.minos >> 16, command.minos >> 8 & 0xFF)
        elif name == "LC_VERSION_MIN_MACOSX":
            oldest = (command.version >> 16, command.version >> 8 & 0xFF)
    if oldest != OLDEST_MACOS:
        yield f"runs from macOS {oldest} on, not {OLDEST_MACOS}"
    if strange := libraries - SYSTEM:
        yield f"needs {sorted(strange)}"
    exported = {name.decode().removeprefix("_") for entry, name in table.nlists if offered(entry)}
    exported = {name for name in exported if not WEAK.fullmatch(name)}
    if exported != EXPORTED:
        yield f"exports {sorted(exported)[:5]} ({len(exported)} symbols), not {sorted(EXPORTED)}"
    asked = {name.decode() for entry, name in table.nlists if entry.n_type & 0x0E == 0 and entry.n_type & 1}
    if not any(name.startswith("_Py") for name in asked):
        yield "asks nothing of Python"


def offered(entry: object) -> bool:
    """Tell whether a Mach-O symbol is external and defined, and not private to the module."""
    kind = entry.n_type  # type: ignore[attr-defined]
    stab, private, undefined = kind & 0xE0, kind & 0x10, kind & 0x0E == 0
    return bool(kind & 1) and not (stab or private or undefined)


def audit(wheel: Path) -> list[str]:
    """Return whether auditwheel finds less than the tag promises."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True)
    text = " ".join((said.stdout + said.stderr).split())
    tag = wheel.stem.split("-")[-1]
    found = re.search(r'consistent with the following platform tag: "([^"]+)"', text)
    if found is None:
        return [f"auditwheel: {text[-300:]}"]
    glibc = [int(part) for part in re.findall(r"manylinux_(\d+)_(\d+)_", found[1])[0]]
    return [] if glibc <= [2, 28] and tag.split("_", 3)[3] in found[1] else [f"auditwheel finds {found[1]}"]


def stable(wheel: Path) -> list[str]:
    """Return what abi3audit finds outside the stable ABI of 3.12."""
    command = [sys.executable, "-m", "abi3audit", "--strict", "--report", str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True)
    return [] if said.returncode == 0 else [f"abi3audit: {(said.stdout + said.stderr)[-600:]}"]
