"""Bad input to the command line: one clear line, no traceback, no signal, no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.run.formats import QuantType
from freehold.run.models.tiny.make import gguf_bytes, gguf_keys
from tests.vectors import files
from tests.vectors.files import write_gguf

LIMIT_S = 60  # an end, not a measure: machines that run tests may be busy
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf("llama", tmp_path_factory.mktemp("bad") / "sound.gguf")


def run(tmp_path: Path, *args: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run `freehold run` and return its exit status and stderr; fail on a hang, a traceback or any stdout."""
    env = {
        **os.environ,
        "FREEHOLD_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
        "FREEHOLD_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "freehold.cli.main", "run", *args]
    done = subprocess.run(command, input=stdin, capture_output=True, env=env, timeout=LIMIT_S, check=False)
    err = done.stderr.decode()
    assert done.stdout == b"" and "Traceback" not in err
    assert err.count("error: ") == 1 and len(err.splitlines()) <= 2
    return done.returncode, err


def truncated(path: Path, sound: Path) -> None:
    path.write_bytes(sound.read_bytes()[:-1000])


def cut_in_the_header(path: Path, sound: Path) -> None:
    path.write_bytes(sound.read_bytes()[:20])


def wrong_magic(path: Path, sound: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + sound.read_bytes()[4:])


def empty(path: Path, sound: Path) -> None:
    path.write_bytes(b"")


def directory(path: Path, sound: Path) -> None:
    path.mkdir()


def missing(path: Path, sound: Path) -> None:
    pass


def unknown_architecture(path: Path, sound: Path) -> None:
    keys = {"general.architecture": "perceptron", "perceptron.context_length": 64}
    path.write_bytes(gguf_bytes(keys | gguf_keys(), {}))


def absurd_dimensions(path: Path, sound: Path) -> None:
    write_gguf("llama", path, keys={"llama.embedding_length": 1 << 30, "llama.block_count": 1 << 30})


def missing_tensor(path: Path, sound: Path) -> None:
    tensors = list(files.gguf_tensors("llama").items())[:-2]
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors}
    path.write_bytes(gguf_bytes(files.FAMILIES["llama"].gguf | gguf_keys(), stored))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "make",
    [
        truncated,
        cut_in_the_header,
        wrong_magic,
        empty,
        directory,
        missing,
        unknown_architecture,
        absurd_dimensions,
        missing_tensor,
    ],
    ids=lambda make: make.__name__,
)
def test_bad_file_is_one_clear_line(tmp_path: Path, sound: Path, make: Callable[[Path, Path], None]):
    path = tmp_path / "model.gguf"
    make(path, sound)
    status, err = run(tmp_path, str(path), "Hi")
    assert status == 1, err


@pytest.mark.heavy
def test_template_that_loops_is_stopped(tmp_path: Path):
    path = write_gguf("llama", tmp_path / "loop.gguf", keys={"tokenizer.chat_template": LOOP})
    status, err = run(tmp_path, str(path), "Hi", "--context", "128")
    assert status == 1 and "template" in err


@pytest.mark.heavy
def test_over_long_prompt_names_the_numbers(tmp_path: Path, sound: Path):
    status, err = run(tmp_path, str(sound), "x" * 5000, "--context", "128")
    assert status == 1 and "with a context of 128" in err


def test_context_beyond_the_model_or_memory_is_refused(tmp_path: Path, sound: Path):
    status, err = run(tmp_path, str(sound), "Hi", "--context", "999999999")
    assert status == 1 and "999,999,999" in err


@pytest.mark.heavy
@pytest.mark.parametrize(
    "stdin, args, part",
    [
        (b"", [], "the prompt is empty"),
        (b" \n\t", [], "the prompt is empty"),
        (b"", [""], "the prompt is empty"),
        (b"\x7fELF\x02\x01\x01\0", ["Hi"], "stdin is binary"),
        (b"caf\xe9", ["Hi"], "not UTF-8"),
    ],
)
def test_prompt_that_is_none_is_bad_input(tmp_path: Path, sound: Path, stdin, args, part):
    status, err = run(tmp_path, str(sound), *args, stdin=stdin)
    assert status == 1 and part in err


@pytest.mark.heavy
def test_unknown_model_names_the_nearest(tmp_path: Path):
    status, err = run(tmp_path, "smollm2:135n", "Hi")
    assert status == 1 and "did you mean" in err and "smollm2:135m" in err


def test_model_that_is_not_here_is_an_error_offline(tmp_path: Path):
    status, err = run(tmp_path, "smollm2:135m", "Hi")
    assert status == 1 and "offline" in err
