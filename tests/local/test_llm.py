"""The LLM over a tiny random model: template, tokenizer, engine and detokenizer together."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import LLM, ChatModel, Message, SamplingParams
from freehold.base.errors import BadPrompt, ContextOverflow, EngineClosed, ModelNotFound, UsageError
from freehold.base.terminal import Ticking
from freehold.run.local import open_model, open_shown, opening
from freehold.run.models.packing import packs
from freehold.run.store import ModelRef
from freehold.run.tokenizer import Tokenizer
from tests.vectors import files
from tests.vectors.files import write_gguf, write_safetensors

CONTEXT = 256


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf("qwen2", tmp_path_factory.mktemp("local") / "tiny.gguf", dtype="Q8_0")


@pytest.fixture(scope="module")
def llm(path: Path):
    with freehold.load(path, context=CONTEXT, threads=1) as loaded:
        yield loaded


def test_llm_is_a_chat_model(llm: LLM):
    assert isinstance(llm, ChatModel)
    assert (llm.name, llm.context, llm.threads) == ("tiny", CONTEXT, 1)


def test_same_seed_same_answer_and_the_seed_is_reported(llm: LLM):
    first = llm.chat("Hi", max_tokens=12, temperature=1.0)
    again = llm.chat("Hi", max_tokens=12, temperature=1.0, seed=first.seed)
    assert (again.token_ids, again.text) == (first.token_ids, first.text)


def test_streamed_pieces_make_the_same_answer(llm: LLM):
    whole = llm.chat("Hi", max_tokens=20, seed=1)
    chunks = list(llm.stream("Hi", max_tokens=20, seed=1))
    assert "".join(c.text for c in chunks) == whole.text
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert chunks[-1].usage is not None


def test_prefill_is_reported_step_by_step_before_the_first_token(path: Path):
    seen: list[tuple[int, int]] = []
    reports: list[int] = []
    with freehold.load(path, context=CONTEXT, threads=1) as llm:
        for _ in llm.stream("a word " * 20, max_tokens=2, on_prefill=lambda *read: seen.append(read)):
            reports.append(len(seen))
        total = llm.count_tokens([Message("user", "a word " * 20)])
    assert set(reports) == {len(seen)}  # none after a token came
    assert seen[0] == (0, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_messages_may_be_text_dicts_or_messages(llm: LLM):
    as_text = llm.chat("Hi", max_tokens=5, seed=1)
    as_dict = llm.chat([{"role": "user", "content": "Hi"}], max_tokens=5, seed=1)
    as_message = llm.chat([Message("user", "Hi")], max_tokens=5, seed=1)
    assert as_text.token_ids == as_dict.token_ids == as_message.token_ids


@pytest.mark.parametrize(
    "messages, part",
    [
        ("", "the chat is empty"),
        ([], "the chat is empty"),
        ([Message("system", "x")], "the chat is empty"),
        ([{"role": "king", "content": "x"}], "not a message"),
        ([{"role": "user", "content": "x", "colour": "red"}], "not a message"),
        ([3], "a message is a int"),
    ],
)
def test_what_is_no_chat_is_refused(llm: LLM, messages, part):
    with pytest.raises((BadPrompt, UsageError), match=part):
        llm.chat(messages)


def test_unknown_option_gets_the_nearest_name(llm: LLM):
    with pytest.raises(UsageError, match="unknown option 'temprature'") as e:
        llm.chat("Hi", temprature=1)  # pyright: ignore[reportCallIssue]
    assert e.value.hint == "did you mean temperature?"


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}, {"logprobs": -1}, {"stop": [""]}]
)
def test_values_out_of_range_are_refused(llm: LLM, options):
    with pytest.raises(UsageError):
        llm.chat("Hi", **options)


def test_sampling_options_win_over_sampling(llm: LLM):
    params = SamplingParams(temperature=1.0, seed=3)
    assert llm.generate("a", max_tokens=4, sampling=params, seed=4).seed == 4


def test_stop_string_ends_the_answer_before_it(llm: LLM):
    free = llm.generate("abc", max_tokens=30, seed=5)
    at = next(i for i in range(2, len(free.text)) if free.text[i : i + 2] not in free.text[: i + 1])
    stop = free.text[at : at + 2]
    cut = llm.generate("abc", max_tokens=30, seed=5, stop=[stop])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.token_ids) <= len(free.token_ids)


def test_logprobs_are_the_model_s_own(llm: LLM):
    got = llm.generate("abc", max_tokens=3, temperature=0, logprobs=2)
    ids = [*llm.tokenize("abc"), *got.token_ids]
    scores = llm.score(ids)[-3:]
    assert np.allclose([p.logprob for p in got.logprobs], scores, atol=1e-5)
    assert all(len(p.top) == 2 and p.top[0][0] == p.token_id for p in got.logprobs)


def test_logits_and_scores_agree(llm: LLM):
    ids = llm.tokenize("the end")
    logits = llm.logits(ids)
    assert logits.dtype == np.float32 and logits.shape[0] == len(ids)
    z = logits[:-1].astype(np.float64)
    logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    assert np.allclose(llm.score(ids), logp[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)


def test_tokenize_and_detokenize_are_inverse(llm: LLM):
    assert llm.detokenize(llm.tokenize("the café 🙂")) == "the café 🙂"
    assert llm.detokenize([]) == ""
    assert llm.tokenize("<|im_end|>") != llm.tokenize("<|im_end|>", special=True)


def test_tokenize_begins_a_text_as_asked(llm: LLM):
    plain = llm.tokenize("the end")  # this model's habit is to begin with none
    assert llm.tokenize("the end", bos=True) == [files.BOS, *plain]
    assert llm.tokenize("the end", bos=False) == plain


@pytest.mark.parametrize("ids", [[1, 2, "a"], [1.5], 7])
def test_what_is_no_token_id_is_refused_by_name(llm: LLM, ids):
    with pytest.raises(UsageError, match="not token ids"):
        llm.generate(ids, max_tokens=1)


def test_only_a_text_is_tokenised(llm: LLM):
    with pytest.raises(UsageError, match="text is a int"):
        llm.tokenize(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[-1], [10**9]])
def test_ids_outside_the_vocabulary_are_refused(llm: LLM, ids):
    for call in (llm.generate, llm.detokenize, llm.logits, llm.score):
        with pytest.raises(UsageError):
            call(ids)


def test_no_ids_at_all_are_nothing_to_compute_on(llm: LLM):
    for call in (llm.generate, llm.logits, llm.score):
        with pytest.raises(UsageError, match=r"at least one|no token ids"):
            call([])


def test_long_prompt_is_an_error_with_the_numbers(llm: LLM):
    with pytest.raises(ContextOverflow, match=r"tokens; tiny is loaded with a context of 256") as e:
        llm.chat("x" * 400)
    assert "--context" in e.value.hint


def turns(count: int, size: int) -> list[Message]:
    chat = [Message("system", "s")]
    for i in range(count):
        chat += [Message("user", f"{i}" + "x" * size), Message("assistant", "y" * size)]
    return [*chat, Message("user", "last")]


def test_drop_oldest_leaves_out_as_few_turns_as_it_takes_and_says_so(llm: LLM):
    with pytest.raises(ContextOverflow):
        llm.chat(turns(6, 20))
    got = llm.chat(turns(6, 20), overflow="drop-oldest", max_tokens=8, seed=1)
    assert got.dropped_messages and got.dropped_messages % 2 == 0
    kept = [turns(6, 20)[0], *turns(6, 20)[1 + got.dropped_messages :]]
    assert llm.chat(kept, max_tokens=8, seed=1).token_ids == got.token_ids
    assert got.usage.prompt_tokens <= CONTEXT - 8


def test_drop_oldest_drops_nothing_that_fits(llm: LLM):
    assert llm.chat(turns(1, 5), overflow="drop-oldest", max_tokens=3).dropped_messages == 0


def test_last_turn_is_never_dropped(llm: LLM):
    with pytest.raises(ContextOverflow):
        llm.chat([*turns(2, 5)[:-1], Message("user", "x" * 400)], overflow="drop-oldest")


def test_answer_ends_with_the_context(llm: LLM):
    got = llm.generate([40] * (CONTEXT - 3), temperature=0, logit_bias={2: -1e6, 4: -1e6})
    assert got.finish_reason == "length" and len(got.token_ids) == 3


def test_think_is_refused_where_the_template_has_no_switch(llm: LLM):
    with pytest.raises(UsageError, match="thinking"):
        llm.chat("Hi", think=True)


def test_closed_stream_frees_its_cache(llm: LLM):
    free = llm._engine.free_blocks
    stream = llm.stream("Hi", max_tokens=50, seed=1)
    next(stream)
    assert llm._engine.free_blocks < free
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert llm._engine.free_blocks == free


def test_threads_get_the_answers_they_would_get_alone(llm: LLM):
    alone = [llm.chat(f"Question {i}", max_tokens=12, seed=i).token_ids for i in range(4)]
    together: list = [None] * 4

    def ask(i: int) -> None:
        together[i] = llm.chat(f"Question {i}", max_tokens=12, seed=i).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert together == alone


def test_use_after_close_is_refused(path: Path):
    llm = freehold.load(path, context=64, threads=1)
    with llm:
        pass
    for call in (llm.tokenize, llm.chat, llm.generate):
        with pytest.raises(EngineClosed, match="tiny is closed"):
            call("x")
    llm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_is_refused(llm: LLM):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        try:
            llm.chat("Hi", max_tokens=1)
        except EngineClosed as e:
            theirs.send(e.message)

    process = context.Process(target=child)
    process.start()
    assert ours.poll(20) and "process" in ours.recv()
    process.join(60)


def test_safetensors_folder_loads_too(tmp_path: Path):
    with freehold.load(write_safetensors("qwen3", tmp_path / "m"), context=64, threads=1) as llm:
        assert llm.generate("a", max_tokens=2).usage.completion_tokens >= 1


def test_packed_weights_are_mapped_the_second_time(path: Path, tmp_path: Path):
    ref = ModelRef("tiny", path, "gguf", "d" * 64, path.stat().st_size, "user", "", "", (path,))
    first = open_model(ref, context=64, threads=1, packs=tmp_path)
    answer = first.generate("abc", max_tokens=8, seed=1).token_ids
    first.close()
    assert len(list(tmp_path.glob("*.pack"))) == 1
    with open_model(ref, context=64, threads=1, packs=tmp_path) as second:
        assert second.generate("abc", max_tokens=8, seed=1).token_ids == answer


def test_two_that_load_at_once_share_one_pack(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ref = ModelRef("tiny", path, "gguf", "f" * 64, path.stat().st_size, "user", "", "", (path,))
    waits, writes = threading.Event(), threading.Event()
    whole = opening.write_pack

    def late(*args: object) -> None:
        assert writes.wait(60)
        whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "write_pack", late)
    monkeypatch.setattr(packs, "LOOK_S", 0.0)
    monkeypatch.setattr(packs.time, "sleep", lambda seconds: waits.set())
    loaded: list[LLM] = []

    def load() -> None:
        loaded.append(open_model(ref, context=64, threads=1, packs=tmp_path))

    with open_model(ref, context=64, threads=1, packs=tmp_path):
        second = threading.Thread(target=load)
        second.start()
        assert waits.wait(60) and not loaded
        writes.set()
        second.join(60)
        with loaded[0] as llm:
            assert llm._engine.model.pack is not None  # mapped: it packed nothing by itself
    assert len(list(tmp_path.glob("*.pack"))) == 1


def test_load_shows_a_terminal_what_is_silent(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ref = ModelRef("tiny", path, "gguf", "e" * 64, path.stat().st_size, "user", "", "", (path,))
    shown: list[str] = []
    monkeypatch.setattr(Ticking, "start", lambda line: shown.append(line.text))
    monkeypatch.setattr(Ticking, "show", lambda line, text: shown.append(text))
    with open_shown(ref, context=64, threads=1, packs=tmp_path):
        assert shown[0] == "loading tiny" and shown[-1] == "preparing the weights of tiny: 100%"
    assert shown[-1] == "keeping the packed weights for the next start"
    shown.clear()
    with freehold.load(path, context=64, threads=1, progress=False):
        assert shown == []


def test_what_the_store_says_of_a_file_is_among_the_notes(path: Path):
    ref = ModelRef("t", path, "gguf", "", 1, "user", "", "", (path,), notes=("t: it was replaced",))
    with open_model(ref, context=64, threads=1) as llm:
        assert llm.info.notes[0] == "t: it was replaced"


def test_packed_weights_that_find_no_room_are_noted(path: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    ref = ModelRef("tiny", path, "gguf", "d" * 64, path.stat().st_size, "user", "", "", (path,))
    with open_model(ref, context=64, threads=1, packs=tmp_path / "file") as llm:
        assert llm.generate("abc", max_tokens=2).token_ids
    assert len(llm.notes) == 1 and "not kept" in llm.notes[0]


def test_template_that_is_not_the_file_s_is_noted(tmp_path: Path, llm: LLM):
    path = write_gguf("qwen2", tmp_path / "base.gguf", keys={"tokenizer.chat_template": ""})
    with freehold.load(path, context=64, threads=1) as base:
        assert len(base.notes) == 1 and "ChatML (the file has none" in base.notes[0]
    assert llm.notes == ()


def test_unknown_model_is_a_named_error(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    with pytest.raises(ModelNotFound):
        freehold.load("no-such-model")
    with pytest.raises(ModelNotFound):
        freehold.load(tmp_path / "missing.gguf")


@pytest.mark.parametrize("options", [{"context": 0}, {"threads": 0}, {"context": 10**9}])
def test_load_refuses_impossible_sizes(path: Path, options):
    with pytest.raises((ContextOverflow, UsageError)):
        freehold.load(path, **options)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2:135m", "qwen2.5-coder:0.5b"])
def test_real_model_knows_a_fact(model_path, name):
    with freehold.load(model_path(name), context=512) as llm:
        got = llm.chat("What is the capital of France? Answer in one word.", max_tokens=20, temperature=0)
    assert "Paris" in got.text and got.finish_reason == "stop"


# --- speculation -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family with the same tokens."""
    return write_gguf("llama", tmp_path_factory.mktemp("draft") / "sibling.gguf", dtype="Q8_0")


