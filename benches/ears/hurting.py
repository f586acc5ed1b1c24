"""How long /health takes while a server opens forty recordings that hurt: quiet, and beside them.

    python benches/ears/hurting.py [--model FOLDER] [--rounds 2] [--quiet 5]

Without a model the server has a tiny one, so the time is that of HTTP, decoding and refusals. FOLDER is a Whisper: then
each recording must also have the clip's words. One client requests /health every 50 ms while four recordings are sent
at a time, in an order drawn anew for each round. Goal: a p99 of 100 ms at most. Also printed: what was neither right
nor refused by name (tests/sounds/hurting.py), and the slowest recordings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.hurting import add_options, run
from tests.sounds import hurting
from tests.vectors.whisper import write_listener


def main() -> int:
    """Read the command line and send the recordings to a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a Whisper (default: a tiny random one)")
    add_options(parser)
    args = parser.parse_args()
    files = hurting.forty()
    if args.model:
        return run("ears/hurting", args.model, hurting.SpokenRecordings, files, args)
    with tempfile.TemporaryDirectory() as folder:
        model = write_listener(Path(folder) / "ears", texts=16)
        return run("ears/hurting", model, hurting.HurtingRecordings, files, args)


if __name__ == "__main__":
    raise SystemExit(main())
