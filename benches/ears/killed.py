"""Ten minutes of speech, killed at ten places and resumed each time: is the text the one of an undisturbed run?

`python benches/ears/killed.py MODEL CLIPS [--kills 10] [--seconds 600] [--threads 2]`. MODEL is a Whisper that
`freehold transcribe` takes; CLIPS a folder with transcribe.py's CLIPS_SAID. One run is left alone. Another one's
process is killed (SIGKILL), in turn as soon as the journal has a further chunk, and twice after some seconds; all have
the same command, and each takes over the journal. A line a process goes to stdout: chunks in the journal when it began
and ended, and its seconds; then one JSON line. The exit status is 1 where the texts differ by a byte, or no process was
killed.
Path: killed.py -> freehold transcribe, in a data home of its own
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benches.ears.transcribe import CLIPS_SAID, clip, ten_minutes, write
from benches.lib.machine import describe

POLL_S = 0.01


@dataclass(frozen=True)
class Hearing:
    """The command, and the data home with its journal."""

    command: list[str]
    home: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start a process that hears the recording, or what is left of it."""
        env = {**os.environ, "FREEHOLD_HOME": str(self.home)}
        return subprocess.Popen(self.command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    @property
    def chunks(self) -> int:
        """How many chunks its journal has."""
        folder = self.home / "transcribe"
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("*")) if folder.is_dir() else 0


def whole_text(hearing: Hearing) -> tuple[bytes, int, float]:
    """Return what an undisturbed process writes, the most chunks that its journal had, and its seconds."""
    began, most = time.perf_counter(), 0
    process = hearing.start()
    while process.poll() is None:
        most = max(most, hearing.chunks)
        time.sleep(POLL_S)
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"freehold transcribe ended with {process.returncode}: {' '.join(hearing.command)}")
    return text, most, time.perf_counter() - began


def killed_text(hearing: Hearing, places: list[float]) -> tuple[bytes, int]:
    """Kill a process after each of `places` seconds, or, where that is 0, at a further chunk of the journal.

    Returns what the last one writes, and how many were killed.
    """
    for kills, place in enumerate([*places, math.inf]):
        began, before = time.perf_counter(), hearing.chunks
        process = hearing.start()
        while process.poll() is None:
            if time.perf_counter() - began >= place if place else hearing.chunks > before:
                break
            time.sleep(POLL_S)
        if place < math.inf:
            process.kill()
        text, _ = process.communicate()
        seconds = time.perf_counter() - began
        end = "ended" if process.returncode == 0 else f"status {process.returncode}"
        print(f"{before:>3} -> {hearing.chunks:>3} chunks  {seconds:6.1f} s  {end}", flush=True)
        if process.returncode == 0:
            return text, kills
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"a process ended with {process.returncode}: {' '.join(hearing.command)}")
    raise SystemExit("the last process was killed, but not by this bench")


def main() -> None:
    """Hear the recording whole and killed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("clips", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the recording; 600 at most")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        recording = ten_minutes({name: clip(args.clips, said[0]) for name, said in CLIPS_SAID.items()})
        samples = np.concatenate(recording.samples)[: int(args.seconds * 16_000)]
        recording.samples = [samples]
        write(path, recording)
        command = [sys.executable, "-m", "freehold.cli.main", "transcribe", str(path), "--model", args.model]
        command += ["--language", "en", "--srt", "--threads", str(args.threads)]
        text, chunks, seconds = whole_text(Hearing(command, Path(folder) / "whole"))
        print(f"whole: at least {chunks} chunks in {seconds:.1f} s, {len(text):,} bytes", flush=True)
        places = [seconds * i / (4 * args.kills) if i % 3 else 0.0 for i in range(args.kills)]
        resumed, kills = killed_text(Hearing(command, Path(folder) / "killed"), places)
    same = resumed == text
    row = {"chunks": chunks, "kills": kills, "seconds": round(seconds, 1), "same": same}
    print(json.dumps({"bench": "ears/killed", **describe(Path(args.model)), **row}))
    sys.exit(0 if same and kills else 1)


if __name__ == "__main__":
    main()
