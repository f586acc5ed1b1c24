"""Runs one stand-in: `python -m tests.outgrow.standin --dialect vllm [--standin-start-s 0.5] ENGINE FLAGS`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # where it is run as a folder

from tests.outgrow.standin import DIALECTS
from tests.outgrow.standin.server import Settings, serve


def main() -> None:
    """Read the command line and serve until the end."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--dialect", choices=DIALECTS, required=True)
    own = parser.add_argument
    own("--standin-start-s", type=float, default=0.0, help="the start takes so long")
    own("--standin-token-s", type=float, default=0.0, help="a token takes so long")
    own("--standin-slots", type=int, default=8, help="answers at a time; others wait")
    own("--standin-context", type=int, default=8192)
    own("--standin-control", default="", help="a file whose word is a death: see server.py")
    own("--standin-die-at-start", default="", help="a line for the log; the start ends there with status 1")
    own("--standin-corpse-s", type=float, default=0.2, help="between an engine's death and its server's end")
    own("--standin-children", type=int, default=0, help="processes that outlive a kill -9, as workers do")
    own("--standin-shm", type=int, default=0, help="files psm_* that it leaves in /dev/shm")
    own("--standin-first-ends", type=int, default=0, help="1: the first request ends it, health was 200")
    own("--host", default="127.0.0.1")
    own("--port", type=int, default=0)
    own("--uds", default="")
    own("--model", "--model-path", "-m", default="standin")
    own("--served-model-name", "--served_model_name", "--alias", "-a", default="")
    own("--api-key", default="")
    own("--config", default="", help="SGLang's: a file of its flags")
    own("--shutdown-timeout", type=float, default=0.0)
    said, more = parser.parse_known_args()
    if said.config and said.dialect == "sglang":
        said.api_key = json.loads(Path(said.config).read_text())["api-key"]
    socket = said.uds or (said.host if said.host.endswith(".sock") else "")
    host, port = said.host, said.port
    if said.dialect == "ollama" and not port:
        host, _, number = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
        port = int(number)
    positional = [word for word in more if not word.startswith("-")]
    model = said.model
    if said.dialect == "trtllm" and positional:  # trtllm-serve MODEL
        model = positional[0]
    own_words = {
        name.removeprefix("standin_"): value
        for name, value in vars(said).items()
        if name.startswith("standin_")
    }
    settings = Settings(
        dialect=said.dialect,
        host=host,
        port=port,
        socket=socket,
        model=said.served_model_name or model,
        source=model,
        key=said.api_key,
        drain_s=said.shutdown_timeout,
        flags=frozenset(word.partition("=")[0] for word in more),
        **own_words,
    )
    raise SystemExit(asyncio.run(serve(settings)))


main()
