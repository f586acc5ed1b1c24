"""Build csrc with AddressSanitizer and UndefinedBehaviorSanitizer, and run tests with it: `make sanitize`.

The build lies in build/sanitize, the package beside it as links to src, and the tests run in an environment without
the editable install's import hook, so that the built module is the one that is imported. A report of a sanitizer
ends the process that it is about; the test fails with it.
Run: python tools/sanitize.py [--short] [pytest's arguments]
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.staging import link_package

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
# What reads files of strangers, and every kernel. Short: the scalar kernels, which are the same loops, and no engine.
FULL = ["tests/csrc", "tests/formats", "tests/models", "tests/fuzz", "tests/test_damaged_models.py"]
FULL += [
    "tests/local/test_damaged_packs.py",
    "tests/tokenizer/test_encoders.py",
    "tests/tokenizer/test_tokenizer.py",
]
# Not what starts children within a limit of address space (templates, grammars): the sanitizer takes terabytes of it.
FULL += [
    f"tests/engine/test_{name}.py"
    for name in ("engine", "bits", "speculation", "adapters", "disk", "window", "hybrids")
]
SHORT = ["tests/fuzz", "tests/formats", "tests/test_damaged_models.py", "tests/models/test_packs.py"]
SHORT += [f"tests/csrc/test_{name}.py" for name in ("matmul", "trellis", "head", "kv", "states", "sampling")]
SHORT += [f"tests/csrc/test_{name}.py" for name in ("delta", "mamba", "latent", "short_conv", "routing")]
# Loaded before the interpreter: the sanitizer, and the C++ library whose exceptions it intercepts.
RUNTIME = ("libasan.so", "libstdc++.so")
# Leaks: an interpreter that ends keeps what it has. Null: tests ask for more memory than there is, and get an error.
ASAN = "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0"
UBSAN = "print_stacktrace=1:halt_on_error=1"


def main(arguments: list[str]) -> int:
    """Build, stage and run; return pytest's status."""
    if missing := [name for name in RUNTIME if not Path(_library(name)).is_absolute()]:
        print(f"skipped: the compiler has no {missing[0]} beside it; g++ on Linux has", file=sys.stderr)
        return 0
    short = "--short" in arguments
    chosen = [a for a in arguments if a != "--short"] or (SHORT if short else FULL)
    module = build(short)
    python = stage(module)
    marks = ["-m", "not model and not long"] if short else ["-m", "not model"]
    abreast = ["-n", str(os.cpu_count() or 1), "--dist", "worksteal"]
    command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *abreast, *marks, *chosen]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment(short)).returncode


def build(scalar: bool) -> Path:
    """Build the module with whatever cmake and ninja are beside this interpreter; `scalar`: no vector kernels."""
    import nanobind

    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    options = [
        "-DFREEHOLD_SANITIZE=ON",
        f"-DFREEHOLD_SCALAR={'ON' if scalar else 'OFF'}",
        "-DCMAKE_BUILD_TYPE=None",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={nanobind.cmake_dir()}",
    ]
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options]
    for command in (configure, ["cmake", "--build", str(BUILD)]):
        subprocess.run(command, env=tools, check=True, stdout=subprocess.DEVNULL)
    return next(BUILD.glob("_native*.so"))


def stage(module: Path) -> Path:
    """Lay the package out as links with the built module among them; return an interpreter that imports it."""
    linked = link_package(BUILD / "site", module.name, module)
    home = BUILD / "venv"
    venv.create(home, symlinks=True, clear=True)
    # Folders named in a .pth are searched, but their own .pth files, the import hook's among them, are not obeyed.
    found = [str(linked), *(p for p in sys.path if p.endswith("site-packages"))]
    (site,) = home.glob("lib/python*/site-packages")
    (site / "sanitized.pth").write_text("\n".join(found) + "\n", encoding="utf-8")
    return home / "bin" / "python"


def environment(short: bool) -> dict[str, str]:
    """Return the variables that a sanitized module in a plain interpreter needs."""
    wanted = {"LD_PRELOAD": " ".join(map(_library, RUNTIME)), "ASAN_OPTIONS": ASAN, "UBSAN_OPTIONS": UBSAN}
    return wanted | ({"FREEHOLD_SHORT_CORPUS": "1"} if short else {})


def _library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    asked = [compiler, f"-print-file-name={name}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
