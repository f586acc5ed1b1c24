"""Connections are opened in one file of the gateway, and by nothing that is not cleared."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from freehold.route.providers import hop, upstream
from freehold.route.providers.contract import Cleared

PACKAGE = Path(__file__).parents[2] / "src" / "freehold"
NETWORK = {
    "aiohttp", "socket", "ssl", "http", "urllib", "httpx", "httpx2", "requests", "yarl", "ftplib", "smtplib",
    "telnetlib", "xmlrpc", "urllib3", "websockets", "grpc", "asyncio.streams", "socketserver",
}  # fmt: skip
FILES = sorted(p for room in ("providers", "router") for p in (PACKAGE / room).rglob("*.py"))


def networks(path: Path) -> set[str]:
    """Network libraries that a file imports anywhere, and asyncio's own ways to connect."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute):
            names = (
                [node.attr] if node.attr in ("open_connection", "create_connection", "sock_connect") else []
            )
        found |= {
            n
            for n in names
            if (n.split(".")[0] in NETWORK and n != "urllib.parse") or n.endswith("connection")
        }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_hop_imports_a_network_library(path: Path):
    allowed = {"aiohttp", "yarl"} if path == PACKAGE / "route" / "providers" / "hop.py" else set()
    assert networks(path) <= allowed


@pytest.mark.parametrize("door", [hop.Hop.post, upstream.start, upstream.embed, upstream.count])
def test_every_door_takes_a_cleared_request(door):
    kinds = get_type_hints(door, vars(hop) | vars(upstream))
    assert getattr(kinds["cleared"], "__origin__", None) is Cleared
    assert not {"job", "messages", "texts", "work"} & inspect.signature(door).parameters.keys()


def test_the_search_for_network_libraries_sees_one(tmp_path: Path):
    for text in (
        "import socket",
        "from urllib.request import urlopen",
        "import asyncio\nasyncio.open_connection",
    ):
        (tmp_path / "a.py").write_text(text)
        assert networks(tmp_path / "a.py")


def test_aiohttp_is_imported_when_a_provider_is_first_asked():
    program = "import sys; import freehold.route.providers.upstream; assert 'aiohttp' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
