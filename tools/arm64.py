"""Build and run Freehold for 64-bit ARM on another machine, by emulation: `python tools/arm64.py test`.

A folder that checkouts may share (FREEHOLD_ARM64, else freehold-arm64 in the user's cache) keeps what takes time to
get: `root`, Debian's Python for arm64 and its libraries, fetched by apt from where this machine's sources say and
unpacked; `site`, the wheels for it that requirements/*.txt pin. The module is cross-compiled by zig into build/arm64.
Programs of the root run on qemu's user emulator, which looks for absolute paths in the root first, so they see this
machine's files besides. None of it needs root; as root, the emulator is registered with the kernel too, for programs
that start others.

Emulation says what a program computes and nothing of its speed. Knows Debian; elsewhere it prints why it skips.
Run: python tools/arm64.py root | build | run [--cpu MODEL] PROGRAM ARGUMENT ... | test [pytest's arguments]
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.staging import link_package

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "arm64"
PYTHON = "python3.13"  # Debian 13's
# Of requirements/ci.txt, what the kernels' tests import; requirements/run.txt holds what Freehold does.
TESTED = (
    "gguf",
    "hypothesis",
    "iniconfig",
    "packaging",
    "pluggy",
    "pytest",
    "pyyaml",
    "sortedcontainers",
    "tqdm",
)
GLIBC = range(17, 42)  # the manylinux releases whose wheels the root's glibc runs
BINFMT = Path("/proc/sys/fs/binfmt_misc")
MAGIC = "7f454c460201010000000000000000000200b700"  # a 64-bit little-endian ELF program for AArch64 ...
MASK = "ffffffffffffff00fffffffffffffffffeffffff"  # ... as this mask leaves it
# Emulated processors, the tables that each runs, and the tests that are run on each: every kernel where all tables run;
# without matrix products what they have a part in; without dot products that the scalar table is chosen and is right.
# Plain loops take longest in emulation and every other machine tests them; a cache of floats differs from one of halves
# by its loads.
TABLES = {"max": ["i8mm", "neon", "scalar"], "neoverse-n1": ["neon", "scalar"], "cortex-a72": ["scalar"]}


def _files(rooms: Sequence[str]) -> list[str]:
    return [f"tests/csrc/test_{room}.py" for room in rooms]


# Each is one run of pytest, which starts in some seconds; as many run at a time as this machine has processors.
ROOMS = (
    ("matmul",),
    ("attention", "kv", "encoder"),
    ("trellis", "head", "kernels"),
    ("delta", "mamba", "short_conv", "latent"),
)
BITS = "tests/engine/test_bits.py::test_sixteen_greedy_streams_are_what_each_is_alone"
RUNS = [
    *(("max", *_files(rooms), "-k", "not neon and not scalar and not -f32-") for rooms in ROOMS),
    ("neoverse-n1", *_files(("matmul", "attention")), "-k", "not scalar and not -f32- and not -f16-"),
    ("neoverse-n1", *_files(("trellis", "head")), "-k", "not scalar and not -f32- and not -f16-"),
    ("cortex-a72", "tests/csrc/test_matmul.py", "-k", "scalar and products"),
    ("max", BITS),
]
ANSWER = ("max", "neoverse-n1")  # processors that answer: by i8mm and by neon
SURE = 0.5  # a lead in logits that no two tables' arithmetic takes back


class Skipped(Exception):
    """What this machine lacks."""


def folder() -> Path:
    """Return the folder that keeps the root and the wheels."""
    named = os.environ.get("FREEHOLD_ARM64")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(home) / "freehold-arm64"


# ---- the root ------------------------------------------------------------------------------------------------


def fetch(architecture: str, packages: list[str], to: Path, *, alone: bool = False) -> None:
    """Unpack Debian packages into a folder, with all they depend on unless `alone`; apt checks their signatures."""
    state = folder() / "apt" / architecture
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "state" / "status").touch()
    options = [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
    options += [f"Dir::State={state / 'state'}", f"Dir::State::status={state / 'state' / 'status'}"]
    options += [f"Dir::Cache={state / 'cache'}", "Debug::NoLocking=1", "APT::Sandbox::User="]
    apt = ["apt-get", "--quiet=2", *(word for option in options for word in ("-o", option))]
    verb = ["download"] if alone else ["install", "--download-only", "--yes", "--no-install-recommends"]
    archives = state / "cache" / "archives"
    for command in ([*apt, "update"], [*apt, *verb, *packages]):
        done = subprocess.run(command, cwd=archives, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Skipped(
                f"apt has no {', '.join(packages)} for {architecture}: {said[-1] if said else 'no word'}"
            )
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(to)], check=True)


def make_root() -> Path:
    """Return the folder of Debian's Python for arm64, made if it is not there."""
    root = folder() / "root"
    if (root / "made").exists():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Skipped("no apt-get and dpkg-deb here, which fetch Debian's packages for arm64")
    shutil.rmtree(root, ignore_errors=True)
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):  # as Debian's own base-files link them
        (root / name).symlink_to(f"usr/{name}")
    fetch("arm64", [PYTHON, "libstdc++6", "ca-certificates", "tzdata"], root)
    fetch("arm64", [f"lib{PYTHON}-dev"], root, alone=True)
    headers = root / "usr" / "include"
    shutil.copy(headers / "aarch64-linux-gnu" / PYTHON / "pyconfig.h", headers / PYTHON / "pyconfig.h")
    (root / "made").touch()
    return root


