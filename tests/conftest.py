"""Fixtures that several rooms share. Nothing here is loaded before a test asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sharding import SHARDS, runs

if TYPE_CHECKING:
    from freehold.choose.advisor.machine import Machine

# File stem in FREEHOLD_TEST_MODELS -> the name under which the store holds the model.
REAL_MODELS = {
    "smollm2-135m": "smollm2:135m",
    "qwen2.5-coder-0.5b": "qwen2.5-coder:0.5b",
    "qwen2.5-coder-1.5b": "qwen2.5-coder:1.5b",
    "gemma3-270m": "gemma3:270m",
}

with suppress(ImportError):  # absent where csrc alone is tested, under an emulator
    import hypothesis

    # A draw's time says what else the machine does: none is a failure.
    hypothesis.settings.register_profile("unhurried", deadline=None)
    hypothesis.settings.load_profile("unhurried")

# A run begun in the background of a shell ignores Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every", type=int, default=1, metavar="N", help="run one case in N of each test, the first too"
    )
    parser.addoption(
        "--shard",
        type=int,
        metavar="K",
        choices=range(SHARDS),
        help="run each test's first case and one in 4; of heavy tests one in 4",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which part of the cases ran."""
    shard = config.getoption("--shard", None)
    if shard is not None:
        terminalreporter.write_line(
            f"shard {shard} of 0 to {SHARDS - 1}: each test's first case, a quarter of the others and of heavy tests"
        )


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out cases: sharding.py says which."""
    every, shard = config.getoption("--every", 1), config.getoption("--shard", None)
    heavy = {item.nodeid for item in items if item.get_closest_marker("heavy")}
    ran = runs((item.nodeid for item in items), every, shard, heavy)
    left = [item for item, yes in zip(items, ran, strict=True) if not yes]
    if left:
        items[:] = [item for item, yes in zip(items, ran, strict=True) if yes]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """Return a function from a name (a stem above, or any MODEL) to its path, for tests marked `model`.

    The folder that FREEHOLD_TEST_MODELS names comes first, then the store of FREEHOLD_HOME or the user's own.
    What neither holds is pulled: nothing is skipped.
    """
    from freehold.base.config import load_settings
    from freehold.run.store import Store

    def find(name: str) -> Path:
        folder = os.environ.get("FREEHOLD_TEST_MODELS")
        stem = next((k for k, v in REAL_MODELS.items() if v == name), name)
        if folder and (path := Path(folder) / f"{stem}.gguf").is_file():
            return path
        return Store(load_settings()).pull(REAL_MODELS.get(name, name)).path

    return find


@pytest.fixture
def described_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Return a function that puts a described machine in the place of this one for advice; it takes Machine's fields.

    Memory and speed of the machine that runs the tests change while they run, and advice with them: a model that just
    does not fit in one call fits in the next.
    """
    from freehold.choose.advisor import machine

    def describe(**given: Any) -> machine.Machine:
        usual: dict[str, Any] = {
            "cpu": "a processor", "isa": "avx512", "threads": 2, "memory": 32 * 10**9, "free": 16 * 10**9,
            "limited": False, "rates": machine.Rates(30.0, 900.0),
        }  # fmt: skip
        described = machine.Machine(**usual | given)
        monkeypatch.setattr(machine, "here", lambda home, *, measure=True: described)
        return described

    return describe
