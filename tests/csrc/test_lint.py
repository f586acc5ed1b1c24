"""Rules of csrc that a text search can check."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".cpp", ".h", ".inl"})


def code(path: Path) -> str:
    """Return a source's text without its line comments."""
    return re.sub(r"//.*", "", path.read_text())


def test_sources_are_found():
    assert len(SOURCES) > 15


def test_intrinsics_appear_only_in_the_isa_files():
    x86 = r"\b_mm\d*_|immintrin|\b__m\d{3}"
    arm = r"arm_neon|\bv\w+_[suf](8|16|32|64)\b|\b\w+x\d+_t\b"
    used = [p for p in SOURCES if re.search(f"{x86}|{arm}", code(p))]
    assert {p.parent for p in used} <= {CSRC / "kernels" / "isa"}


def test_kernel_families_use_no_library_templates():
    """The program's only copy of an inline template would come out in this target region's instructions."""
    templates = r"std::(?!memcpy|memset|sqrt|fabs|size_t|u?int\d+_t)\w+|#include\s*<"
    for path in SOURCES:
        if path.suffix == ".inl":
            assert not re.findall(templates, code(path)), path.name


def test_nothing_is_tuned_to_the_build_machine():
    flags = (CSRC.parent / "CMakeLists.txt").read_text()
    code_only = re.sub(r"#.*", "", flags)
    assert not re.search(r"-march|-mtune|-mavx|-Ofast|-ffast-math", code_only)
    assert "-ffp-contract=off" in code_only
