"""A server process for the programs here: on a home of its own with a scripted model, or on a given home.

Path: stream.py, lost.py, again.py -> started -> tests/console/conftest.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psutil  # noqa: E402

from tests.console.conftest import Served  # noqa: E402
from tests.console.scripted import write_scripted  # noqa: E402
from tests.console.talking import Talker  # noqa: E402

TEXT = "".join(f"Line {i}: {i * 7919 % 10007} and {i * 104729 % 1000003}.\n\n" for i in range(1200))


def engine_of(served: Served) -> psutil.Process:
    """Return the process that holds the model, of all that a server has started."""
    assert served.process is not None
    children = psutil.Process(served.process.pid).children(recursive=True)
    return next(each for each in children if "freehold.serve.worker.process" in each.cmdline())


@contextmanager
def started(home: Path | None = None, model: str = "") -> Iterator[tuple[Served, Talker, str]]:
    """Serve `model` of `home`, or a model that says TEXT for a question with the word `long`."""
    with tempfile.TemporaryDirectory(prefix="freehold-console-") as folder:
        if home is None:
            home = Path(folder) / "home"
            home.mkdir()
            (home / "config.toml").write_text("adopt = false\n")
            scripts = {"hello": "Hello! What shall I say?", "long": TEXT}
            model = str(write_scripted(Path(folder) / "scripted.gguf", scripts))
        server = Served(home, (model,))
        server.start()
        talker = Talker(server.url)
        names = [each["id"] for each in talker.http.get("/v1/models").json()["data"]]
        try:
            yield server, talker, next(n for n in names if n == model or n in model)
        finally:
            talker.http.close()
            server.stop(9)
