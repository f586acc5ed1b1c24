"""Jobs from elsewhere: limits on every field, several answers, resumed ones, scored prompts, gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freehold import LLM
from freehold.base.errors import (
    BadPrompt,
    BadTemplate,
    ContextOverflow,
    DeadlineExceeded,
    FreeholdError,
    Overloaded,
    UsageError,
)
from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.run.local import open_served
from freehold.run.local.answering import LocalJob
from freehold.run.store import ModelRef
from tests.serving import served
from tests.vectors import files
from tests.vectors.files import write_gguf

CONTEXT = 256
CHAT = Job(messages=(Message("user", "Hi"),), max_tokens=20, sampling={"seed": 1})
TEXT = Job(prompt="abc", max_tokens=20, sampling={"seed": 5})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf("qwen2", tmp_path_factory.mktemp("jobs") / "tiny.gguf", dtype="Q8_0")
    with served(path, context=CONTEXT, threads=1) as loaded:
        yield loaded


def finish(llm: LLM, *jobs: LocalJob) -> list[list[list[Chunk]]]:
    """Pump until all jobs are done; return their answers' chunks."""
    got: list[list[list[Chunk]]] = [[] for _ in jobs]
    for job in jobs:
        job.enter()
    while not all(job.done for job in jobs):
        llm.pump(0.01)
        for chunks, job in zip(got, jobs, strict=True):
            for index, chunk in job.take():
                chunks += [[] for _ in range(index + 1 - len(chunks))]
                chunks[index].append(chunk)
    return got


def answered(llm: LLM, job: Job) -> list[list[Chunk]]:
    return finish(llm, llm.start(job))[0]


def ids(chunks: list[Chunk]) -> tuple[int, ...]:
    return tuple(i for c in chunks for i in c.token_ids)


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


# --- the same path -------------------------------------------------------------------------------------


def test_job_gets_the_answer_a_call_gets(llm: LLM):
    assert ids(answered(llm, CHAT)[0]) == llm.chat("Hi", max_tokens=20, seed=1).token_ids
    assert ids(answered(llm, TEXT)[0]) == llm.generate("abc", max_tokens=20, seed=5).token_ids


def test_begin_says_what_was_taken_in_and_nothing_is_computed_before_enter(llm: LLM):
    steps = llm.stats.steps
    begin = llm.start(replace(TEXT, max_tokens=999, sampling={"temperature": 0.5})).begin
    assert begin is not None and llm.stats.steps == steps
    assert begin.prompt_ids == tuple(llm.tokenize("abc"))
    assert begin.max_tokens == CONTEXT - len(begin.prompt_ids)
    assert begin.sampling.temperature == 0.5 and begin.sampling.seed is not None
    assert begin.sampling.top_p == llm.default_sampling.top_p


def test_jobs_answered_together_are_the_jobs_answered_alone(llm: LLM):
    jobs = [replace(CHAT, sampling={"seed": i}) for i in range(6)] + [replace(TEXT, n=3)]
    alone = [[ids(a) for a in answered(llm, job)] for job in jobs]
    together = finish(llm, *map(llm.start, jobs))
    assert [[ids(a) for a in got] for got in together] == alone


def test_answer_number_i_is_the_single_answer_to_seed_plus_i(llm: LLM):
    many = answered(llm, replace(TEXT, n=4))
    assert len(many) == 4
    for i, chunks in enumerate(many):
        assert ids(chunks) == llm.generate("abc", max_tokens=20, seed=5 + i).token_ids
        assert chunks[-1].finish_reason and chunks[-1].usage


def test_cancelled_job_gives_its_blocks_back(llm: LLM):
    live = llm.stats.blocks_live
    job = llm.start(replace(TEXT, n=2))
    job.enter()
    llm.pump(0.01)
    assert llm.stats.blocks_live > live
    job.cancel()
    assert job.done and llm.stats.blocks_live == live


