"""Sixty pictures that hurt; no test.

Right: the server answers a picture as it answers a plain PNG of the pixels that the file stands for, with the same log
probabilities, so that equal pixels became equal features.
Path: test_hurting.py, benches/eyes/hurting.py -> sixty, HurtingPictures.send_all -> POST /v1/chat/completions
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import httpx2

from tests.hurting import HurtfulFile, Hurting
from tests.pictures import makers as m
from tests.pictures.test_opening import REFUSED, RIGHT, WHOLE

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
class HurtfulPicture(HurtfulFile):
    """A file, and the plain picture that it stands for where it is not refused."""

    plain: bytes = b""


def sixty() -> list[HurtfulPicture]:
    """Return the pictures: 35 that are right, 25 that are refused."""
    files: list[HurtfulPicture] = []
    for name in SEEN:
        right = RIGHT[name]()
        files.append(HurtfulPicture(name, right.data, plain=m.saved(right.pixels, "PNG")))
    files += [HurtfulPicture(name, REFUSED[name][0], why=REFUSED[name][1]) for name in NOT_SEEN]
    files.append(HurtfulPicture("nothing", b"", why="has no bytes"))
    black = m.png_of_zeros(8192, 8192), m.png_of_zeros(1024, 1024)  # the tower shrinks both to one size
    files.append(HurtfulPicture("64 megapixels in 200 kB", black[0], plain=black[1]))
    files.append(HurtfulPicture("32,768 wide", RIGHT["32,768 wide"]().data, why=RATIO))
    files.append(
        HurtfulPicture("a jpeg of many scans", m.many_scans(8000, 4000), why="more than 10 s of processor")
    )
    for name in ("PNG", "JPEG", "WebP"):
        whole = WHOLE[name]
        files.append(
            HurtfulPicture(f"half a {name}", whole[: len(whole) // 2], why=f"{name} file is truncated")
        )
    return files


class HurtingPictures(Hurting[HurtfulPicture]):
    """A client of one server with a model that sees."""

    def answer(self, file: HurtfulPicture) -> httpx2.Response:
        """Send a picture."""
        return self._answer(file.data)

    def is_right(self, file: HurtfulPicture, answer: httpx2.Response) -> bool:
        """Tell whether the answer is the plain picture's."""
        plain = self._answer(file.plain)
        return plain.status_code == 200 and _logprobs(answer) == _logprobs(plain)

    def _answer(self, data: bytes) -> httpx2.Response:
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what"}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        body |= {"temperature": 0, "logprobs": True, "top_logprobs": 4}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=180)


def _logprobs(answer: httpx2.Response) -> object:
    """Return the tokens of an answer and the log probabilities beside them."""
    return answer.json()["choices"][0]["logprobs"]
