"""Pictures in a model whose chat template has no place for them: marks on lines of their own, and no user's marks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import LLM, Image, Message, ToolCall
from freehold.base.errors import UsageError
from freehold.run.formats import QuantType, open_gguf
from freehold.run.models.tiny import make
from freehold.run.tokenizer import tokenizer_from_gguf
from tests.models.golden_towers import png
from tests.tokenizer import families

TINY = make.config("smolvlm")
IMAGE = 252  # the id of <image>
PRIVATE = "\ue0f4\ue0f5\ue0f4"  # what stands in for a picture is of such characters, drawn anew for each chat
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
    chat = [Message("user", f"a {PRIVATE} <image>")]
    assert IMAGE not in llm.render(chat)
    assert llm.detokenize(llm.render(chat)).count(PRIVATE) == 1


def test_a_user_writes_no_mark(llm: LLM):
    """The mark's own text is words, and no caller knows what stands in for it."""
    assert llm.render([Message("user", parts=(picture(9), "<image>"))]).count(IMAGE) == ROWS
    assert llm.render([Message("user", parts=(picture(9), PRIVATE))]).count(IMAGE) == ROWS


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


def test_no_text_of_a_chat_becomes_a_row_or_moves_a_picture(tmp_path: Path):
    """Marks in texts of users, tools and systems, in names and in JSON keys stay words, in their places."""
    path = write(tmp_path, template=make.chat_template(TINY.picture_marks), mark="")
    marks = "<image><fake_token_around_image><global-img><|image_pad|>[IMG]"
    texts = [
        Message("system", f"s {marks}"),
        Message("user", parts=(f"{marks} a", picture(9), f"b {marks}")),
        Message("assistant", f"c {marks}"),
        Message("user", f"d {marks}"),
    ]
    plain = [
        Message("system", "s"), Message("user", parts=("a", picture(9), "b")), Message("assistant", "c"),
        Message("user", "d"),
    ]  # fmt: skip
    with freehold.load(path, context=CONTEXT, threads=1) as seeing:
        ids, bare = seeing.render(texts), seeing.render(plain)
        around = seeing.tokenize("<fake_token_around_image>", special=True)[0]
        assert ids.count(IMAGE) == bare.count(IMAGE) == ROWS and ids.count(around) == bare.count(around)
        assert seeing.detokenize(ids[: ids.index(IMAGE)]).count("<image>") == 2


def test_a_mark_that_a_file_calls_a_word_is_no_user_s_either(tmp_path: Path):
    """A vocabulary whose mark is of another kind than control: it is guarded all the same."""

    path = write(tmp_path, template=make.chat_template(TINY.picture_marks), mark="")
    with open_gguf(path) as file:
        kinds = np.array(file.metadata["tokenizer.ggml.token_type"]).tolist()
        kinds[IMAGE] = 4
        tokenizer = tokenizer_from_gguf({**file.metadata, "tokenizer.ggml.token_type": kinds})
    assert IMAGE in tokenizer.encode("a <image> b")
    guarded = tokenizer.guarding(["<image>"])
    assert IMAGE not in guarded.encode("a <image> b") and "<image>" in guarded.control_tokens
    assert IMAGE in guarded.encode("a <image> b", special=True) and guarded.guarding(["<image>"]) is guarded


@pytest.mark.parametrize("name", ["llama3.1", "gemma3"])
def test_pictures_of_tools_stay_with_their_results_where_a_template_moves_these(name: str, tmp_path: Path):
    """One call a message, or results written as a user's turn: results in another order than their calls."""
    source = families.template(name).source
    path = write(tmp_path, template=source, mark="<image>")
    calls = (ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}"))
    wide = Image.of(png(np.full((36, 360, 3), 9, np.uint8)))
    results = [
        Message("tool", parts=("second ", picture(99)), tool_call_id="b", name="f"),
        Message("tool", parts=("first ", wide), tool_call_id="a", name="f"),
    ]
    with freehold.load(path, context=CONTEXT, threads=1) as llm:
        chats = [[Message("user", "x"), Message("assistant", "", tool_calls=calls), *order]
                 for order in (results, results[::-1])]  # fmt: skip
        ids = [llm.render(chat) for chat in chats]
        rows = {
            word: ROWS if word == "second" else ids[0].count(IMAGE) - ROWS for word in ("first", "second")
        }
        for each in ids:
            texts = [text for text in llm.detokenize([i for i in each if i != IMAGE]).split() if text in rows]
            runs = [len(list(group)) for mark, group in groupby(each, IMAGE.__eq__) if mark]
            assert runs == [rows[text] for text in texts] and len(runs) == 2
