"""Pictures in a model whose chat template has no place for them: marks on lines of their own, and no user's marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import LLM, Image, Message
from freehold.base.errors import UsageError
from freehold.run.formats import QuantType
from freehold.run.local.eyes import STAND_IN
from freehold.run.models.tiny import make
from tests.models.golden_towers import png

TINY = make.config("smolvlm")
IMAGE = 252  # the id of <image>
CONTEXT = 512


def write(folder: Path, *, template: str, mark: str) -> Path:
    tensors = make.mmproj_tensors(TINY)
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    keys = TINY.mmproj | ({"freehold.mark": mark} if mark else {})
    (folder / "mmproj-tiny.gguf").write_bytes(make.gguf_bytes(keys, stored))
    return make.write_gguf(TINY, folder / "tiny.gguf", keys={"tokenizer.chat_template": template})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose template writes texts alone, and whose tower's file names the mark."""
    path = write(tmp_path_factory.mktemp("marks"), template=make.CHAT_TEMPLATE, mark="<image>")
    with freehold.load(path, context=CONTEXT, threads=1) as loaded:
        yield loaded


def picture(shade: int) -> Image:
    return Image.of(png(np.full((36, 36, 3), shade, np.uint8)))


ROWS = 5 * 4  # two by two tiles and the whole, four rows each


def test_each_picture_stands_on_a_line_of_its_own(llm: LLM):
    chat = [Message("user", parts=("one ", picture(9), "two", picture(99)))]
    assert llm.can_see and any("no place for pictures" in note for note in llm.notes)
    rows = [IMAGE] * ROWS
    words = [
        llm.tokenize(text, special=True) for text in ("<|im_start|>user\none ", "\ntwo", "\n<|im_end|>\n")
    ]
    last = llm.tokenize("<|im_start|>assistant\n", special=True)
    assert llm.render(chat) == [*words[0], *rows, *words[1], *rows, *words[2], *last]
    assert llm.chat(chat, max_tokens=2, temperature=0).usage.prompt_tokens == len(llm.render(chat))


def test_text_is_rendered_as_without_eyes(llm: LLM):
    chat = [Message("user", f"a {STAND_IN} <image>")]
    assert IMAGE not in llm.render(chat)
    assert llm.detokenize(llm.render(chat)).count(STAND_IN) == 1


def test_a_user_writes_no_mark(llm: LLM):
    """The mark's own text is words; what stands in for it is refused beside a picture."""
    assert llm.render([Message("user", parts=(picture(9), "<image>"))]).count(IMAGE) == ROWS
    with pytest.raises(UsageError, match="1 pictures and its template writes 2"):
        llm.render([Message("user", parts=(picture(9), STAND_IN))])


def test_a_template_with_a_place_is_left_alone(tmp_path: Path):
    path = write(tmp_path, template=make.chat_template(TINY.picture_marks), mark="")
    with freehold.load(path, context=CONTEXT, threads=1) as seeing:
        assert not any("no place" in note for note in seeing.notes)
        ids = seeing.render([Message("user", parts=(picture(9), "x"))])
        around = seeing.tokenize("<fake_token_around_image>", special=True)
        assert ids.count(IMAGE) == ROWS and ids.count(around[0]) == 6


def test_a_mark_that_the_vocabulary_lacks_leaves_a_model_of_text(tmp_path: Path):
    path = write(tmp_path, template=make.CHAT_TEMPLATE, mark="<picture>")
    with freehold.load(path, context=CONTEXT, threads=1) as text:
        assert not text.can_see and any("<picture>" in note for note in text.notes)
        with pytest.raises(UsageError, match="reads text only"):
            text.chat([Message("user", parts=(picture(9), "x"))])
