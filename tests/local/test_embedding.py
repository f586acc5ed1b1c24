"""Embeddings through the LLM: of an encoder and of a decoder, limits reported, nothing cut in silence."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import LLM
from freehold.base.errors import BadPrompt, ContextOverflow, UnsupportedModel, UsageError
from tests.serving import served
from tests.vectors.encoders import SPECIAL, TEXTS, write_encoder
from tests.vectors.files import write_gguf

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden" / "all-minilm.npz"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    with freehold.load(write_encoder("bert", tmp_path_factory.mktemp("tiny-bert")), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf("qwen2", tmp_path_factory.mktemp("local") / "tiny.gguf", dtype="Q8_0")
    with freehold.load(path, context=256, threads=1) as loaded:
        yield loaded


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1))


def test_texts_become_unit_vectors_and_are_counted(encoder: LLM):
    got = encoder.embed(["the cat", "the", "xyz"])
    assert got.vectors.shape == (3, 128) and got.vectors.dtype == np.float32
    assert got.tokens == (4, 3, 5) and got.cut == ()  # [CLS] and [SEP] count; x ##y ##z
    assert np.abs(norms(got.vectors) - 1).max() < 1e-6
    assert encoder.info.width == 128 and encoder.info.embeds_only and not encoder.info.can_chat


def test_one_text_and_token_ids_are_texts_too(encoder: LLM):
    whole = encoder.embed("the cat").vectors
    ids = encoder.tokenize("the cat")
    assert [SPECIAL[ids[0]], SPECIAL[ids[-1]]] == ["[CLS]", "[SEP]"]
    assert encoder.embed(ids).vectors.tobytes() == whole.tobytes()
    assert encoder.embed([ids, "the cat"]).vectors.tobytes() == whole.tobytes() * 2
    assert encoder.detokenize(encoder.tokenize("the cat eating")) == "the cat eating"


def test_a_users_text_writes_no_control_token(encoder: LLM):
    assert encoder.tokenize("[SEP]").count(SPECIAL.index("[SEP]")) == 1  # the one at the end


def test_a_text_that_is_too_long_is_named_and_cut_only_when_asked(encoder: LLM):
    texts = ["the", "the " * 63]
    with pytest.raises(ContextOverflow, match=r"text 1 has 65 tokens; of those tiny-bert\S* takes 64") as e:
        encoder.embed(texts)
    assert "truncate" in e.value.hint
    got = encoder.embed(texts, truncate=True)
    assert got.tokens == (3, 64) and got.cut == (1,)
    fits = encoder.embed("the " * 62)  # what is kept, and the mark at the end
    assert got.vectors[1].tobytes() == fits.vectors[0].tobytes()


def test_a_text_far_too_long_is_refused_before_it_is_read(encoder: LLM):
    text = "a" * (64 * 64 + 1)
    with pytest.raises(ContextOverflow, match="text 0 has 4,097 characters"):
        encoder.embed(text)
    assert encoder.embed(text, truncate=True).cut == (0,)


def test_limits_are_told(encoder: LLM, decoder: LLM):
    with pytest.raises(UsageError, match="2,049 texts"):
        encoder.embed(["a"] * 2049)
    with pytest.raises(UsageError, match="0 texts"):
        encoder.embed([])
    with pytest.raises(UsageError, match=r"dimensions is 129; .* vectors of 128"):
        encoder.embed("a", dimensions=129)
    with pytest.raises(UsageError, match="token id 256 of text 0 is outside"):
        encoder.embed([[256]])
    with pytest.raises(BadPrompt, match="text 1 is empty"):
        decoder.embed(["a", ""])


def test_fewer_dimensions_are_the_first_ones_at_unit_length(encoder: LLM):
    whole, few = encoder.embed("the cat").vectors[0], encoder.embed("the cat", dimensions=16).vectors[0]
    want = whole[:16] / np.sqrt(np.square(whole[:16].astype(np.float64)).sum())
    assert few.shape == (16,) and np.abs(few - want).max() < 1e-6


def test_an_encoder_says_that_it_cannot_chat(encoder: LLM):
    for ask in (
        lambda: encoder.chat("Hi"),
        lambda: encoder.generate("Hi"),
        lambda: encoder.logits([1]),
        lambda: encoder.score([1, 2]),
    ):
        with pytest.raises(UnsupportedModel, match="cannot chat: it makes embeddings"):
            ask()


# --- of a decoder ------------------------------------------------------------------------------------


def test_a_decoder_embeds_by_its_last_token_or_the_mean(decoder: LLM):
    last, mean = decoder.embed("Hi there"), decoder.embed("Hi there", pooling="mean")
    assert last.vectors.shape == (1, 64) and np.abs(norms(last.vectors) - 1).max() < 1e-6
    assert np.abs(last.vectors - mean.vectors).max() > 1e-3
    first = decoder.embed(decoder.tokenize("Hi there")[:1])
    assert decoder.embed("Hi there", pooling="cls").vectors.tobytes() == first.vectors.tobytes()


def test_a_decoders_vector_is_the_same_bits_beside_answers_and_others(decoder: LLM):
    texts = [f"text number {i} " * (i + 1) for i in range(9)]
    alone = [decoder.embed(text, pooling="mean").vectors for text in texts]
    chat = threading.Thread(target=lambda: decoder.chat("Hi", max_tokens=40, seed=1))
    chat.start()
    together = decoder.embed(texts, pooling="mean")
    chat.join()
    assert together.vectors.tobytes() == b"".join(v.tobytes() for v in alone)


def test_embedding_while_another_thread_pumps_waits_for_its_steps(tmp_path: Path):
    path = write_gguf("qwen2", tmp_path / "tiny.gguf", dtype="Q8_0")
    with served(path, context=256, threads=1) as llm:
        want = llm.embed(["a b c", "d"]).vectors
        over = threading.Event()

        def pump() -> None:
            while not over.is_set():
                llm.pump(0.01)

        pumping = threading.Thread(target=pump)
        llm.pump(0.0)
        pumping.start()
        try:
            assert llm.embed(["a b c", "d"]).vectors.tobytes() == want.tobytes()
        finally:
            over.set()
            pumping.join()


# --- the real one ------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.model
def test_all_minilm_equals_sentence_transformers(model_path):
    with np.load(GOLDEN) as data:
        want = data["vectors"].astype(np.float64)
    with freehold.load(model_path("all-minilm:22m")) as llm:
        got = llm.embed(list(TEXTS)).vectors
    assert (1 - (got * want).sum(axis=1)).max() < 1e-5  # a tenth of what is asked


@pytest.mark.model
def test_all_minilm_tells_what_belongs_together(model_path):
    with freehold.load(model_path("all-minilm:22m")) as llm:
        assert (llm.context, llm.info.width) == (512, 384)
        cat, kitten, bond = llm.embed(["A cat sleeps.", "A kitten naps.", "Bond yields rose."]).vectors
    assert cat @ kitten > 0.5 > 0.2 > cat @ bond
