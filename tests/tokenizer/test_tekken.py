"""Mistral's tekken.json: control tokens come first, ranks decide merges, damage is named."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from freehold.base.errors import BadModelFile
from freehold.run.tokenizer import Tokenizer, tokenizer_from_dir

WORDS = (b"he", b"ll", b"hell", b"hello", b" hello", "é".encode(), b"aa", b"aaa")
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+(?!\S)|\s+"
SPECIAL = 24


def tekken(**changes: Any) -> dict[str, Any]:
    """Return a file of the 256 bytes and WORDS, with two tokens more than its stated size."""
    tokens = [bytes([b]) for b in range(256)] + list(WORDS) + [b"beyond", b"also"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": SPECIAL + 256 + len(WORDS),
        "default_num_special_tokens": SPECIAL,
        "version": "v3",
    }
    return {"config": config | changes.pop("config", {}), "vocab": vocab, **changes}


def built(folder, data: dict[str, Any]) -> Tokenizer:
    (folder / "tekken.json").write_text(json.dumps(data))
    return tokenizer_from_dir(folder)


def test_control_tokens_have_the_first_ids_and_words_follow_by_rank(tmp_path):
    tokenizer = built(tmp_path, tekken())
    assert tokenizer.vocab_size == SPECIAL + 256 + len(WORDS)
    assert tokenizer.encode("[INST]hello[/INST]", special=True) == [1, 3, SPECIAL + 259, 4]
    assert tokenizer.token_text(23) == "<SPECIAL_23>"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, {2}, 11)


def test_union_of_lowest_rank_merges_first_and_a_word_that_is_a_token_needs_no_merge(tmp_path):
    tokenizer = built(tmp_path, tekken())
    word = {text: SPECIAL + 256 + i for i, text in enumerate(WORDS)}
    ids = tokenizer.encode("hello hello aaaaa é7", bos=False)
    a, space = SPECIAL + ord("a"), SPECIAL + ord(" ")
    assert ids[:2] == [word[b"hello"], word[b" hello"]]
    assert ids[2:5] == [space, word[b"aa"], word[b"aaa"]]
    assert ids[5:] == [space, word["é".encode()], SPECIAL + ord("7")]
    assert tokenizer.decode(ids) == "hello hello aaaaa é7"
    assert a not in ids


def test_tokens_beyond_the_stated_size_are_left_out(tmp_path):
    tokenizer = built(tmp_path, tekken())
    assert tokenizer.decode(tokenizer.encode("beyond", bos=False)) == "beyond"
    assert len(tokenizer.encode("beyond", bos=False)) == len("beyond")


def test_control_tokens_of_a_newer_file_are_its_own(tmp_path):
    named = [
        {"rank": i, "token_str": t, "is_control": True}
        for i, t in enumerate(("<unk>", "<s>", "</s>", "[THINK]"))
    ]
    tokenizer = built(tmp_path, tekken(config={"version": "v13"}, special_tokens=named))
    assert tokenizer.added_id("[THINK]") == 3
    assert tokenizer.added_id("[INST]") is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"config": {"version": "v13"}}, "lists no special_tokens"),
        ({"config": {"default_vocab_size": 10**6}}, "and holds"),
        ({"config": {"default_num_special_tokens": 3}}, "states 3 special tokens and names 20"),
        ({"config": {"pattern": "("}}, "word pattern"),
        ({"vocab": []}, "and holds 0"),
        ({"vocab": [{"rank": 7, "token_bytes": "AA=="}] * 300}, "ranks"),
        ({"vocab": [{"rank": 0, "token_bytes": "?"}] * 300}, "ranks|not a tokenizer"),
        ({"special_tokens": [{"rank": 1, "token_str": "<s>"}]}, "special_tokens are not those from 0"),
        ({"config": None}, "not a tokenizer"),
    ],
)
def test_damage_is_named(tmp_path, changes, words):
    data = tekken(**{k: v for k, v in changes.items() if v is not None})
    if changes.get("config", 0) is None:
        del data["config"]
    with pytest.raises(BadModelFile, match=words):
        built(tmp_path, data)
