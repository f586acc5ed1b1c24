"""`freehold embed`: arguments or lines in, a line of numbers or an object each out."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from freehold.cli.main import cli
from tests.vectors.encoders import write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder("bert", tmp_path_factory.mktemp("embed") / "tiny"))


def run(folder: str, *words: str, stdin: str = ""):
    return CliRunner().invoke(cli, ["embed", folder, "--threads", "1", *words], input=stdin)


def test_arguments_become_lines_of_numbers(folder: str):
    done = run(folder, "the cat", "a cat")
    assert done.exit_code == 0, done.output
    rows = [[float(n) for n in line.split()] for line in done.stdout.splitlines()]
    assert [len(row) for row in rows] == [128, 128]
    assert sum(n * n for n in rows[0]) == pytest.approx(1, abs=1e-6)


def test_lines_of_stdin_become_objects(folder: str):
    done = run(folder, "--json", "--dimensions", "8", stdin="the cat\n\nthe " + "the " * 70 + "\n")
    assert done.exit_code != 0  # the third is too long
    done = run(folder, "--json", "--dimensions", "8", "--truncate", stdin="the cat\n\n" + "the " * 70 + "\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["index"], r["tokens"], r["cut"]) for r in rows] == [
        (0, 4, False),
        (1, 2, False),
        (2, 64, True),
    ]
    assert all(len(r["embedding"]) == 8 for r in rows)
    assert "warning: text 2 was cut to 64 tokens" in done.stderr