def test_end_token_ends_an_answer_unless_it_is_to_be_ignored(llm: LLM):
    always = {"temperature": 0, "logit_bias": {files.IM_END: 1e6}}
    [chunks] = answered(llm, replace(TEXT, sampling=always))
    assert chunks[-1].finish_reason == "stop" and ids(chunks) == (files.IM_END,)
    [chunks] = answered(llm, replace(TEXT, sampling=always, ignore_eos=True))
    assert chunks[-1].finish_reason == "length" and ids(chunks) == (files.IM_END,) * 20


def test_time_limit_ends_a_job(llm: LLM):
    job = llm.start(replace(TEXT, timeout_s=1e-6))
    with pytest.raises(DeadlineExceeded):
        finish(llm, job)


# --- resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [CHAT, TEXT, replace(TEXT, n=3)], ids=["chat", "text", "three"])
@pytest.mark.parametrize("sent", [0, 1, 7, 19, 20])
def test_resumed_answer_goes_on_with_the_next_character(llm: LLM, job: Job, sent: int):
    whole = answered(llm, job)
    logs, before = [], []
    for answer in whole:
        first = [c for c in answer[:-1]][:sent]
        logs.append(ids(first))
        before.append(text(first))
    rest = answered(llm, replace(job, resume=tuple(logs)))
    for answer, log, shown, more in zip(whole, logs, before, rest, strict=True):
        assert log + ids(more) == ids(answer)
        assert shown + text(more) == text(answer)
        assert more[-1].finish_reason == answer[-1].finish_reason
        assert more[-1].usage.completion_tokens == answer[-1].usage.completion_tokens


def test_answer_that_was_whole_is_not_made_again(llm: LLM):
    whole = answered(llm, TEXT)[0]
    steps = llm.stats.steps
    [again] = answered(llm, replace(TEXT, resume=(ids(whole),)))
    assert [(c.token_ids, c.finish_reason) for c in again] == [((), whole[-1].finish_reason)]
    assert llm.stats.steps == steps


def test_answer_that_met_its_stop_string_is_whole(llm: LLM):
    free = text(answered(llm, TEXT)[0])
    at = next(i for i in range(2, len(free)) if free[i : i + 2] not in free[: i + 1])
    job = replace(TEXT, stop=(free[at : at + 2],))
    whole = answered(llm, job)[0]
    assert text(whole) == free[:at] and whole[-1].finish_reason == "stop"
    assert whole[-1].stop == free[at : at + 2]
    [again] = answered(llm, replace(job, resume=(ids(whole),)))
    assert [(c.text, c.finish_reason) for c in again] == [("", "stop")]


# --- log-probabilities ---------------------------------------------------------------------------------


def test_prompt_is_scored_as_score_does(llm: LLM):
    job = llm.start(Job(prompt="the end of it", max_tokens=0, prompt_logprobs=3))
    assert job.begin is None
    [[[last]]] = finish(llm, job)
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 0)
    begin = job.begin
    assert begin is not None and begin.prompt_logprobs is not None
    first, *others = begin.prompt_logprobs
    assert first is None
    assert np.allclose([p.logprob for p in others], llm.score(begin.prompt_ids), atol=1e-6)
    assert [p.token_id for p in others] == list(begin.prompt_ids[1:])
    assert [p.token for p in others] == llm.token_texts(begin.prompt_ids[1:])
    for entry in others:
        assert len(entry.top) == len(entry.top_tokens) == 3
        assert entry.top[0][1] >= entry.logprob - 1e-6
        assert entry.top_tokens == tuple(llm.token_texts([i for i, _ in entry.top]))


def test_scored_prompt_goes_on_to_its_answer_beside_others(llm: LLM):
    alone = ids(answered(llm, TEXT)[0])
    scored, plain = llm.start(replace(TEXT, prompt_logprobs=0)), llm.start(TEXT)
    got = finish(llm, scored, plain)
    assert ids(got[0][0]) == ids(got[1][0]) == alone
    assert scored.begin.prompt_logprobs[1].top == ()


