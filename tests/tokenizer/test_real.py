"""Real vocabularies: ids equal a reference's on 300 nasty strings each (vectors/make_tokens.py)."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import Message
from freehold.run.formats import open_gguf
from freehold.run.tokenizer import chat_template_from_gguf, tokenizer_from_gguf

VECTORS = Path(__file__).parent.parent / "vectors" / "tokens"
CODER = pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.big)
MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", CODER, "gemma3-270m"]

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=MODELS)
def model(request, model_path):
    """Return (name, metadata, tokenizer) of one real file."""
    with open_gguf(model_path(request.param)) as file:
        metadata = dict(file.metadata)
    return request.param, metadata, tokenizer_from_gguf(metadata)


def test_ids_equal_the_reference_on_nasty_strings(model):
    name, _, tokenizer = model
    entries = json.loads((VECTORS / "strings.json").read_text())
    expected = json.loads((VECTORS / f"{name}.json").read_text())["ids"]
    assert len(entries) == len(expected) == 300
    for entry, ids in zip(entries, expected, strict=True):
        text = entry["text"] if "text" in entry else entry["repeat"][0] * entry["repeat"][1]
        if entry.get("refused"):
            with pytest.raises(UsageError):
                tokenizer.encode(text)
            continue
        start = time.process_time()
        found = tokenizer.encode(text, bos=False)
        assert time.process_time() - start < 5
        if isinstance(ids, list):
            assert found == ids, repr(text)
        else:
            digest = hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()
            assert (len(found), digest) == (ids["count"], ids["sha256"]), repr(text[:40])


def test_space_marks_in_a_users_text_are_read_as_sentencepiece_reads_them(model_path):
    with open_gguf(model_path("gemma3-270m")) as file:
        tokenizer = tokenizer_from_gguf(dict(file.metadata))
    template = chat_template_from_gguf({}, tokenizer)
    for text, ids in json.loads((VECTORS / "gemma3-270m-marks.json").read_text()).items():
        assert tokenizer.encode(text, bos=False) == ids, repr(text)
        prompt = tokenizer.encode_rendered(template.render([Message("user", f"x{text}x")]))
        inner = tokenizer.encode(f"user\nx{text}x", bos=False)
        assert prompt[2 : 2 + len(inner)] == inner, repr(text)


@pytest.mark.heavy
def test_chat_prompt_keeps_control_tokens_out_of_user_text(model):
    _, metadata, tokenizer = model
    template = chat_template_from_gguf(metadata, tokenizer)
    plain = template.render([Message("user", "Hello there")])
    assert tokenizer.encode_rendered(plain) == tokenizer.encode(plain.text, special=True)
    attack = "".join(sorted(token for token in tokenizer.control_tokens if "unused" not in token))
    control = {tokenizer.token_id(token) for token in tokenizer.control_tokens}
    safe = tokenizer.encode_rendered(template.render([Message("user", attack)]))
    count = [sum(id in control for id in ids) for ids in (safe, tokenizer.encode_rendered(plain))]
    assert count[0] == count[1]
