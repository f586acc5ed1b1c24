"""`python -m freehold.reports PARENT`: answers the HTTP process, which has no engine that knows families of models.

A line of JSON a question, [verb, words], and a line an answer: ["", text] or [error's class, message, hint]. It reads
config.toml anew for each, and takes processor time only where answers leave some.
Path: server/console/questions -> main -> answer.answer
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from freehold.errors import FreeholdError
from freehold.sandbox.children import follow_parent

NICE = 10  # of 19


def main() -> None:
    """Answer until the input ends."""
    follow_parent(int(sys.argv[1]))  # before what takes long to import
    os.nice(NICE)
    for line in sys.stdin:
        verb, words = json.loads(line)
        sys.stdout.write(json.dumps(_answered(verb, words)) + "\n")
        sys.stdout.flush()
        if verb == "models":
            _measure()  # once more while little is known, with no one waiting for it


def _answered(verb: str, words: dict[str, list[str]]) -> list[str]:
    from freehold.config import load_settings
    from freehold.reports.answer import answer

    try:
        return ["", answer(load_settings(), verb, words)]
    except FreeholdError as e:
        return [type(e).__name__, e.message, e.hint]


def _measure() -> None:
    from freehold.choosing import here
    from freehold.config import load_settings

    with suppress(FreeholdError):
        here(load_settings())


if __name__ == "__main__":
    main()
