"""The locked environments hold what the project asks for, file by file; the bill of materials is theirs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILD = [line for line in (ROOT / "requirements" / "build.in").read_text().splitlines() if line[:1].isalpha()]
OF_THE_MACHINE = "torch"  # its builds differ by machine, so no lock holds it
TRAINING = [r for r in EXTRAS["adapt"] if Requirement(r).name != OF_THE_MACHINE]
CI = [*RUN, *EXTRAS["test"], *EXTRAS["gateway"], *EXTRAS["mcp"], *TRAINING, *BUILD]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)((?:.*\\\n +--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def pins(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for package, version, _ in PIN.findall((ROOT / "requirements" / name).read_text(encoding="utf-8")):
        found.setdefault(canonicalize_name(package), []).append(version)
    return found


@pytest.mark.parametrize("name, asked", [("ci.txt", CI), ("run.txt", RUN)])
def test_each_requirement_is_locked_within_its_bounds(name: str, asked: list[str]) -> None:
    """Red after a change of pyproject.toml: `make lock` resolves them again."""
    locked = pins(name)
    for requirement in map(Requirement, asked):
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement} is not in {name}: make lock"
        assert all(requirement.specifier.contains(v, prereleases=True) for v in versions), (
            f"{requirement}: {versions}"
        )


def test_builds_need_what_the_lock_holds() -> None:
    assert set(PROJECT["build-system"]["requires"]) <= set(BUILD)


@pytest.mark.parametrize("name", ["ci.txt", "run.txt"])
def test_every_line_of_a_lock_is_a_pin_with_hashes_and_no_host_is_named(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert len(PIN.findall(text)) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    assert not re.search(r"://|^-|--(extra-)?index|--find-links", text, re.MULTILINE)
    assert OF_THE_MACHINE not in pins(name)


def test_what_is_installed_to_run_is_among_what_is_tested() -> None:
    tested = pins("ci.txt")
    for package, versions in pins("run.txt").items():
        assert set(versions) <= set(tested[package]), package


def test_bill_of_materials_names_every_package_with_its_hashes_and_who_needs_it() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "sbom.py")], capture_output=True, text=True, check=True
    )
    bill = json.loads(made.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {c["bom-ref"]: c for c in bill["components"]}
    named = {canonicalize_name(c["name"]) for c in parts.values()}
    assert named == pins("run.txt").keys() | {"nanobind"}
    assert all(c["externalReferences"][0]["hashes"] for c in parts.values())
    own = bill["metadata"]["component"]["bom-ref"]
    reached, left = set(), [own]
    needs = {d["ref"]: d["dependsOn"] for d in bill["dependencies"]}
    while left:
        reached.add(ref := left.pop())
        left += [r for r in needs[ref] if r not in reached]
    assert reached == {own, *parts}, "each is needed by something that is needed"
