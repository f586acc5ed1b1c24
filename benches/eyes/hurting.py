"""How long /health takes while a server opens sixty pictures that hurt: quiet, and beside them.

    python benches/eyes/hurting.py [--rounds 2] [--quiet 5]

The server has a tiny model that sees, so the time is that of HTTP, decoding and refusals. One client requests /health
every 50 ms while four pictures are sent at a time, in an order drawn anew for each round. Goal: a p99 of 100 ms at
most. Also printed: what was neither right nor refused by name (tests/eyes/hurting.py), and the slowest pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.hurting import add_options, run
from freehold.run.models.tiny import make
from tests.eyes import hurting


def main() -> int:
    """Read the command line, make a model and send it the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make.write_safetensors(make.config("qwen3_vl"), Path(folder) / hurting.MODEL)
        return run("eyes/hurting", model, hurting.HurtingPictures, hurting.sixty(), args)


if __name__ == "__main__":
    raise SystemExit(main())
