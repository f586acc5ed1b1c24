"""Prompts and answers as ids: the server's own, with the end of the turn."""

from __future__ import annotations

import pytest

from freehold.adapt.sampling import AnswerRows
from freehold.base.errors import ContextOverflow, UnsupportedModel
from freehold.base.types import Message
from freehold.run.formats.gguf import open_gguf
from freehold.run.models.tiny import make
from freehold.run.tokenizer import ChatTemplate, tokenizer_from_gguf
from freehold.run.tokenizer.template import chat_template_from_gguf

ASKED = (Message("system", "be brief"), Message("user", "why?"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> AnswerRows:
    path = make.write_gguf(make.config("qwen2"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    metadata = open_gguf(path).metadata
    tokenizer = tokenizer_from_gguf(metadata)
    return AnswerRows(tokenizer, chat_template_from_gguf(metadata, tokenizer), "tiny", 500)


def test_a_row_is_the_served_prompt_the_answer_and_the_end_of_its_turn(rows: AnswerRows):
    row = rows.row(ASKED, "because")
    tokenizer = rows._tokenizer
    assert list(row.ids[: row.prompt]) == rows.prompt(ASKED)
    assert row.answer[-1] in tokenizer.eos_ids
    assert tokenizer.decode(row.answer) == "because"
    assert sum(row.wanted) == len(row.answer)


def test_control_tokens_in_an_answer_stay_text(rows: AnswerRows):
    tokenizer = rows._tokenizer
    control = tokenizer.token_text(next(iter(tokenizer.eos_ids)))
    row = rows.row(ASKED, f"say {control} twice")
    assert [id for id in row.answer if id in tokenizer.eos_ids] == [row.answer[-1]]
    assert tokenizer.decode(row.answer) == f"say {control} twice"


def test_a_template_that_opens_thinking_keeps_the_served_prompt(rows: AnswerRows):
    """The opened block is not in an old answer's rendering, so the prompt is not its beginning."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = rows._tokenizer
    made = AnswerRows(tokenizer, ChatTemplate.for_tokenizer(source, tokenizer), "tiny", 500)
    row = made.row(ASKED, "because")
    assert list(row.ids[: row.prompt]) == made.prompt(ASKED)
    assert tokenizer.decode(row.answer) == "because"
    assert row.answer[-1] in tokenizer.eos_ids


def test_a_row_that_is_too_long_is_refused(rows: AnswerRows):
    with pytest.raises(ContextOverflow, match="a row may have 500"):
        rows.row(ASKED, "x" * 600)


def test_a_model_without_template_is_refused(rows: AnswerRows):
    with pytest.raises(UnsupportedModel, match="no chat template"):
        AnswerRows(rows._tokenizer, None, "base", 500)