def test_scored_prompt_goes_on_to_its_answer_past_a_queue_that_filled_meanwhile(tmp_path: Path):
    path = write_gguf("qwen2", tmp_path / "tiny.gguf", dtype="Q8_0")
    ref = ModelRef("tiny", path, "gguf", "d" * 64, path.stat().st_size, "user", "", "", (path,))
    with open_served(ref, context=CONTEXT, threads=1, max_queued=1) as llm:
        scored, waiting = llm.start(replace(TEXT, prompt_logprobs=0)), llm.start(CHAT)
        scored.enter()
        while llm.stats.steps == 0:
            llm.pump(0.01)
        waiting.enter()
        with pytest.raises(Overloaded):
            llm.start(CHAT).enter()
        assert scored.take() == [] and scored.begin is not None
        got = finish(llm, scored, waiting)
        assert [len(ids(answers[0])) for answers in got] == [20, 20]


def test_prompt_that_fills_the_context_can_be_scored_but_not_answered(llm: LLM):
    job = Job(prompt=(40,) * CONTEXT, max_tokens=0, prompt_logprobs=0)
    assert answered(llm, job)[0][0].finish_reason == "length"
    with pytest.raises(ContextOverflow):
        llm.start(replace(job, max_tokens=1))


def test_logprobs_carry_the_bytes_of_their_tokens(llm: LLM):
    [chunks] = answered(llm, replace(TEXT, logprobs=2))
    entries = [p for c in chunks for p in c.logprobs]
    assert [p.token for p in entries] == llm.token_texts([p.token_id for p in entries])
    assert all(len(p.top_tokens) == 2 for p in entries)


# --- gaps ----------------------------------------------------------------------------------------------


@pytest.fixture
def filler(tmp_path: Path):
    """A model whose vocabulary has the tokens around a gap, in the place of its last three words."""
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    vocabulary = files.vocabulary()
    vocabulary[-3:] = marks
    keys = {
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if t in (*files.SPECIAL, *marks) else 1 for t in vocabulary],
        "tokenizer.ggml.merges": files.MERGES[:-3],
    }
    with served(write_gguf("qwen2", tmp_path / "fim.gguf", keys=keys), context=CONTEXT, threads=1) as loaded:
        yield loaded


def test_gap_is_laid_out_as_the_model_was_trained(filler: LLM):
    assert filler.info.can_fill
    begin = filler.start(replace(TEXT, prompt="ab", suffix="cd")).begin
    pre, suf, mid = (files.VOCAB - 3 + i for i in range(3))
    assert begin is not None
    assert begin.prompt_ids == (pre, *filler.tokenize("ab"), suf, *filler.tokenize("cd"), mid)


def test_other_files_stand_before_a_gap_as_far_as_there_is_room(filler: LLM):
    job = replace(TEXT, prompt="ab", suffix="cd", max_tokens=8)
    alone = filler.start(job).begin
    beside = filler.start(replace(job, beside=(("a.py", "xx"), ("b.py", "yy")))).begin
    assert alone is not None and beside is not None
    assert beside.prompt_ids[-len(alone.prompt_ids) :] == alone.prompt_ids
    others = filler.detokenize(beside.prompt_ids[: -len(alone.prompt_ids)])
    assert others.index("xx") < others.index("yy")
    full = filler.start(replace(job, beside=(("a.py", "z" * CONTEXT),))).begin
    assert full is not None and len(full.prompt_ids) <= CONTEXT - 8
    assert full.prompt_ids[-len(alone.prompt_ids) :] == alone.prompt_ids


def test_gap_s_own_marks_end_its_filling(filler: LLM):
    bias = {"temperature": 0, "logit_bias": {files.VOCAB - 3: 1e6}}
    assert answered(filler, replace(TEXT, suffix="x", sampling=bias))[0][-1].finish_reason == "stop"
    assert answered(filler, replace(TEXT, sampling=bias))[0][-1].finish_reason == "length"


