"""config.toml keeps every line that a command was not asked about, and is whole at any moment."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from freehold.base.errors import StoreError, UsageError
from freehold.cli.serving.configfile import add_table, remove_table

MINE = """# mine
adopt = false   # no other stores

[company]
# for licences
users = 12

"""
TABLE = '[mcp.h]\ncommand = ["x"]\n'


def written(home: Path, text: str) -> Path:
    path = home / "config.toml"
    path.write_bytes(text.encode())
    return path


def removed(home: Path, text: str) -> str:
    path = written(home, text)
    remove_table(path, home, ("mcp", "h"))
    return path.read_bytes().decode()


def test_a_table_comes_after_all_that_was_there(tmp_path: Path):
    path = written(tmp_path, MINE.rstrip())
    add_table(path, tmp_path, ("mcp", "h"), {"command": ["x"]})
    assert path.read_text() == MINE + TABLE
    add_table(path, tmp_path, ("mcp", "i"), {"url": "https://example.com/mcp", "private": True})
    assert path.read_text() == MINE + TABLE + '\n[mcp.i]\nurl = "https://example.com/mcp"\nprivate = true\n'


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "home" / "config.toml"
    add_table(path, tmp_path / "home", ("mcp", "h"), {"command": ["x"]})
    assert path.read_text() == TABLE
    assert path.stat().st_mode & 0o777 == 0o600


def test_values_are_read_back_as_they_were(tmp_path: Path):
    values = {
        "command": ['say "hi"', "C:\\dir", "a\nb", "tab\t", "\x7f\x1b", "Größe 漢字"],
        "env": {"A": "1", "strange name": '"', "": "empty"},
        "keys": [],
    }
    path = tmp_path / "config.toml"
    add_table(path, tmp_path, ("mcp", "h"), values)
    assert tomllib.loads(path.read_text())["mcp"]["h"] == values


def test_what_was_added_is_removed_without_a_trace_but_for_a_blank_line(tmp_path: Path):
    path = written(tmp_path, MINE)
    add_table(path, tmp_path, ("mcp", "h"), {"command": ["x"], "env": {"A": "[mcp.h]"}})
    remove_table(path, tmp_path, ("mcp", "h"))
    assert path.read_text().rstrip() == MINE.rstrip()


@pytest.mark.parametrize(
    "header",
    ["[mcp.h]", "  [ mcp . h ]  # files", '[mcp."h"]', "[mcp.'h']"],
)
def test_a_table_is_found_however_its_header_is_written(tmp_path: Path, header: str):
    text = f'{MINE}{header}\ncommand = ["x"]\n[mcp.h.env]\nA = "1"\n\n[mcp.hh]\ncommand = ["y"]\n'
    assert removed(tmp_path, text) == f'{MINE}[mcp.hh]\ncommand = ["y"]\n'


def test_comments_before_the_next_table_are_that_table_s(tmp_path: Path):
    after = '# what the house needs\n\n# really\n[mcp.other]\ncommand = ["y"]\n'
    text = f'{MINE}[mcp.h]\n# the files\ncommand = [\n  # a word\n  "x",\n]\n\n{after}'
    assert removed(tmp_path, text) == MINE + after


def test_line_ends_stay_as_they_are(tmp_path: Path):
    windows = MINE.replace("\n", "\r\n")
    assert removed(tmp_path, windows + TABLE.replace("\n", "\r\n")) == windows
    path = written(tmp_path, windows)
    add_table(path, tmp_path, ("mcp", "h"), {"command": ["x"]})
    assert path.read_bytes().startswith(windows.encode())


@pytest.mark.parametrize(
    "text",
    [
        'mcp = {h = {command = ["x"]}}\n',
        'mcp.h.command = ["x"]\n',
        '[mcp]\nh = {command = ["x"]}\n',
        '[mcp.h]\ncommand = ["x"]\nenv = {A = """\n[no.header]\n"""}\n[other]\na = 1\n',
    ],
)
def test_a_file_that_cannot_be_changed_line_by_line_is_refused_and_stays(tmp_path: Path, text: str):
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match="written in a way"):
        remove_table(path, tmp_path, ("mcp", "h"))
    assert path.read_text() == text


def test_an_edit_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(tmp_path, MINE)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        add_table(path, tmp_path, ("mcp", "h"), {"command": ["x"]})
    assert path.read_text() == MINE