def emulator() -> str:
    """Return qemu's user emulator: the machine's, else Debian's package of it, unpacked beside the root."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    here = folder() / "qemu"
    if not (program := here / "usr" / "bin" / "qemu-aarch64").exists():
        native = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True
        ).stdout.strip()
        fetch(native, ["qemu-user"], here, alone=True)
    return str(program)


def register(program: str) -> None:
    """Register the emulator with the kernel until this program ends, so that programs of the root may start others.

    Needs to be root."""
    known = [p for p in BINFMT.glob("*aarch64*") if not p.name.endswith("_be")]
    if os.geteuid() or known or not Path(program).exists():
        return
    if not (BINFMT / "register").exists():
        mounted = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
        if subprocess.run(mounted, capture_output=True).returncode == 0:
            atexit.register(subprocess.run, ["umount", str(BINFMT)], capture_output=True)
    magic, mask = (re.sub("(..)", r"\\x\1", digits) for digits in (MAGIC, MASK))
    entry = BINFMT / "freehold-aarch64"
    try:  # F: opened once, so that it is found under every root
        (BINFMT / "register").write_text(f":{entry.name}:M::{magic}:{mask}:{program}:FP", encoding="ascii")
        atexit.register(entry.write_text, "-1", encoding="ascii")  # before the unmounting: last in, first out
    except OSError as error:
        print(f"note: programs of the root cannot start others: {error}", file=sys.stderr)


def pins(names: Sequence[str]) -> list[str]:
    """Return the lines of requirements/ci.txt that pin these packages."""
    text = (ROOT / "requirements" / "ci.txt").read_text(encoding="utf-8")
    every = re.findall(r"^\S.*(?:\n[ \t].*)*", text, re.MULTILINE)
    return [pin for pin in every if re.split(r"[=\s]", pin)[0] in names]


def make_site() -> Path:
    """Return the folder of wheels for the root's Python, made anew where the pins have changed."""
    site = folder() / "site"
    run = (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8")
    wanted = "\n".join([run, *pins(TESTED), ""])
    listed = folder() / "site.txt"
    if listed.exists() and listed.read_text(encoding="utf-8") == wanted:
        return site
    shutil.rmtree(site, ignore_errors=True)
    listed.with_suffix(".new").write_text(wanted, encoding="utf-8")
    version = PYTHON.removeprefix("python")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(site),
        "--no-deps",
        "--no-compile",
    ]
    command += ["--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
    for abi in (f"cp{version.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for release in GLIBC:
        command += ["--platform", f"manylinux_2_{release}_aarch64"]
    done = subprocess.run(
        [*command, "--requirement", str(listed.with_suffix(".new"))], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped(f"no wheels for arm64: {done.stderr.strip().splitlines()[-1]}")
    listed.with_suffix(".new").rename(listed)
    return site


# ---- the module ----------------------------------------------------------------------------------------------


def interpreter() -> Path:
    """Return a program that runs the root's Python, as CMake asks for one."""
    root = make_root()
    program = BUILD / "python"
    BUILD.mkdir(parents=True, exist_ok=True)
    text = f'#!/bin/sh\nexec {emulator()} -L {root} {root}/usr/bin/{PYTHON} "$@"\n'
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


def build() -> Path:
    """Cross-compile the native module and lay the package out with it; return the folder to import from."""
    import nanobind

    from tools import zig

    toolchain = zig.toolchain(zig.TARGETS["linux-aarch64"], BUILD / "zig")
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(BUILD / "module"),
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    configure += [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-Dnanobind_DIR={nanobind.cmake_dir()}"]
    configure += [f"-DPython_EXECUTABLE={interpreter()}", "-DCMAKE_CXX_FLAGS=-include stdio.h"]  # nanobind's
    configure += [f"-DPython_INCLUDE_DIR={make_root() / 'usr' / 'include' / PYTHON}"]
    for command in (configure, ["cmake", "--build", str(BUILD / "module")]):
        done = subprocess.run(command, env=tools, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"error: {' '.join(command[:2])} failed\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )
    return stage()


def stage() -> Path:
    """Lay the package out as links, the built module among them if there is one."""
    built = next((BUILD / "module").glob("_native*.so"), None)
    return link_package(BUILD / "site", "_native.abi3.so", built)


# ---- running -------------------------------------------------------------------------------------------------


def environment(cpu: str) -> dict[str, str]:
    """Return the variables under which programs of the root find their libraries and the staged package."""
    paths = [BUILD / "site", make_site(), ROOT]
    named = {
        "QEMU_LD_PREFIX": str(make_root()),
        "QEMU_CPU": cpu,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    return {k: v for k, v in os.environ.items() if k not in {"FREEHOLD_ISA", "LD_LIBRARY_PATH"}} | named


def command(program: list[str]) -> list[str]:
    """Return what runs a program of the root, or `python`."""
    register(emulator())
    first = PYTHON if program[0] == "python" else program[0]
    inside = make_root() / "usr" / "bin" / first
    return [emulator(), str(inside if inside.exists() else first), *program[1:]]


def run(cpu: str, program: list[str]) -> int:
    """Run a program on an emulated processor, with the sources as they are; return its status."""
    stage()
    return subprocess.run(command(program), cwd=ROOT, env=environment(cpu)).returncode


def output(cpu: str, program: list[str]) -> str:
    """Run a program on an emulated processor, the package staged; return what it prints."""
    done = subprocess.run(command(program), cwd=ROOT, env=environment(cpu), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(program)} ended with {done.returncode} on {cpu}")
    return done.stdout


# ---- the tests -----------------------------------------------------------------------------------------------


def test(extra: list[str]) -> int:
    """Test the kernels on each emulated processor, the promise about bits, and one answer against this machine's."""
    build()  # and stages, once: the runs below share the folder
    for cpu, tables in TABLES.items():
        code = "from freehold import _native as native; print(*native.isas())"
        found = output(cpu, ["python", "-c", code]).split()
        if found != tables:
            print(f"error: {cpu} runs {found}, not {tables}", file=sys.stderr)
            return 1
        print(f"{cpu}: {', '.join(tables)}", flush=True)
    failed = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in pool.map(lambda each: tested(each[0], [*each[1:], *extra]), RUNS):
            print(done.stdout + done.stderr, end="", flush=True)
            failed = failed or done.returncode
    return failed or compare_answers()


def tested(cpu: str, chosen: list[str]) -> subprocess.CompletedProcess[str]:
    """Run pytest on an emulated processor."""
    asked = command(["python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen])
    return subprocess.run(asked, cwd=ROOT, env=environment(cpu), capture_output=True, text=True)


def compare_answers() -> int:
    """Let a model answer here and there; 1 where they part at a token that led by more than rounding can explain."""
    from freehold.base.config import load_settings
    from freehold.run.store import Store

    path = str(Store(load_settings()).pull("smollm2:135m").path)
    program = ["-m", "tests.arm64.answer", path]
    done = subprocess.run([sys.executable, *program], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    here = json.loads(done.stdout)
    print(f"{here['isa']}: {here['text']!r}\n  leads: {here['leads']}")
    return max(parted(here, json.loads(output(cpu, ["python", *program]))) for cpu in ANSWER)


def parted(here: dict[str, Any], there: dict[str, Any]) -> int:
    """Print another machine's answer; return 1 where it parts from this one's at a token that led by SURE or more."""
    print(f"{there['isa']}: {there['text']!r}\n  leads: {there['leads']}")
    pairs = zip(here["tokens"], there["tokens"], strict=True)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return 0
    print(f"they part at token {at}, where {here['isa']}'s leads by {here['leads'][at]}")
    return int(here["leads"][at] >= SURE)


def main(arguments: list[str]) -> int:
    """Do what is asked; 0 with a reason on the standard error where this machine cannot."""
    verb, *rest = arguments or [""]
    cpu = "max"
    if rest[:1] == ["--cpu"] and len(rest) > 1:
        cpu, rest = rest[1], rest[2:]
    try:
        if platform.system() != "Linux":
            raise Skipped("qemu's user emulator runs on Linux alone")
        if verb == "root":
            print(make_root(), make_site(), sep="\n")
        elif verb == "build":
            print(build())
        elif verb == "run" and rest:
            return run(cpu, rest)
        elif verb == "test":
            return test(rest)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except Skipped as reason:
        print(f"skipped: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
