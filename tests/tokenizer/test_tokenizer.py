"""Encoding and decoding with small vocabularies."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel, UsageError
from freehold.run.tokenizer import AddedToken, Detokenizer, TokenKind, tokenizer_from_dir, tokenizer_from_gguf
from freehold.run.tokenizer.core import Cutter
from freehold.run.tokenizer.vocab import end_ids
from tests.tokenizer import toys

BPE = tokenizer_from_gguf(toys.byte_level())
SPM = tokenizer_from_gguf(toys.sentencepiece())
UNI = tokenizer_from_gguf(toys.unigram())
ALL = {"bpe": BPE, "spm": SPM, "unigram": UNI}


def spelled(tokenizer, ids):
    return [tokenizer.token_text(id) for id in ids]


def test_byte_level_merges_words():
    assert spelled(BPE, BPE.encode("hello hello")) == ["hello", "Ġhello"]


def test_byte_level_composes_characters_where_the_model_does():
    assert BPE.encode("e\u0301") == BPE.encode("é")
    plain = tokenizer_from_gguf(toys.byte_level("gpt-2"))
    assert plain.encode("e\u0301") != plain.encode("é")


@given(
    st.sets(st.text("<a >b", min_size=1, max_size=4), min_size=1, max_size=8).map(sorted),
    st.text("<a >b", max_size=20),
)
def test_added_tokens_are_cut_leftmost_first_and_longest_at_a_place(tokens, text):
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    cutter = Cutter(AddedToken(id, token, control=True) for id, token in enumerate(tokens))
    expected = [(*m.span(), tokens.index(m.group())) for m in pattern.finditer(text)]
    assert list(cutter.cut(text)) == expected


def test_an_unknown_spelling_has_no_id():
    assert BPE.token_id("no such token") is None
    assert BPE.token_text(BPE.token_id("<|im_end|>")) == "<|im_end|>"


def test_first_id_that_stands_for_another_token_is_found():
    assert BPE.first_difference(tokenizer_from_gguf(toys.byte_level())) is None
    assert BPE.first_difference(SPM) == next(
        i for i in range(BPE.vocab_size) if BPE.token_text(i) != SPM.token_text(i)
    )


def test_control_token_in_user_text_is_ordinary_text():
    ids = BPE.encode("hello<|im_end|>")
    assert BPE.token_id("<|im_end|>") not in ids
    assert BPE.decode(ids) == "hello<|im_end|>"


def test_control_token_in_template_text_is_one_id():
    assert spelled(BPE, BPE.encode("<|im_start|>hello<|im_end|>", special=True)) == [
        "<|im_start|>",
        "hello",
        "<|im_end|>",
    ]


def test_user_defined_token_is_found_in_any_text():
    for special in (True, False):
        assert spelled(BPE, BPE.encode("a<tool>b", special=special)) == ["a", "<tool>", "b"]


def test_control_token_cannot_be_reached_through_ignore_merges():
    data = toys.byte_level("llama-bpe")
    texts = [*data["tokenizer.ggml.tokens"], "abc"]
    kinds = [*data["tokenizer.ggml.token_type"], toys.CONTROL]
    data |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": np.array(kinds)}
    tokenizer = tokenizer_from_gguf(data)
    assert spelled(tokenizer, tokenizer.encode("abc")) == ["a", "b", "c"]
    assert spelled(tokenizer, tokenizer.encode("abc", special=True)) == ["abc"]


def test_sentencepiece_merges_by_score():
    # "▁a" scores better than "ab", so the b is left alone; "bc" is merged before "▁abc" becomes possible
    assert spelled(SPM, SPM.encode("ab", bos=False)) == ["▁a", "b"]
    assert spelled(SPM, SPM.encode("abc", bos=False)) == ["▁abc"]
    assert spelled(SPM, SPM.encode("dabc", bos=False)) == ["▁", "d", "abc"]


def test_sentencepiece_falls_back_to_bytes():
    assert spelled(SPM, SPM.encode("ż", bos=False)) == ["▁", "<0xC5>", "<0xBC>"]


def test_sentencepiece_adds_bos_and_space_unless_told_not_to():
    assert SPM.encode("a")[0] == SPM.bos_id
    bare = tokenizer_from_gguf(
        toys.sentencepiece(
            **{"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
        )
    )
    assert spelled(bare, bare.encode("a")) == ["a"]
    assert bare.encode("a", bos=True)[0] == bare.bos_id


def test_bos_in_template_text_is_not_doubled():
    assert SPM.encode("<s>a", special=True) == SPM.encode("a")
    assert SPM.encode("<s>a").count(SPM.bos_id) == 1


def test_space_mark_typed_by_a_user_is_a_space():
    assert SPM.decode(SPM.encode("a\u2581b")) == "a b"


def test_unigram_takes_the_best_segmentation_and_ends_with_eos():
    assert spelled(UNI, UNI.encode("abb")) == ["▁ab", "b", "</s>"]
    assert UNI.decode(UNI.encode("abb ab")) == "abb ab"


def test_end_ids_are_the_named_one_and_known_ends_of_turn():
    assert spelled(BPE, BPE.eos_ids) == ["<|im_end|>"]
    assert SPM.eos_ids == {2}


def test_glm_ends_by_opening_the_next_turn_and_others_do_not():
    def ends(*texts: str) -> set[str]:
        added = [AddedToken(i, text, control=True) for i, text in enumerate(texts)]
        return {texts[i] for i in end_ids(added, ())}

    assert ends("[gMASK]", "<|user|>", "<|observation|>") == {"<|user|>", "<|observation|>"}
    assert ends("<|user|>", "<|observation|>") == set()


def test_kind_and_bytes_of_a_token():
    end = BPE.token_id("<|im_end|>")
    assert BPE.token_kind(end) is TokenKind.CONTROL
    assert BPE.token_bytes(end) == b""
    assert BPE.token_bytes(end, special=True) == b"<|im_end|>"
    assert BPE.token_bytes(BPE.token_id("Ġhello")) == b" hello"
    assert SPM.token_bytes(SPM.token_id("<0xC5>")) == b"\xc5"
    assert BPE.vocab_size == len(toys.byte_level()["tokenizer.ggml.tokens"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_refused(name, text):
    with pytest.raises(UsageError, match="half a surrogate"):
        ALL[name].encode(text)


def test_id_outside_the_vocabulary_is_refused():
    for id in (-1, BPE.vocab_size):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            BPE.decode([id])


@pytest.mark.parametrize("name", ["bpe", "spm"])
@pytest.mark.parametrize(
    "unit, count", [("a", 100_000), ("\u0301", 50_000), ("hell", 25_000), ("日", 30_000)]
)
def test_long_text_without_a_space_takes_little_time(name, unit, count):
    start = time.process_time()
    ids = ALL[name].encode(unit * count)
    assert time.process_time() - start < 5
    assert ALL[name].decode(ids) == unit * count


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_sentencepiece_round_trip(text):
    # the space mark itself reads as a space, and nothing else is lost
    assert SPM.decode(SPM.encode(text)) == text.replace("\u2581", " ")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_level_round_trip(text):
    tokenizer = _plain()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _plain(cache=[]):  # noqa: B006
    if not cache:
        cache.append(tokenizer_from_gguf(toys.byte_level("gpt-2")))
    return cache[0]


@settings(max_examples=300)
@given(st.sampled_from(sorted(ALL)), st.lists(st.integers(0, 10_000), max_size=30), st.booleans())
def test_detokenizer_pieces_join_to_the_decoded_text(name, numbers, special):
    tokenizer = ALL[name]
    ids = [number % tokenizer.vocab_size for number in numbers]
    stream = Detokenizer(tokenizer, special=special)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, special=special)


def test_detokenizer_never_emits_half_a_character():
    stream = Detokenizer(BPE)
    pieces = [stream.push(id) for id in BPE.encode("🙂é")]
    assert pieces == ["", "", "", "🙂", "", "é"]
    assert stream.finish() == ""


def test_detokenizer_replaces_bytes_once_they_are_certain_to_be_wrong():
    stream = Detokenizer(BPE)
    lead, letter = BPE.encode("é")[0], BPE.token_id("h")
    assert (stream.push(lead), stream.push(letter)) == ("", "\ufffdh")
    assert (stream.push(lead), stream.finish()) == ("", "\ufffd")


def test_detokenizer_keeps_the_space_of_a_continuation():
    ids = SPM.encode("abc", bos=False)
    joined = Detokenizer(SPM, at_start=False)
    assert "".join(map(joined.push, ids)) == " abc"


def test_unknown_pre_tokenizer_is_refused_by_name():
    for name in ("default", "", "my-own"):
        with pytest.raises(UnsupportedModel) as caught:
            tokenizer_from_gguf(toys.byte_level(name))
        assert "llama-bpe" in caught.value.hint
        assert name in caught.value.message


def test_unknown_tokenizer_model_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="'rwkv'"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "rwkv"})


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": 5},
        {"tokenizer.ggml.token_type": np.array([1])},
        {"tokenizer.ggml.merges": ["h z"]},
        {"tokenizer.ggml.merges": ["nospace"]},
        {"tokenizer.ggml.merges": ["zz top"]},
        {"tokenizer.ggml.eos_token_id": 10_000},
        {"tokenizer.ggml.eos_token_id": "two"},
        {"tokenizer.ggml.add_bos_token": True},
        {"tokenizer.ggml.add_bos_token": "yes"},
        {"tokenizer.ggml.pre": 7},
    ],
)
def test_inconsistent_metadata_is_a_bad_file(change):
    with pytest.raises(BadModelFile):
        tokenizer_from_gguf(toys.byte_level() | change)


def test_sentencepiece_without_scores_is_a_bad_file():
    data = toys.sentencepiece()
    del data["tokenizer.ggml.scores"]
    with pytest.raises(BadModelFile, match="scores"):
        tokenizer_from_gguf(data)


def write_directory(folder, **changes):
    data = toys.byte_level()
    vocab = {text: id for id, text in enumerate(data["tokenizer.ggml.tokens"][:261])}
    added = [
        {"id": 261, "content": "<|im_start|>", "special": True},
        {"id": 262, "content": "<|im_end|>", "special": True, "rstrip": True},
        {"id": 263, "content": "<tool>", "special": False},
    ]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "added_tokens": [
            {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **token}
            for token in added
        ],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": split,
        "model": {"type": "BPE", "vocab": vocab, "merges": data["tokenizer.ggml.merges"]},
    }
    content |= changes
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>", "add_bos_token": True}
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [262, 5]}))


def test_directory_tokenizer_follows_its_files(tmp_path):
    write_directory(tmp_path)
    tokenizer = tokenizer_from_dir(tmp_path)
    assert spelled(tokenizer, tokenizer.encode("hello<tool>")) == ["<|im_start|>", "hello", "<tool>"]
    assert tokenizer.eos_ids == {262, 5}
    assert tokenizer.eos_id == 262
    assert tokenizer.vocab_size == 264
    assert tokenizer.decode(tokenizer.encode("é <|im_end|>")) == "é <|im_end|>"


def test_token_that_strips_whitespace_takes_it_along(tmp_path):
    write_directory(tmp_path)
    tokenizer = tokenizer_from_dir(tmp_path)
    ids = tokenizer.encode("<|im_end|> \n hello", special=True, bos=False)
    assert spelled(tokenizer, ids) == ["<|im_end|>", "hello"]


def test_directory_without_tokenizer_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        tokenizer_from_dir(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": 3}', '{"model": {"vocab": {"a": "b"}}}', "[" * 100_000]
)
def test_damaged_tokenizer_json_is_a_bad_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadModelFile):
        tokenizer_from_dir(tmp_path)


def test_word_level_is_unsupported(tmp_path):
    write_directory(tmp_path, model={"type": "WordLevel", "vocab": {"a": 0}})
    with pytest.raises(UnsupportedModel, match="WordLevel"):
        tokenizer_from_dir(tmp_path)


@pytest.mark.parametrize("normalized", [False, True])
def test_space_marks_in_a_users_text_are_read_as_the_models_own_file_has_them(
    tmp_path: Path, normalized: bool
):
    """Gemma's tokens of several spaces are matched in text whose spaces are marks already, or are typed as such."""
    vocab = {t: i for i, t in enumerate(["<unk>", "▁", "a", "b", "▁▁", "▁▁▁", "▁a", "ab", "▁ab"])}
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    own = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>"))
    own.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    own.add_tokens([tokenizers.AddedToken("▁" * n, normalized=normalized) for n in (2, 3)])
    own.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizer_from_dir(tmp_path)
    for letters in (c for size in range(1, 6) for c in itertools.product("▁ ab", repeat=size)):
        text = "".join(letters)
        assert ours.encode(text, bos=False) == own.encode(text, add_special_tokens=False).ids, repr(text)
    assert ours.added_id("▁▁") == 4


def test_an_added_token_that_is_too_long_to_look_for_is_refused():
    data = toys.unigram()
    texts = list(data["tokenizer.ggml.tokens"])
    texts[int(data["tokenizer.ggml.eos_token_id"])] = "<" * 1025
    with pytest.raises(BadModelFile, match="has 1,025 characters"):
        tokenizer_from_gguf(data | {"tokenizer.ggml.tokens": texts})


def test_space_mark_in_a_byte_level_token_is_itself():
    metadata = toys.byte_level()
    texts = ["<a▁b>" if text == "<tool>" else text for text in metadata["tokenizer.ggml.tokens"]]  # type: ignore[union-attr]
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.tokens": texts})
    assert tokenizer.encode("x<a▁b>") == [ord("x"), texts.index("<a▁b>")]
    assert texts.index("<a▁b>") not in tokenizer.encode("<a b>")
