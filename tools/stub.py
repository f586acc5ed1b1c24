"""Write src/freehold/_native.pyi from the built native module: signatures and docstrings as csrc declares them.

Run: python tools/stub.py [--check], after csrc/bind or an op's declaration changed; tests/csrc/test_stub.py checks the
committed file. Needs nanobind's stub generator and ruff, which the tests' environment has.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).parent.parent / "src" / "freehold" / "_native.pyi"
ALIASES = {"F32": "float32", "I32": "int32", "U8": "uint8"}
# Of Strings, a Sequence without slices and bounds.
NARROWER = ("def __getitem__(self, index: int) -> str: ...", "def index(self, text: str) -> int:")


def main(arguments: list[str]) -> int:
    """Write the stub, or with --check return 1 where the committed one differs."""
    text = generate()
    if arguments == ["--check"]:
        return int(STUB.read_text(encoding="utf-8") != text)
    STUB.write_text(text, encoding="utf-8")
    return 0


def generate() -> str:
    """Return the stub of the module that is installed beside this interpreter."""
    from nanobind.stubgen import StubGen

    from freehold import _native as native

    generator = StubGen(native, include_docstrings=True)
    generator.put(native)
    return _formatted(_shortened(generator.get()))


def _shortened(stub: str) -> str:
    """Name plain array types, whose shapes the docstrings say, and begin docstrings on their first line."""
    stub = re.sub(
        r"Annotated\[(NDArray\[numpy\.\w+\]), dict\((?:shape=\([^)]*\)[^)]*|[^)]*)\)\]", r"\1", stub
    )
    for alias, dtype in ALIASES.items():
        stub = stub.replace(f"NDArray[numpy.{dtype}]", alias)
    stub = stub.replace("from typing import Annotated\n", "from types import ModuleType\n")
    stub = re.sub(r'^( *)"""\n *(.*?)\n\1"""$', _docstring, stub, flags=re.MULTILINE | re.DOTALL)
    for line in NARROWER:
        stub = stub.replace(line, f"{line}  # type: ignore[override]")
    names = "".join(f"{alias} = NDArray[numpy.{dtype}]\n" for alias, dtype in ALIASES.items())
    return stub.replace(
        "from freehold._native import testing as testing\n", f"{names}\ntesting: ModuleType\n"
    )


def _docstring(found: re.Match[str]) -> str:
    indent, text = found.groups()
    return f'{indent}"""{text}' + (f'\n{indent}"""' if "\n" in text else '"""')


def _formatted(text: str) -> str:
    name = ["--stdin-filename", str(STUB)]
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *name, "-"],
            input=text, capture_output=True, text=True, encoding="utf-8", check=True,
        )  # fmt: skip
        text = done.stdout
    return text


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
