"""Sixty pictures that hurt, sent to a real server while its health is asked; no test.

Each is right or refused by name. Right: the server answers it as it answers a plain PNG of the pixels that the file
stands for, with the same log probabilities, so that equal pixels became equal features. What a client sees is judged
alone: status, message, and how long /health takes meanwhile.
Path: test_hurting.py, benches/eyes/hurting.py -> sixty, Hurting.send_all -> POST /v1/chat/completions
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from benches.server.servers import HOST
from tests.pictures import makers as m
from tests.pictures.test_opening import REFUSED, RIGHT, WHOLE

EVERY_S = 0.05  # between two questions for /health
AT_ONCE = 4  # pictures on their way
MODEL = "eyes"
# Of test_opening.py, which looks at pixels; names of what stands for a kind each, as the issue lists them.
SEEN = (
    "one bit", "grey of 16 bits", "grey of 16 bits with a clear value", "rgb of 16 bits", "rgba of 16 bits", "rgba",
    "rgb with a clear colour", "grey and alpha", "palette", "palette with alpha", "1 x 1", "3000 x 40", "40 x 3000",
    "interlaced", "exif before a png's pixels", "exif behind a png's pixels", "animated png", "gif with a clear colour",
    "interlaced gif", "animated gif", "webp with alpha", "turned webp", "animated webp", "grey jpeg", "cmyk jpeg",
    "progressive jpeg", "jpeg turned by 3", "jpeg turned by 6", "jpeg turned by 8", "exif that turns by 9",
    "exif that is none", "two pictures in a jpeg", "a jpeg that is a zip", "a jpeg with a script behind it",
)  # fmt: skip
NOT_SEEN = (
    "svg", "svg behind a comment", "html", "eps", "pdf", "zip", "heic", "a sound in RIFF",
    "a png's first bytes", "tiff behind a png's first bytes", "a png with a wrong checksum",
    "a text of a png that unpacks to gigabytes",
    "a png 65,535 wide", "a png of 900 megapixels", "a jpeg of four gigapixels", "a gif of four gigapixels",
    "a webp of 268 megapixels", "a png of all that 32 bits hold", "a jpeg 65,535 wide",
)  # fmt: skip
RATIO = "one side may be 200 times the other at most"


@dataclass(frozen=True)
class Hurtful:
    """A file, and either the plain picture that it stands for or a pattern of the message that refuses it."""

    name: str
    data: bytes
    plain: bytes = b""
    why: str = ""


def sixty() -> list[Hurtful]:
    """Return the pictures: 35 that are right, 25 that are refused."""
    files: list[Hurtful] = []
    for name in SEEN:
        right = RIGHT[name]()
        files.append(Hurtful(name, right.data, plain=m.saved(right.pixels, "PNG")))
    files += [Hurtful(name, REFUSED[name][0], why=REFUSED[name][1]) for name in NOT_SEEN]
    files.append(Hurtful("nothing", b"", why="has no bytes"))
    black = m.png_of_zeros(8192, 8192), m.png_of_zeros(1024, 1024)  # the tower shrinks both to one size
    files.append(Hurtful("64 megapixels in 200 kB", black[0], plain=black[1]))
    files.append(Hurtful("32,768 wide", RIGHT["32,768 wide"]().data, why=RATIO))
    files.append(Hurtful("a jpeg of many scans", m.many_scans(8000, 4000), why="more than 10 s of processor"))
    for name in ("PNG", "JPEG", "WebP"):
        whole = WHOLE[name]
        files.append(Hurtful(f"half a {name}", whole[: len(whole) // 2], why=f"{name} file is truncated"))
    return files


@dataclass
class Hurting:
    """A client of one server with a model that sees."""

    port: int
    model: str = MODEL
    wrong: list[str] = field(
        default_factory=list
    )  # a line for each picture that was neither right nor refused
    seconds: dict[str, float] = field(default_factory=dict)  # of each picture, the longest

    def send_all(self, files: list[Hurtful]) -> None:
        """Send the pictures, AT_ONCE at a time, and note what was wrong."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._judge, files))

    def _judge(self, file: Hurtful) -> None:
        began = time.perf_counter()
        answer = self._answer(file.data)
        took = time.perf_counter() - began
        self.seconds[file.name] = max(took, self.seconds.get(file.name, 0.0))
        if file.why:
            text = answer.json()["error"]["message"] if answer.status_code == 400 else ""
            right = bool(re.search(file.why, text))
        else:
            plain = self._answer(file.plain)
            right = answer.status_code == plain.status_code == 200 and _logprobs(answer) == _logprobs(plain)
        if not right:
            self.wrong.append(f"{file.name}: {answer.status_code} {answer.text[:300]}")

    def _answer(self, data: bytes) -> httpx2.Response:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what"}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        body |= {"temperature": 0, "logprobs": True, "top_logprobs": 4}
        return httpx2.post(f"http://{HOST}:{self.port}/v1/chat/completions", json=body, timeout=180)


def _logprobs(answer: httpx2.Response) -> object:
    """Return the tokens of an answer and the log probabilities beside them."""
    return answer.json()["choices"][0]["logprobs"]


@contextmanager
def health(port: int) -> Iterator[list[float]]:
    """Ask /health every 50 ms meanwhile; yields the list that the seconds of each answer go to, inf for none."""
    seconds: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=f"http://{HOST}:{port}", timeout=30) as client:
            while not ended.wait(EVERY_S):
                began = time.perf_counter()
                try:
                    well = client.get("/health").status_code == 200
                except httpx2.HTTPError:
                    well = False
                seconds.append(time.perf_counter() - began if well else float("inf"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seconds
    finally:
        ended.set()
        asking.join()


def processes_of(pid: int) -> Counter[str]:
    """Count the processes below one by the module that each runs; a fork has its parent's."""
    below: Counter[str] = Counter()
    for child in psutil.Process(pid).children(recursive=True):
        try:
            command = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        after = command.index("-m") + 1 if "-m" in command else 0
        below[command[after] if command else "a zombie"] += 1
    return below


def files_below(folder: Path) -> list[str]:
    """List what lies in a folder of temporary files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
