"""Write a CycloneDX 1.6 bill of materials: Freehold, what it is installed with, and what is compiled into it.

Packages, versions, hashes and who asks for whom come from requirements/run.txt; what is linked into the native module
from requirements/ci.txt. No clock and no network: the same lock gives the same file.
Run: python tools/sbom.py [FILE]     (default: stdout)
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("nanobind",)  # and with it tsl::robin_map, whose sources it carries


@dataclass
class Locked:
    """One pinned package."""

    name: str
    version: str
    marker: str = ""
    hashes: list[str] = field(default_factory=list)
    via: list[str] = field(default_factory=list)  # packages that need it

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(path: Path) -> list[Locked]:
    """Read what `uv pip compile --generate-hashes` wrote, its comments on who needs what included."""
    found: list[Locked] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\]+))?", line):
            found.append(Locked(pin[1], pin[2], (pin[3] or "").strip()))
        elif hashed := re.search(r"--hash=sha256:([0-9a-f]{64})", line):
            found[-1].hashes.append(hashed[1])
        elif via := re.match(r" +# (?:via +|  )([A-Za-z0-9._-]+)(?: \(pyproject\.toml\))?$", line):
            found[-1].via.append(via[1])
    return found


def bill() -> dict[str, Any]:
    """Return the document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = read_lock(ROOT / "requirements" / "run.txt")
    linked = [p for p in read_lock(ROOT / "requirements" / "ci.txt") if p.name in LINKED]
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    parts = [*locked, *linked]
    needs: dict[str, set[str]] = {own: {p.purl for p in linked}} | {p.purl: set() for p in parts}
    by_name = {p.name: p.purl for p in locked} | {project["name"]: own}
    for package in locked:
        for asker in package.via:
            needs[by_name[asker]].add(package.purl)
    seed = json.dumps([own, *sorted((p.purl, *p.hashes) for p in parts)])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, seed)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(p, "compiled into it" if p in linked else p.marker) for p in parts],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(needs.items())],
    }


def _component(package: Locked, when: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
    }
    if when:
        out["properties"] = [{"name": "freehold:when", "value": when}]
    # Several files may be installed, one for each system: any of these is the package.
    files = [{"alg": "SHA-256", "content": digest} for digest in package.hashes]
    return out | {"externalReferences": [{"type": "distribution", "url": package.purl, "hashes": files}]}


def main(arguments: list[str]) -> None:
    """Write the bill to a file or to stdout."""
    text = json.dumps(bill(), indent=1) + "\n"
    if not arguments:
        sys.stdout.write(text)
        return
    Path(arguments[0]).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments[0]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
