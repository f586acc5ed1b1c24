"""Compile csrc for macOS on both processors, from any system: what `make wheels` links, as a check of some minutes.

Warnings are errors, as is a stack frame beyond what fits: a thread has 512 KB there, where Linux gives it 8 MB. Headers
of Python and nanobind come from this interpreter. Knows zig's targets; links nothing.
Run: python tools/cross.py [TARGET ...] [--only PART OF A PATH]
Path: make cross -> main -> sources -> zig c++
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Half of a thread's stack, since frames lie on each other; that of the i8mm table, with its paired tokens, has 231 KB.
FRAME = 256 << 10
# The flags of CMakeLists.txt, with less optimisation.
FLAGS = (
    *(
        "-std=c++20",
        "-O1",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-stack-protector",
        "-fvisibility=hidden",
    ),
    *("-Wall", "-Wextra", "-Werror", f"-Wframe-larger-than={FRAME}", '-DFREEHOLD_REVISION="cross"', "-Icsrc"),
)


def main(arguments: list[str]) -> int:
    """Compile every file for each target; print what fails and return 1."""
    from tools import zig

    macs = [name for name, target in zig.TARGETS.items() if target.macos]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "target", nargs="*", metavar="TARGET", help=f"of {', '.join(zig.TARGETS)}; default: macOS's"
    )
    parser.add_argument("--only", default="", help="part of a path below csrc")
    options = parser.parse_args(arguments)
    if wrong := [name for name in options.target if name not in zig.TARGETS]:
        parser.error(f"{wrong[0]} is not one of {', '.join(zig.TARGETS)}")
    failures = 0
    for name in options.target or macs:
        start, chosen = time.monotonic(), [s for s in sources() if options.only in str(s)]
        failed = compiled(zig.TARGETS[name].triple, chosen)
        failures += len(failed)
        for source, said in failed:
            print(f"{name}: {source}\n{said}")
        print(
            f"{name}: {len(chosen) - len(failed)} of {len(chosen)} files in {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return int(failures > 0)


def sources() -> list[Path]:
    """Return the C++ files, counted from the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.cpp"))


def compiled(triple: str, chosen: Iterable[Path]) -> list[tuple[Path, str]]:
    """Compile files for one target; return those that fail with the compiler's words."""
    from tools import zig

    command = [*zig.compiler(), "c++", "-target", triple, *FLAGS, *includes()]
    env = os.environ | zig.environment()

    def one(source: Path) -> tuple[Path, str]:
        made = str(Path(folder) / f"{'-'.join(source.parts)}.o")
        done = subprocess.run(
            [*command, "-c", str(source), "-o", made], cwd=ROOT, env=env, capture_output=True, text=True
        )
        return source, done.stderr if done.returncode else ""

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        return [(source, said) for source, said in pool.map(one, chosen) if said]


def includes() -> list[str]:
    """Return where Python's and nanobind's headers are; of theirs no warning counts."""
    import nanobind

    folders = (
        sysconfig.get_path("include"),
        nanobind.include_dir(),
        str(Path(nanobind.include_dir()).parent / "ext" / "robin_map" / "include"),
    )
    return [word for folder in folders for word in ("-isystem", folder)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
