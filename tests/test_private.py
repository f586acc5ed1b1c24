"""What lies in the data home is its user's alone, whatever the umask, and also where it was open before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.base import private
from freehold.base.config import Settings
from freehold.choose.advisor import calibration
from freehold.run.store import Store
from freehold.run.store.create import copy
from freehold.serve.http.batches.desk import Desk
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.auth import owner_token
from freehold.serve.http.core.keys import KeyFile, made
from freehold.serve.http.core.sockets import bind_unix
from tests.vectors.files import write_gguf


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(home: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mode & 0o777 for p in [home, *home.rglob("*")] if not p.is_socket()}


def use(home: Path, model: Path) -> None:
    """Write what a pull, a made model, keys, a server, its files and a measurement write."""
    settings = Settings(home=home, foreign_roots=())
    store = Store(settings)
    copy(store, store.pull(str(model)).name, "other")
    KeyFile(settings.keys).add(made("ann", "0" * 20, admin=False, models=(), rate="", tokens=""))
    accounts = Accounts(settings.accounts)
    accounts.spend("ann", 1)
    bind_unix(settings.socket).close()
    owner_token(settings.owner_token)
    desk = Desk(home)
    part = desk.files.begin("ann", 100)
    with open(part, "wb", opener=private.opener) as file:
        file.write(b"{}")
    desk.files.add("ann", part, "x", "batch")
    calibration.record(home, [])
    accounts.close()


def test_a_home_is_its_user_s_alone_under_any_umask(tmp_path, no_umask):
    use(tmp_path / "a" / "home", write_gguf("llama", tmp_path / "tiny.gguf"))
    found = modes(tmp_path / "a" / "home")
    assert len(found) > 12 and not {path: oct(mode) for path, mode in found.items() if mode & 0o077}


def test_a_home_that_was_open_is_closed_when_it_is_written_to(tmp_path, no_umask):
    home, model = tmp_path / "home", write_gguf("llama", tmp_path / "tiny.gguf")
    use(home, model)
    for path in [home, *home.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o600 if path.name in ("keys.json", "owner.token") else 0o666)
    KeyFile(home / "keys.json").remove("ann")
    use(home, model)
    found = modes(home)
    assert found[str(home)] == 0o700
    assert not {path: oct(mode) for path, mode in found.items() if Path(path).is_dir() and mode & 0o077}


def test_a_folder_is_closed_up_to_the_home_and_no_further(tmp_path, no_umask):
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    private.folder(home / "models" / "new" / "deep", home)
    assert [p.stat().st_mode & 0o777 for p in (home, home / "models", home / "models" / "new" / "deep")] == [
        0o700
    ] * 3
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    private.folder(shared / "home")
    assert shared.stat().st_mode & 0o777 == 0o777 and (shared / "home").stat().st_mode & 0o777 == 0o700


def test_what_is_there_is_closed_when_it_is_opened_for_writing(tmp_path):
    path = tmp_path / "log"
    path.write_text("x")
    path.chmod(0o666)
    with open(path, opener=private.opener) as file:
        assert file.read() == "x"
    assert path.stat().st_mode & 0o777 == 0o666  # reading changes nothing
    with open(path, "a", opener=private.opener) as file:
        file.write("y")
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "xy"


def test_folders_are_made_by_private_alone():
    """Path.mkdir gives its mode to the last folder only, and those above it what the umask leaves."""
    of_the_user = {
        "launch.py",
        "license.py",
        "make.py",
        "create.py",
        "results.py",
        "run.py",
        "service.py",
    }  # other programs' settings, and copies that were asked for
    by_themselves = {
        "private.py",
        "disk.py",
        "process.py",
        "trial.py",
    }  # with a mode, in a folder that is there
    package = Path(private.__file__).parent
    found = {p.name for p in package.rglob("*.py") if ".mkdir(" in p.read_text(encoding="utf-8")}
    assert found <= of_the_user | by_themselves