def test_model_without_the_tokens_refuses_a_suffix(llm: LLM):
    assert not llm.info.can_fill
    with pytest.raises(UsageError, match="tiny cannot fill a gap"):
        llm.start(replace(TEXT, suffix="x"))


# --- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job, kind, part",
    [
        (Job(), UsageError, "either messages or a prompt"),
        (replace(CHAT, prompt="x"), UsageError, "either messages or a prompt"),
        (replace(TEXT, prompt=""), BadPrompt, "empty"),
        (replace(TEXT, prompt=()), UsageError, "no token ids"),
        (replace(TEXT, prompt=(10**9,)), UsageError, "token id 1000000000"),
        (replace(TEXT, n=0), UsageError, "n is 0; expected 1 to 128"),
        (replace(TEXT, n=129), UsageError, "n is 129"),
        (replace(TEXT, max_tokens=0), UsageError, "max_tokens is 0; expected 1 or more"),
        (replace(TEXT, max_tokens=-1, prompt_logprobs=1), UsageError, "max_tokens is -1; expected 0 or more"),
        (replace(TEXT, logprobs=21), UsageError, "logprobs is 21; expected 0 to 20"),
        (replace(TEXT, prompt_logprobs=21), UsageError, "prompt_logprobs is 21"),
        (replace(TEXT, stop=("x",) * 17), UsageError, "number of stop strings is 17; expected 0 to 16"),
        (replace(TEXT, stop=("x" * 1025,)), UsageError, "length of a stop string is 1,025"),
        (replace(TEXT, stop=("",)), UsageError, "stop string"),
        (replace(TEXT, tenant="x" * 257), UsageError, "length of tenant is 257"),
        (
            replace(CHAT, messages=(Message("user", "x"),) * 10_001),
            UsageError,
            "number of messages is 10,001",
        ),
        (replace(TEXT, timeout_s=float("nan")), UsageError, "timeout_s is nan"),
        (replace(TEXT, timeout_s=0.0), UsageError, r"timeout_s is 0\.0"),
        (replace(TEXT, resume=((1,), (1,))), UsageError, "number of answers resumed is 2; expected 0 to 1"),
        (replace(TEXT, sampling={"temprature": 1}), UsageError, "unknown option 'temprature'"),
        (replace(TEXT, sampling={"temperature": "hot"}), UsageError, "temperature is 'hot'"),
        (replace(TEXT, sampling={"logit_bias": [1]}), UsageError, "logit_bias is a list"),
        (
            replace(TEXT, sampling={"logit_bias": dict.fromkeys(range(1001), 1.0)}),
            UsageError,
            "number of logit_bias entries is 1,001",
        ),
        (replace(TEXT, think=True), UsageError, "think is for chats"),
        (replace(TEXT, prompt="x" * 20_000), ContextOverflow, "20,000 characters"),
        (replace(TEXT, prompt=(1,) * 257), ContextOverflow, "257 tokens"),
        (replace(TEXT, prompt=(1,) * 256), ContextOverflow, "256 tokens"),
    ],
)
def test_field_beyond_its_limit_is_refused_by_name(llm: LLM, job: Job, kind: type[FreeholdError], part: str):
    with pytest.raises(kind, match=part):
        llm.start(job)


