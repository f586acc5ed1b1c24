"""What is built into the package is what the sources say: by digests without Node, by bytes where Node is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE, STATIC = ROOT / "console", ROOT / "src" / "freehold" / "serve" / "http" / "console" / "static"
SOURCES = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src")
MOST = 600_000  # bytes of the wheel, which is packed
FIRST, ALL = 150_000, 400_000  # bytes of JavaScript as gzip: before the first answer, and of every page
BUILT = "make console builds the page; its files are committed with its sources"


def digests(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    paths = [p for name in names for p in ([root / name, *(root / name).rglob("*")])]
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
        if p.is_file() and p.name != "manifest.json"
    }


def manifest() -> dict[str, dict[str, str]]:
    path = STATIC / "manifest.json"
    assert path.exists(), BUILT
    return json.loads(path.read_text())


def test_built_page_is_that_of_its_sources():
    assert manifest()["sources"] == digests(CONSOLE, SOURCES), BUILT


def test_built_files_are_those_that_were_built():
    assert manifest()["built"] == digests(STATIC, ("",)), BUILT


def test_page_is_small():
    packed = {p.name: len(zlib.compress(p.read_bytes())) for p in STATIC.rglob("*") if p.is_file()}
    assert sum(packed.values()) <= MOST, packed
    assert sum(size for name, size in packed.items() if name.endswith(".js")) <= ALL, packed
    first = re.findall(r'(?:src|href)="/assets/([^"]+\.js)"', (STATIC / "index.html").read_text())
    assert first and sum(packed[name] for name in first) <= FIRST, packed


def test_every_package_in_the_page_has_its_licence_beside_it():
    text = (STATIC / "THIRD_PARTY.txt").read_text()
    packages = json.loads((CONSOLE / "package.json").read_text())
    for name, version in packages["dependencies"].items():
        assert f"{name} {version} (" in text, name
    licences = set(re.findall(r"^[\w@/.-]+ \d[\w.-]* \(([^)]+)\)$", text, re.M))
    assert licences <= {"MIT", "BSD-3-Clause", "ISC", "Apache-2.0"} and text.count("Copyright") >= 6


def test_built_page_names_no_other_host():
    """What is named are namespaces of XML, words of error messages, and the base of relative links."""
    known = {"www.w3.org", "preactjs.com", "katex.org", "github.com", "i.test"}
    for path in STATIC.rglob("*"):
        if path.suffix in (".js", ".css", ".html"):
            hosts = set(re.findall(r"(?:https?:)?//([\w-]+(?:\.[\w-]+)+)", path.read_text()))
            assert hosts <= known, (path.name, hosts - known)


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("npx") is None or not (CONSOLE / "node_modules").exists(),
    reason="Node and its packages are not here",
)
def test_building_again_gives_the_same_bytes(tmp_path: Path):
    out = tmp_path / "static"
    subprocess.run(
        ["npx", "vite", "build", "--outDir", str(out), "--logLevel", "warn"],
        cwd=CONSOLE,
        check=True,
        timeout=300,
    )
    assert digests(out, ("",)) == digests(STATIC, ("",))


# --- what the sources may not hold -----------------------------------------------------------------------------------

# Each makes markup, script or style of a string, or starts what the policy of the page does not let in.
REFUSED = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|DOMParser|srcdoc|srcDoc"
    r"|createContextualFragment|HTMLUnsafe|\bsetHTML\(|\beval\(|new Function|javascript:|cssText|insertRule"
    r"|new (?:Shared)?Worker|serviceWorker|importScripts|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]"
    r"|setAttribute\(\s*[\"'`](?:style|on\w+)|\sstyle=[\"'`]|\sstyle=\{\s*[\"'`]|trustedTypes"
)
SCRIPTS = [p for p in (CONSOLE / "src").rglob("*") if p.suffix in (".ts", ".tsx")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(CONSOLE)))
def test_no_markup_is_made_of_strings(path: Path):
    found = [line.strip() for line in path.read_text().splitlines() if REFUSED.search(line)]
    assert not found, found


@pytest.mark.parametrize(
    "line",
    [
        "node.innerHTML = text;",
        'area.insertAdjacentHTML("beforeend", x)',
        "<div dangerouslySetInnerHTML={{ __html: x }} />",
        '<p style="color: red">',
        "<p style={`width: ${n}px`}>",
        'node.setAttribute("onclick", x)',
        "setTimeout('go()', 5)",
        "document.body.setHTMLUnsafe(x)",
        "new Worker(url)",
        "node.style.cssText = x",
    ],
)
def test_the_check_sees_what_it_is_for(line):
    assert REFUSED.search(line)


def test_the_check_lets_computed_styles_pass():
    assert not REFUSED.search('<p style={{ width: "3px" }} /> node.style.setProperty("--n", x)')


def test_style_sheets_ask_for_nothing():
    for path in (CONSOLE / "src").rglob("*.css"):
        assert not re.search(r"@import|url\((?!#)", path.read_text()), path


def test_shell_has_no_script_or_style_inside():
    text = (CONSOLE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
