"""A small file server made with the SDK: `python fileserver.py FOLDER` lists and reads the files of one folder."""

from __future__ import annotations

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

FOLDER = Path(sys.argv[1]).resolve()
server = MCPServer("files")


@server.tool()
def list_files() -> list[str]:
    """List the names of the files."""
    return sorted(path.name for path in FOLDER.iterdir())


@server.tool()
def read_file(name: str) -> str:
    """Read the file of this name and return its text."""
    path = (FOLDER / name).resolve()
    if path.parent != FOLDER:
        raise ValueError(f"{name} is not in the folder")
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    server.run()