def test_scores_of_a_long_prompt_are_limited(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freehold.run.local.jobs.MAX_SCORES", 100)
    with pytest.raises(UsageError, match=r"105 numbers; the limit is 100"):
        llm.start(Job(prompt=(1,) * 21, max_tokens=0, prompt_logprobs=4))


# --- what else a server asks ---------------------------------------------------------------------------


def test_info_tells_what_was_loaded(llm: LLM):
    info = llm.info
    assert (info.name, info.context, info.threads, info.can_chat) == ("tiny", CONTEXT, 1, True)
    assert info.kv_tokens >= CONTEXT and info.memory_bytes > info.kv_tokens * llm.cache_bytes_per_token
    assert info.vocab == files.VOCAB


def test_render_is_the_prompt_of_a_chat(llm: LLM):
    begin = llm.start(CHAT).begin
    assert begin is not None and tuple(llm.render(CHAT.messages)) == begin.prompt_ids


def test_template_describes_the_tokenizer(llm: LLM):
    described = llm.template()
    assert described["chat_template"] == files.CHAT_TEMPLATE
    assert (described["eos_token"], described["vocab_size"]) == ("<eos>", files.VOCAB)


@pytest.mark.heavy
@pytest.mark.model
def test_coder_fills_a_gap(model_path):
    job = Job(
        prompt="def add(a, b):\n    ",
        suffix="\n\nassert add(1, 2) == 3\n",
        max_tokens=24,
        sampling={"temperature": 0},
    )
    with served(model_path("qwen2.5-coder:0.5b"), context=512) as llm:
        [chunks] = answered(llm, job)
    assert text(chunks).strip().startswith("return a + b") and chunks[-1].finish_reason == "stop"


# --- a last message that stays open ------------------------------------------------------------------------


def test_answer_goes_on_from_the_last_message_and_repeats_none_of_it(llm: LLM):
    job = replace(CHAT, sampling={"temperature": 0})
    whole = answered(llm, job)[0]
    prompt = llm.start(job).begin.prompt_ids
    size = next(n for n in range(4, 20) if _same_again(llm, ids(whole)[:n]))
    said = llm.detokenize(ids(whole)[:size])
    begun = replace(job, messages=(*job.messages, Message("assistant", said)), turn="continue")
    assert llm.start(begun).begin.prompt_ids == (*prompt, *ids(whole)[:size])
    assert llm.count(begun) == len(prompt) + size
    assert text(answered(llm, replace(begun, max_tokens=20 - size))[0]) == text(whole)[len(said) :]


def _same_again(llm: LLM, some: tuple[int, ...]) -> bool:
    said = llm.detokenize(some)
    return bool(said) and said[-1] != "\ufffd" and tuple(llm.tokenize(said)) == some


def test_prompt_may_end_with_its_last_message(llm: LLM):
    bare = llm.start(replace(CHAT, turn="none")).begin.prompt_ids
    whole = llm.start(CHAT).begin.prompt_ids
    assert len(bare) < len(whole) and whole[: len(bare)] == bare
    assert llm.render(CHAT.messages, turn="none") == list(bare)


def test_only_a_chat_that_ends_with_the_assistant_is_continued(llm: LLM):
    with pytest.raises(UsageError, match="cannot be continued"):
        llm.start(replace(CHAT, turn="continue"))
    with pytest.raises(UsageError, match="only a chat"):
        llm.start(replace(TEXT, turn="continue"))


# --- templates of requests ---------------------------------------------------------------------------------


def test_a_job_s_own_template_renders_its_chat_and_no_other(llm: LLM):
    loud = "{% for m in messages %}<|im_start|>{{ m.content | upper }}{% endfor %}"
    asked = replace(CHAT, messages=(Message("user", "abc <|im_end|>"),), template=loud)
    begin = llm.start(asked).begin
    assert begin is not None
    spelled = [llm.token_texts([id])[0] for id in begin.prompt_ids]
    assert b"".join(spelled) == b"<|im_start|>ABC <|IM_END|>" and spelled[0] == b"<|im_start|>"
    other = llm.start(replace(asked, template="")).begin
    assert other is not None and other.prompt_ids == tuple(llm.render(asked.messages or ()))


def test_a_job_s_template_is_bounded_and_goes_with_chats_alone(llm: LLM):
    with pytest.raises(UsageError, match="length of template is 262,145"):
        llm.start(replace(CHAT, template="x" * ((1 << 18) + 1)))
    with pytest.raises(UsageError, match="template is for chats"):
        llm.start(replace(TEXT, template="x"))
    with pytest.raises(BadTemplate):
        llm.start(replace(CHAT, template="{{ unclosed"))
