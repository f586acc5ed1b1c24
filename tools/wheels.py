"""Build Freehold's wheels for Linux and macOS on both processors, from any Linux: `make wheels`.

Of each platform one for CPython 3.11 and one for the stable ABI from 3.12 on. scikit-build-core builds them, as for
`pip wheel`, with zig as the compiler; the engine, which knows no Python, is compiled once a platform and comes from
zig's cache the second time. The same sources, compiler and Python give the same bytes. wheel_checks.py reads all.
Run: python tools/wheels.py [--only PART OF A TAG ...] [--out dist]
Path: make wheels -> main -> build -> scikit_build_core -> CMakeLists.txt -> check
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BUILD = ROOT / "build" / "wheels"
PLATFORMS = {
    "manylinux_2_28_x86_64": "linux-x86_64",
    "manylinux_2_28_aarch64": "linux-aarch64",
    "macosx_11_0_arm64": "macos-arm64",
    "macosx_11_0_x86_64": "macos-x86_64",
}
PYTHONS = ("cp311-cp311", "cp312-abi3")
# What the headers ask of the platform, answered by the compiler of the target; Debian's own asks for its own platform.
SIZES = ("short", "int", "long", "long_long", "float", "double", "long_double", "size_t", "wchar_t")
# <stdio.h> is nanobind's, which takes it for granted; the headers of the stable interface do not include it.
PYCONFIG = "#pragma once\n#include <stdio.h>\n"
PYCONFIG += "".join(f"#define SIZEOF_{name.upper()} __SIZEOF_{name.upper()}__\n" for name in SIZES)
PYCONFIG += "#define SIZEOF_VOID_P __SIZEOF_POINTER__\n#define SIZEOF_UINTPTR_T __SIZEOF_POINTER__\n"
PYCONFIG += (
    "#define SIZEOF_TIME_T 8\n#define SIZEOF_OFF_T 8\n#define SIZEOF_PID_T 4\n#define SIZEOF__BOOL 1\n"
)
PYCONFIG += "#define ALIGNOF_LONG __alignof__(long)\n#define ALIGNOF_SIZE_T __alignof__(long)\n"
PYCONFIG += "".join(
    f"#define {name} 1\n"
    for name in (
        *(f"HAVE_{h}_H" for h in ("ERRNO", "INTTYPES", "STDINT", "STDLIB", "STRING", "UNISTD", "WCHAR")),
        *("HAVE_PTHREAD_H", "HAVE_SYS_TIME_H", "HAVE_SYS_TYPES_H", "HAVE_SYS_STAT_H", "HAVE_SYS_SELECT_H"),
        *("HAVE_LONG_LONG", "HAVE_PROTOTYPES", "HAVE_STDARG_PROTOTYPES", "HAVE_SSIZE_T", "HAVE_STD_ATOMIC"),
        *("HAVE_GCC_UINT128_T", "HAVE_BUILTIN_ATOMIC", "WITH_DOC_STRINGS", "WITH_PYMALLOC"),
    )
)
EXPORTS = (
    "{ global: PyInit_*; local: *; };\n"  # the C++ library's operators would be offered to the whole process
)
BACKEND = """\
import sys
from scikit_build_core.build import build_wheel
print(build_wheel(sys.argv[1], dict(part.split("=", 1) for part in sys.argv[2:])))
"""
HEADERS = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_path('include'))"


@dataclass(frozen=True)
class Interpreter:
    """A CPython that is here with its headers."""

    path: str
    version: tuple[int, int]
    include: Path


def main(arguments: list[str]) -> int:
    """Build, check and list the wheels; return 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="part of a wheel's tag; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args(arguments)
    # Those of one platform follow each other: the second finds the engine in the cache.
    tags = [f"{python}-{platform}" for platform in PLATFORMS for python in PYTHONS]
    chosen = [tag for tag in tags if all(part in tag for part in options.only)]
    if not chosen:
        parser.error(f"no wheel has {' and '.join(options.only)} in its tag; there are: {', '.join(tags)}")
    from tools import wheel_checks

    interpreters, failures = {p: interpreter(p) for p in PYTHONS}, 0
    options.out.mkdir(parents=True, exist_ok=True)
    for number, tag in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {tag}")
        start = time.monotonic()
        python = interpreters[tag.rpartition("-")[0]]
        wheel = build(tag, python, options.out)
        wrong = wheel_checks.check(wheel, python.path)
        failures += len(wrong)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        megabytes = wheel.stat().st_size / 1e6
        print(f"{digest}  {wheel.name}", flush=True)
        say(
            f"{megabytes:.2f} MB in {time.monotonic() - start:.0f} s"
            + "".join(f"\nerror: {w}" for w in wrong)
        )
    return int(failures > 0)


