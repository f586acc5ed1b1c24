"""Records the speed of answers for `freehold fit`: each plain one appends a line with measured and predicted speed.

Knows usages and speeds; imports what it needs when there is something to keep, as an import would delay an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.base.types import Usage

if TYPE_CHECKING:
    from freehold.choose.advisor.machine import Rates

Speed = tuple[str, int, float]  # decode or prefill, tokens before it or of the prompt, tokens a second
# What is too short to time: a first step's own cost would count as the model's.
LEAST_ANSWER, LEAST_PROMPT = 24, 64
# guesses an answer may have had for each of its tokens, beyond which its steps are not one token's
_GUESSED = 0.25


def learn(home: Path, path: Path, usages: Iterable[Usage], load: float = 0.0, quant: str = "") -> None:
    """Keep what answers of the model at `path` took, each alone and plainly computed by our engine, and whole.

    `load`: what others took of the processors meanwhile, as machine.Crowd.share has it. `quant`: what it was loaded
    in, which may be a rounding of the file's weights.
    """
    keep(home, path, [speed for usage in usages for speed in speeds(usage)], load=load, quant=quant)


def keep(
    home: Path,
    path: Path,
    speeds: list[Speed],
    rates: Rates | None = None,
    load: float = 0.0,
    quant: str = "",
) -> None:
    """Keep speeds of the model at `path`; a failure to write is ignored.

    `rates`: of the same minutes, where they were measured; without, those kept, and nothing where none are.
    """
    if not speeds:
        return
    from freehold.base.errors import FreeholdError
    from freehold.choose.advisor import calibration, machine
    from freehold.choose.advisor.file_anatomy import ROUNDINGS, from_file
    from freehold.choose.advisor.fit import OURS, Place, observed

    here = machine.here(home, measure=False)
    if rates is None and not here.rates.measured:
        return
    place = Place("this machine", OURS, here, calibration.read(home, machine.name_here(), here.rates))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        anatomy = from_file(path, quant if quant in ROUNDINGS else "")
        calibration.record(home, [observed(anatomy, place, *speed, now, rates, load) for speed in speeds])
    except (OSError, FreeholdError):  # the file went away meanwhile, or the disk is full: the answer is whole
        return


def speeds(usage: Usage) -> Iterable[Speed]:
    """Yield what an answer tells of its model, by itself; one that was resumed took its seconds in two engines."""
    if usage.resumed_tokens:
        return
    if usage.completion_tokens >= LEAST_ANSWER and usage.drafted_tokens <= _GUESSED * usage.completion_tokens:
        depth = usage.prompt_tokens + usage.completion_tokens // 2
        yield "decode", depth, usage.decode_tok_s / usage.tokens_per_step
    if not usage.cached_tokens and usage.prompt_tokens >= LEAST_PROMPT:
        yield "prefill", usage.prompt_tokens, usage.prefill_tok_s
