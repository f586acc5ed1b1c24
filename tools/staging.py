"""Lays the package out as links beside a native module that was built for a test run, not installed.

Used by tools/arm64.py and tools/sanitize.py; knows neither processor nor sanitizer.
Path: arm64.stage, sanitize.stage -> link_package
"""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "src" / "freehold"


def link_package(site: Path, name: str, module: Path | None) -> Path:
    """Make `site`/freehold anew, links to the sources and, if there is one, to `module` as `name`; return `site`."""
    package = site / "freehold"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for source in SOURCES.iterdir():
        if source.suffix != ".so" and source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    if module is not None:
        (package / name).symlink_to(module)
    return site