def say(text: str) -> None:
    """Print progress; stdout has digests alone, as `sha256sum --check` reads them."""
    print(text, file=sys.stderr, flush=True)


def interpreter(python: str) -> Interpreter:
    """Find a CPython with headers for these tags: 3.11 itself, or any from 3.12 on for the stable ABI."""
    exact = python == "cp311-cp311"
    names = ["python3.11"] if exact else [f"python3.{minor}" for minor in (13, 14, 12)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [sys.executable, *(p for n in names if (p := shutil.which(n)))]
    found += [str(p) for n in names for p in sorted(pyenv.glob(f"*/bin/{n}"))]
    for path in found:
        asked = subprocess.run([path, "-c", HEADERS], capture_output=True, text=True)
        if asked.returncode:  # pyenv's shims of versions that are not chosen
            continue
        major, minor, include = asked.stdout.split(maxsplit=2)
        version, folder = (int(major), int(minor)), Path(include.strip())
        fits = version == (3, 11) if exact else version >= (3, 12)
        if fits and (folder / "Python.h").exists():
            return Interpreter(path, version, folder)
    wanted = "CPython 3.11" if exact else "CPython 3.12 or later"
    raise SystemExit(
        f"error: {python} wheels need {wanted} with its headers\nhint: {names[0]} on the PATH, -dev"
    )


def headers(of: Interpreter) -> Path:
    """Return a copy of the interpreter's headers that fits every target."""
    made = BUILD / f"include-3.{of.version[1]}"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(of.include, made, ignore=shutil.ignore_patterns("internal"))
    (made / "pyconfig.h").write_text(PYCONFIG, encoding="utf-8")
    return made


def suffix(tag: str) -> str:
    """Return how the module's name ends: what that Python looks for on that platform."""
    _, abi, platform = tag.split("-")
    if abi == "abi3":
        return ".abi3.so"
    processor = platform.removeprefix("manylinux_2_28_")
    return ".cpython-311-darwin.so" if "macosx" in platform else f".cpython-311-{processor}-linux-gnu.so"


def build(tag: str, python: Interpreter, out: Path) -> Path:
    """Build one wheel into `out`."""
    import nanobind

    from tools import zig

    folder = BUILD / tag
    target = zig.TARGETS[PLATFORMS[tag.split("-")[2]]]
    # No name of a folder may reach the module: of assertions, the sources' path would.
    maps = f"-g0 -ffile-prefix-map={ROOT}=. -ffile-prefix-map={nanobind.include_dir()}=nanobind"
    defined = {
        "CMAKE_TOOLCHAIN_FILE": zig.toolchain(target, folder / "tools"),
        "CMAKE_CXX_FLAGS": maps,
        "Python_INCLUDE_DIR": headers(python),
        "nanobind_DIR": nanobind.cmake_dir(),
    }
    if not target.macos:
        (folder / "exports.map").write_text(EXPORTS, encoding="utf-8")
        defined["CMAKE_MODULE_LINKER_FLAGS"] = f"-Wl,--version-script={folder / 'exports.map'}"
    settings = {
        "wheel.tags": tag,
        "wheel.py-api": "cp312" if "abi3" in tag else "",
        "wheel.reproducible": "true",
        "build-dir": str(folder / "build"),
        "install.strip": "false",
    }
    settings |= {f"cmake.define.{name}": str(value) for name, value in defined.items()}
    command = [python.path, "-c", BACKEND, str(out.resolve()), *(f"{k}={v}" for k, v in settings.items())]
    # The build packages are pure Python, so that both interpreters can import those beside this one.
    tools = {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "SETUPTOOLS_EXT_SUFFIX": suffix(tag),
    }
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | tools, stdout=subprocess.PIPE, stderr=file, text=True
        )
        file.write(done.stdout)
    if done.returncode:
        say("\n".join(log.read_text(encoding="utf-8").splitlines()[-40:]))
        raise SystemExit(f"error: {tag} does not build; all of it is in {log}")
    return out / done.stdout.split()[-1]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
