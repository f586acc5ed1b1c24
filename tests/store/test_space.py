"""A full disk: refused beforehand where it can be seen, named where it comes midway, and survived."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import CapacityExceeded
from freehold.run.store import Event, Progress, Store
from freehold.run.store.contract import Part
from tests.store.conftest import UNIT, noise
from tests.store.standin import Standin

SIZE = 20 * UNIT
BODY = noise(SIZE)


@pytest.fixture
def hub(standin: Standin) -> Standin:
    standin.files = {"m-Q4_K_M.gguf": BODY}
    standin.throttle_s = 0.002
    return standin


@pytest.fixture
def small_disk(tmp_path: Path, settings: Settings) -> Iterator[Store]:
    """A store whose home is a tmpfs of 2 MB."""
    home = tmp_path / "disk"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield Store(replace(settings, home=home))
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_model_that_cannot_fit_is_refused_before_its_first_byte(hub: Standin, small_disk: Store):
    hub.files["m-Q4_K_M.gguf"] = noise(3 << 20)
    with pytest.raises(CapacityExceeded, match=r"needs 3\.3 MB of disk.* has 2\.\d MB free"):
        small_disk.pull("org/m")
    assert hub.sent == 0


def test_a_disk_that_fills_midway_leaves_the_store_healthy(hub: Standin, small_disk: Store):
    hub.files["a-Q8_0.gguf"] = noise(1000, 1)
    small = small_disk.pull("org/m:Q8_0")
    filler = small_disk.settings.home / "filler"

    def fill(event: Event) -> None:
        if isinstance(event, Progress) and event.done > SIZE // 4 and not filler.exists():
            with filler.open("wb", buffering=0) as f:
                try:
                    while f.write(bytes(4096)):
                        pass
                except OSError as e:
                    assert e.errno == errno.ENOSPC

    with pytest.raises(CapacityExceeded, match=r"is full .* of 1\.3 MB"):
        small_disk.pull("org/m:Q4_K_M", fill)
    assert small_disk.resolve("org/m:Q8_0").path.read_bytes() == small.path.read_bytes()
    states = {m.name: m.state for m in small_disk.list()}
    assert states == {"org/m:Q8_0": "ready", "org/m:Q4_K_M": "incomplete"}
    filler.unlink()
    hub.sent = 0
    assert small_disk.pull("org/m:Q4_K_M").path.read_bytes() == BODY
    assert hub.sent < SIZE, "what was fetched before the disk filled is not fetched again"


def test_a_write_without_space_is_named_and_keeps_the_part(hub: Standin, store: Store, monkeypatch):
    write, written = Part.write, []

    def full(self: Part, at: int, block: bytes) -> None:
        if sum(written) > SIZE // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(block))
        write(self, at, block)

    with monkeypatch.context() as patched:
        patched.setattr(Part, "write", full)
        with pytest.raises(CapacityExceeded, match="is full") as e:
            store.pull("org/m")
    assert "same command" in e.value.hint
    assert store.list()[0].held > 0
    hub.sent = 0
    assert store.pull("org/m").path.read_bytes() == BODY
    assert hub.sent < SIZE
