"""The documentation site: strict build, every page in its menu, nothing from other hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "zensical.toml"


def listed(entry: object) -> Iterator[str]:
    """Yield the pages of a part of the menu."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for each in entry.values():
            yield from listed(each)
    elif isinstance(entry, list):
        for each in entry:
            yield from listed(each)


class Fetched(HTMLParser):
    """Collects what a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.urls += [named.get("src") or ""]
        elif tag == "link" and named.get("rel") != "canonical":
            self.urls += [named.get("href") or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site from a copy of the pages, and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    (folder / CONFIG.name).write_text(CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copytree(ROOT / "docs", folder / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_every_page_is_in_the_menu_once():
    named = sorted(listed(tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]["nav"]))
    pages = sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))
    assert named == pages


@pytest.mark.heavy
def test_a_strict_build_has_a_page_for_each_file(site: Path):
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs")
        folder = path.parent if path.name == "README.md" else path.with_suffix("")
        assert (site / folder / "index.html").is_file(), path


def test_pages_load_nothing_from_other_hosts(site: Path):
    for page in site.rglob("*.html"):
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert not [u for u in fetched.urls if re.match(r"(?:[a-z]+:)?//", u)], page


def test_links_to_headings_work_as_on_a_forge(site: Path):
    page = (site / "guides" / "serve" / "index.html").read_text(encoding="utf-8")
    assert 'id="troubleshooting"' in page