def test_draft_model_changes_no_answer(llm: LLM, path: Path, sibling: Path):
    asked = {"max_tokens": 40, "seed": 3, "temperature": 0.8}
    with freehold.load(path, context=CONTEXT, threads=1, draft=sibling) as drafted:
        assert drafted.chat("Hi", **asked).token_ids == llm.chat("Hi", **asked).token_ids


def test_draft_model_whose_ids_stand_for_other_tokens_is_refused(
    path: Path, sibling: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Tokenizer, "first_difference", lambda *_: 7)
    with pytest.raises(UsageError, match="sibling cannot draft for tiny: token 7 differs"):
        freehold.load(path, context=CONTEXT, threads=1, draft=sibling)


def test_draft_model_without_speculation_is_refused(path: Path, sibling: Path):
    with pytest.raises(UsageError, match="speculation is off"):
        freehold.load(path, context=CONTEXT, draft=sibling, speculate=False)


def test_own_head_takes_memory_only_where_it_may_draft(path: Path, tmp_path: Path):
    own = write_gguf("qwen3_5-head", tmp_path / "own.gguf")
    answers = []
    for options, loads in (
        ({"draft": "head"}, True),
        ({"draft": "none"}, False),
        ({"speculate": False}, False),
    ):
        with freehold.load(own, context=CONTEXT, threads=1, **options) as llm:
            assert (llm._engine.model.drafter is not None) == loads
            answers.append(llm.chat("Hi", max_tokens=20, seed=3).token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_a_list_of_prompts_is_one_batch_of_the_answers_each_gets_alone(llm: LLM):
    prompts = ["a", "b c", "the end"]
    alone = [llm.generate(p, max_tokens=20, seed=5) for p in prompts]
    before = llm.stats.steps
    batch = llm.generate(prompts, max_tokens=20, seed=5)
    assert [c.token_ids for c in batch] == [c.token_ids for c in alone]
    assert [c.seed for c in batch] == [5, 5, 5]
    assert llm.stats.steps - before < sum(c.usage.completion_tokens for c in batch)
    ids = [llm.tokenize(p) for p in prompts]
    assert [c.text for c in llm.generate(ids, max_tokens=20, seed=5)] == [c.text for c in alone]


def test_batch_larger_than_the_cache_is_answered_whole(llm: LLM):
    prompts = [f"a b {i}" for i in range(40)]
    got = llm.generate(prompts, max_tokens=30, seed=1)
    assert got[-1].token_ids == llm.generate(prompts[-1], max_tokens=30, seed=1).token_ids
    assert llm.stats.running == llm.stats.waiting == 0


def test_error_in_a_batch_names_the_prompt_and_computes_nothing(llm: LLM):
    before = llm.stats.steps
    with pytest.raises(ContextOverflow, match=r"^prompt 1: "):
        llm.generate(["a", "a b c " * CONTEXT])
    with pytest.raises(BadPrompt, match=r"^prompt 0: the prompt is empty"):
        llm.generate(["", "a"])
    assert llm.stats.steps == before


def test_embedding_works_after_a_batch(llm: LLM):
    llm.generate(["a", "b"], max_tokens=2)
    assert llm.embed("a").vectors.shape[0] == 1


def test_a_model_that_is_not_here_says_how_python_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelNotFound) as e:
        freehold.load("qwen3:8b")
    assert e.value.hint.startswith("freehold.load('qwen3:8b', pull=True) fetches it")
    with pytest.raises(ModelNotFound) as e:
        freehold.load("qwen3:9b")
    assert e.value.hint.startswith("did you mean qwen3:8b") and "pull=True fetches" in e.value.hint
