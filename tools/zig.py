"""Point CMake at zig's C++ compiler, which compiles for other systems than the one it runs on.

One package, `ziglang`, carries the compiler, the C++ library and the headers of glibc and macOS. Of glibc it links what
the named release had, so that a module runs there and on all later ones. Knows targets and where zig keeps its cache;
does not know Freehold.
Run: python tools/zig.py TARGET FOLDER     (write FOLDER/zig.cmake for `cmake -DCMAKE_TOOLCHAIN_FILE=`, print its path)
Path: tools/wheels.py -> toolchain -> cmake -> zig
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A system and a processor; `triple` is zig's, with the oldest release that the result runs on."""

    triple: str
    system: str
    processor: str

    @property
    def macos(self) -> bool:
        """Tell whether it is a Mac."""
        return self.system == "Darwin"


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.28", "Linux", "x86_64"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.28", "Linux", "aarch64"),
    "macos-arm64": Target("aarch64-macos.11.0", "Darwin", "arm64"),
    "macos-x86_64": Target("x86_64-macos.11.0", "Darwin", "x86_64"),
}
TOOLCHAIN = """\
set(CMAKE_SYSTEM_NAME {system})
set(CMAKE_SYSTEM_PROCESSOR {processor})
set(CMAKE_OSX_ARCHITECTURES "")
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_INSTALL_NAME_TOOL /bin/true)
foreach(tool CXX_COMPILER AR RANLIB)
  string(TOLOWER ${{tool}} name)
  set(CMAKE_${{tool}} "{folder}/${{name}}")
endforeach()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
"""
# zig's linker for macOS takes no list of symbols that the loader finds, as nanobind gives it for Python's, and crashes
# on bundles; a dynamic library is loaded as well, and tools/wheel_checks.py reads what is left undefined.
TRANSLATED = """\
for part do
  shift
  case $part in
    -bundle) set -- "$@" -shared -Wl,-undefined,dynamic_lookup ;;
    -Wl,@*darwin-ld-*) ;;
    *) set -- "$@" "$part" ;;
  esac
done
"""


def compiler() -> list[str]:
    """Return the command that runs zig: the package beside this interpreter, else one on the PATH."""
    try:
        import ziglang
    except ImportError:
        if found := shutil.which("zig"):
            return [found]
        raise SystemExit("error: no zig compiler here\nhint: pip install ziglang") from None
    return [str(Path(ziglang.__file__).parent / "zig")]


def cache() -> Path:
    """Return zig's cache: ZIG_GLOBAL_CACHE_DIR, or a folder outside the tree, which `make clean` leaves."""
    named = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(home) / "zig"


def environment() -> dict[str, str]:
    """Return the variables under which every call of zig shares one cache."""
    return {"ZIG_GLOBAL_CACHE_DIR": str(cache()), "ZIG_LOCAL_CACHE_DIR": str(cache())}


def toolchain(target: Target, folder: Path) -> Path:
    """Write the tools of a target and the file that names them to CMake; return that file."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    zig = " ".join(f"'{part}'" for part in compiler())
    compile = f"c++ -target {target.triple}"
    if target.processor == "x86_64":
        compile += f" -include '{Path(__file__).resolve().parent / 'zig_x86.h'}'"
    exports = " ".join(f"{name}='{value}'" for name, value in environment().items())
    for name, verb in (("cxx_compiler", compile), ("ar", "ar"), ("ranlib", "ranlib")):
        tool = folder / name
        before = TRANSLATED if target.macos and name == "cxx_compiler" else ""
        tool.write_text(f'#!/bin/sh\n{before}{exports} exec {zig} {verb} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    made = folder / "zig.cmake"
    text = TOOLCHAIN.format(system=target.system, processor=target.processor, folder=folder)
    if not made.exists() or made.read_text(encoding="utf-8") != text:  # CMake starts anew when it changes
        made.write_text(text, encoding="utf-8")
    return made


def main(arguments: list[str]) -> int:
    """Write the toolchain of the target named."""
    if len(arguments) != 2 or arguments[0] not in TARGETS:
        print(f"usage: python tools/zig.py {{{','.join(TARGETS)}}} FOLDER", file=sys.stderr)
        return 2
    print(toolchain(TARGETS[arguments[0]], Path(arguments[1])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
