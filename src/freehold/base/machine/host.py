"""Where facts about a machine are read: its system's name, the root of its files, and its sysctl.

The seam for tests: they pass recorded texts of machines that are not here. Knows no fact.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.base.platforms import SYSTEM

# Trees and names that are asked for; sysctl skips a name that this macOS does not have, and says so on stderr.
_NAMES = (
    "hw",
    "machdep.cpu",
    "sysctl.proc_translated",
    "kern.memorystatus_level",
    "kern.memorystatus_vm_pressure_level",
    "vm.page_free_count",
)


def run_sysctl() -> Mapping[str, str]:
    """Ask sysctl(8) of macOS; empty where there is none."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", *_NAMES], capture_output=True, text=True, check=False)
    except OSError:
        return {}
    return parse_sysctl(done.stdout)


def parse_sysctl(text: str) -> dict[str, str]:
    """Read lines of `name: value`."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


@dataclass(frozen=True)
class Host:
    """One machine as its system describes it. Files that are missing read as empty."""

    system: str = SYSTEM
    root: Path = Path("/")
    sysctl: Callable[[], Mapping[str, str]] = run_sysctl

    @property
    def is_mac(self) -> bool:
        """Whether facts come from sysctl instead of files."""
        return self.system == "darwin"

    def text(self, path: str) -> str:
        """Return a file's text, `path` counted from the root."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """Return the whole number a file holds."""
        return whole(self.text(path))


def whole(text: str | None) -> int | None:
    """Return the number a text holds, None for any other text."""
    try:
        return int((text or "").strip())
    except ValueError:
        return None


HERE = Host()
