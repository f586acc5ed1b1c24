"""The stub of the native module is generated from it, and the committed one is up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "stub.py"


def test_committed_stub_is_what_the_built_module_declares():
    pytest.importorskip("nanobind.stubgen")
    spec = importlib.util.spec_from_file_location("stub", TOOL)
    assert spec and spec.loader
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    committed = stub.STUB.read_text(encoding="utf-8")
    assert committed == stub.generate(), "run tools/stub.py after a change of csrc/bind or csrc/ops"
