"""What tests of verbs share: a command line run in this process, and a provider that stands in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from freehold.cli import main as cli_main
from tests.providers.standin import StandIn


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function from arguments to exit status, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        status = cli_main.run(list(args))
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def standin() -> Iterator[StandIn]:
    """A provider on loopback that speaks every wire."""
    with StandIn() as found:
        yield found
