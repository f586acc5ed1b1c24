"""The page's types are those that the server declares."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "console_types.py"


def test_the_page_s_types_are_written_from_the_server_s():
    spec = importlib.util.spec_from_file_location("console_types", TOOL)
    assert spec and spec.loader
    console_types = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(console_types)
    committed = console_types.TYPES.read_text(encoding="utf-8")
    assert console_types.generated() == committed, "run python tools/console_types.py, then make console"
