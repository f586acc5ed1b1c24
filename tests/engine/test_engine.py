"""The engine gives the same tokens and bits however the work is cut, shared, interrupted or resumed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineClosed,
    FreeholdError,
    NonFiniteLogits,
    Overloaded,
    StepFailed,
    UsageError,
)
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, Generation, TokenOut
from freehold.run.engine import engine as engine_module
from freehold.run.engine.engine import ASSUMED_OPS
from freehold.run.engine.schedule import scheduler as preemption_module
from freehold.run.engine.schedule.budget import LOGIT_ROWS
from freehold.run.engine.scoring import logits, prefill, score
from freehold.run.engine.sequence import ScheduledChunk
from freehold.run.models.load import LoadedModel
from tests.engine.rig import Rig

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0, seed=7)
PROMPT = [17 * i % 250 + 5 for i in range(70)]


def ids_of(outs: Iterable[TokenOut]) -> list[int]:
    return [out.id for out in outs]


@pytest.fixture
def engine(model: LoadedModel) -> Engine:
    return Engine(model, context=256)


# --- the same bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "sliding"])
@pytest.mark.parametrize("max_num_batched_tokens", [1, 7, 33, 64])
def test_logits_are_the_same_bits_for_every_chunk_size(
    name: str, max_num_batched_tokens: int, request: pytest.FixtureRequest
):
    loaded: LoadedModel = request.getfixturevalue(name)
    whole = logits(Engine(loaded, context=128, max_num_batched_tokens=128), PROMPT)
    assert whole.shape == (len(PROMPT), loaded.vocab) and whole.dtype == np.float32
    assert np.array_equal(
        logits(Engine(loaded, context=128, max_num_batched_tokens=max_num_batched_tokens), PROMPT), whole
    )


def test_logits_are_the_same_bits_on_one_and_two_threads(model: LoadedModel):
    one, two = (Engine(model, context=128, threads=n) for n in (1, 2))
    assert (one.threads, two.threads) == (1, 2)
    assert np.array_equal(logits(one, PROMPT), logits(two, PROMPT))


def test_answer_after_a_prefix_hit_equals_one_without(model: LoadedModel, engine: Engine):
    first = engine.generate(PROMPT, WARM, max_tokens=20)
    longer = PROMPT + ids_of(first) + [9, 8, 7]
    again = engine.generate(longer, WARM, max_tokens=20, logprobs=3)
    fresh = Engine(model, context=256).generate(longer, WARM, max_tokens=20, logprobs=3)
    assert list(again) == list(fresh)
    assert again.usage.cached_tokens == len(PROMPT) + 19 and fresh.usage.cached_tokens == 0


def test_prompt_that_was_computed_whole_computes_its_last_token_again(engine: Engine):
    first = list(engine.generate(PROMPT, WARM, max_tokens=1, logprobs=5))
    second = engine.generate(PROMPT, WARM, max_tokens=1, logprobs=5)
    assert list(second) == first and second.usage.cached_tokens == len(PROMPT) - 1


def test_prompt_that_departs_early_reuses_only_what_agrees(model: LoadedModel, engine: Engine):
    list(engine.generate(PROMPT, WARM, max_tokens=5))
    other = PROMPT[:40] + [99] * 20
    hit = engine.generate(other, WARM, max_tokens=10)
    assert ids_of(hit) == ids_of(Engine(model, context=256).generate(other, WARM, max_tokens=10))
    assert hit.usage.cached_tokens == 40


def test_answers_to_many_threads_equal_lonely_ones(model: LoadedModel):
    prompts = [PROMPT[i : i + 20] for i in range(6)]
    alone = [ids_of(Engine(model, context=128).generate(p, WARM, max_tokens=15)) for p in prompts]
    shared = Engine(model, context=128)
    got: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        got[i] = ids_of(shared.generate(prompts[i], WARM, max_tokens=15))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert [got[i] for i in range(len(prompts))] == alone


# --- answers and their ends --------------------------------------------------------------------------


def test_greedy_tokens_are_the_argmax_of_the_logits(engine: Engine):
    made = ids_of(engine.generate(PROMPT, GREEDY, max_tokens=8))
    rows = logits(engine, PROMPT + made)
    assert made == rows[len(PROMPT) - 1 : -1].argmax(axis=1).tolist()


@pytest.mark.parametrize("params", [GREEDY, WARM, SamplingParams(temperature=0.6, seed=3)])
def test_tokens_the_plan_chose_are_those_chosen_from_logits(engine: Engine, params: SamplingParams):
    plain = ids_of(engine.generate(PROMPT, params, max_tokens=40))
    chosen = ids_of(engine.generate(PROMPT, params, max_tokens=40, logprobs=0))  # asks for all logits
    assert plain == chosen


def test_same_seed_gives_the_same_answer_and_another_seed_another(engine: Engine):
    answers = [ids_of(engine.generate(PROMPT, SamplingParams(seed=s), max_tokens=12)) for s in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_missing_seed_is_drawn_once_and_reported(engine: Engine):
    first = engine.generate(PROMPT, SamplingParams(), max_tokens=12)
    made = ids_of(first)
    assert made == ids_of(engine.generate(PROMPT, SamplingParams(seed=first.seed), max_tokens=12))


def test_stop_token_ends_the_answer_and_is_part_of_it(engine: Engine):
    free = ids_of(engine.generate(PROMPT, GREEDY, max_tokens=10))
    outs = list(engine.generate(PROMPT, GREEDY, max_tokens=10, stop_ids=[free[3]]))
    assert ids_of(outs) == free[: free.index(free[3]) + 1]
    assert [o.finish_reason for o in outs] == [None] * (len(outs) - 1) + ["stop"]


def test_max_tokens_ends_the_answer_with_length(engine: Engine):
    outs = list(engine.generate(PROMPT, GREEDY, max_tokens=4))
    assert len(outs) == 4 and outs[-1].finish_reason == "length"


def test_answer_that_fills_the_context_ends_with_length(model: LoadedModel):
    outs = list(Engine(model, context=80).generate(PROMPT, GREEDY))
    assert len(PROMPT) + len(outs) == 80 and outs[-1].finish_reason == "length"


def test_usage_counts_tokens_and_seconds(engine: Engine):
    answer = engine.generate(PROMPT, GREEDY, max_tokens=5)
    list(answer)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 5)
    assert answer.usage.prefill_s > 0 and answer.usage.decode_s > 0


def test_score_is_the_log_softmax_of_the_logits(engine: Engine):
    rows = logits(engine, PROMPT).astype(np.float64)
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    expected = logprobs[np.arange(len(PROMPT) - 1), PROMPT[1:]]
    scores = score(engine, PROMPT)
    assert scores.dtype == np.float32 and np.allclose(scores, expected, atol=1e-4)


def test_score_of_one_token_is_empty(engine: Engine):
    assert score(engine, [7]).shape == (0,)


def test_logprobs_are_of_the_models_own_softmax(engine: Engine):
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias={9: 5.0}, seed=1)
    out = next(engine.generate(PROMPT, params, max_tokens=1, logprobs=4))
    row = logits(engine, PROMPT)[-1].astype(np.float64)
    row -= np.log(np.exp(row).sum())
    assert out.logprob == pytest.approx(row[out.id], abs=1e-4)
    assert [i for i, _ in out.top] == np.argsort(-row, kind="stable")[:4].tolist()


# --- refusals ----------------------------------------------------------------------------------------


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(engine: Engine):
    with pytest.raises(
        ContextOverflow, match=r"prompt has 300 tokens; tiny is loaded with a context of 256"
    ) as error:
        engine.generate([5] * 300)
    assert "--context 320" in error.value.hint


def test_prompt_that_leaves_no_room_for_an_answer_is_refused(engine: Engine):
    with pytest.raises(ContextOverflow, match="answer included"):
        engine.generate([5] * 256)
    assert len(logits(engine, [5] * 256)) == 256


def test_empty_prompt_is_refused(engine: Engine):
    for ask in (Engine.generate, logits, score):
        with pytest.raises(UsageError, match="empty"):
            ask(engine, [])


@pytest.mark.parametrize("wrong", [-1, 256, 1 << 40])
def test_id_out_of_range_is_refused_by_value(engine: Engine, wrong: int):
    with pytest.raises(UsageError, match=str(wrong)):
        engine.generate([5, wrong])


def test_absurd_counts_are_refused(engine: Engine):
    wrong: list[dict[str, Any]] = [{"max_tokens": 0}, {"logprobs": -1}, {"logprobs": 10**6}]
    for options in wrong:
        with pytest.raises(UsageError):
            engine.generate(PROMPT, **options)


def test_damaged_weights_end_in_a_named_error_with_the_position(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    engine = Engine(model, context=256)
    assert engine._runner is not None
    run = engine._runner.run
    monkeypatch.setattr(
        engine._runner, "run", lambda batch: [rows * np.float32("nan") for rows in run(batch, choose=False)]
    )
    with pytest.raises(NonFiniteLogits, match="position 70"):
        list(engine.generate(PROMPT))
    with pytest.raises(NonFiniteLogits):
        logits(engine, PROMPT)
    assert engine.free_blocks == 8


# --- what happens to one happens to no other -----------------------------------------------------------


def ended_alone(engine: Engine, damage: Callable[[], None], error: type[FreeholdError]) -> FreeholdError:
    """Run three answers, the second of which comes to harm; the others are as they are alone. Return its error."""
    fresh = Engine(engine.model, context=256)
    alone = [ids_of(fresh.generate(PROMPT[i:], WARM, max_tokens=12)) for i in range(3)]
    damage()
    running = [engine.generate(PROMPT[i:], WARM, max_tokens=12) for i in range(3)]
    for answer in running:
        answer.start()
    got: list[list[int]] = [[], [], []]
    failures: list[FreeholdError] = []
    while not all(answer.done for answer in running):
        engine.pump(0.0)
        for answer, ids in zip(running, got, strict=True):
            try:
                ids += ids_of(answer.take())
            except error as e:
                failures.append(e)
    assert [got[0], got[2]] == [alone[0], alone[2]] and len(failures) == 1
    assert got[1] == alone[1][: len(got[1])] and len(got[1]) < 12
    assert engine.stats().blocks_live == 0
    return failures[0]


def test_error_in_choosing_one_answers_token_ends_that_answer_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    choose = engine_module.choose

    def broken(logits, history, *rest):  # type: ignore[no-untyped-def]
        if history[0] == PROMPT[1] and len(history) == len(PROMPT) + 4:
            raise ZeroDivisionError("a bug of ours")
        return choose(logits, history, *rest)

    error = ended_alone(engine, lambda: monkeypatch.setattr(engine_module, "choose", broken), StepFailed)
    assert "ZeroDivisionError: a bug of ours" in error.message


def test_logits_that_are_not_finite_end_one_answer_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    assert engine._runner is not None
    run = engine._runner.run

    def damaged(batch: list[ScheduledChunk]):
        def harmed(chunk: ScheduledChunk) -> bool:
            return chunk.seq.request.prompt[0] == PROMPT[1] and chunk.seq.generated == 3

        out = run(batch, choose=False)
        return [
            rows * np.float32("nan") if harmed(chunk) else rows
            for chunk, rows in zip(batch, out, strict=True)
        ]

    error = ended_alone(engine, lambda: monkeypatch.setattr(engine._runner, "run", damaged), NonFiniteLogits)
    assert "position 72" in error.message


def test_native_step_that_fails_ends_its_answers_with_a_name_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    expected = ids_of(Engine(engine.model, context=256).generate(PROMPT, WARM, max_tokens=6))
    assert engine._runner is not None
    run, calls = engine._runner.run, []

    def failing(batch: list[ScheduledChunk]):
        calls.append(len(batch))
        if len(calls) == 3:
            raise RuntimeError("native trouble")
        return run(batch)

    monkeypatch.setattr(engine._runner, "run", failing)
    answer = engine.generate(PROMPT, WARM, max_tokens=6)
    with pytest.raises(StepFailed, match="a step with 1 requests failed: RuntimeError: native trouble"):
        list(answer)
    assert engine.stats().blocks_live == 0
    assert ids_of(engine.generate(PROMPT, WARM, max_tokens=6)) == expected


def test_sink_that_fails_ends_its_prefill_alone(engine: Engine):
    def broken(rows: np.ndarray) -> None:
        raise KeyError("sink")

    scored, answer = prefill(engine, PROMPT, broken), engine.generate(PROMPT, WARM, max_tokens=4)
    scored.start()
    assert len(list(answer)) == 4
    with pytest.raises(StepFailed, match="KeyError"):
        scored.take()


# --- a served engine ---------------------------------------------------------------------------------


def pumped(engine: Engine, running: list[Generation]) -> list[list[int]]:
    """Start them and pump until all have ended."""
    got: list[list[int]] = [[] for _ in running]
    for answer in running:
        answer.start()
    while not all(answer.done for answer in running):
        engine.pump(0.01)
        for answer, ids in zip(running, got, strict=True):
            ids += ids_of(answer.take())
    return got


def test_answers_to_one_prompt_draw_with_seeds_that_count_up(model: LoadedModel, engine: Engine):
    many = pumped(engine, engine.generate_many(PROMPT, 4, WARM, max_tokens=12))
    seeds = [SamplingParams(temperature=1.0, seed=7 + i) for i in range(4)]
    fresh = Engine(model, context=256)
    assert many == [ids_of(fresh.generate(PROMPT, params, max_tokens=12)) for params in seeds]
    assert engine.stats().cached_tokens == 3 * (len(PROMPT) - 1) and engine.stats().blocks_live == 0


def test_answer_whose_log_already_ends_it_is_done_at_once(engine: Engine):
    whole = list(engine.generate(PROMPT, WARM, max_tokens=6))
    again = engine.generate(PROMPT, WARM, max_tokens=6, resume=ids_of(whole))
    again.start()
    assert again.done and again.take() == [] and again.finish_reason == "length"
    stopped = engine.generate(PROMPT, WARM, stop_ids=[whole[2].id], resume=ids_of(whole[:3]))
    assert list(stopped) == [] and stopped.finish_reason == "stop"


def test_resumed_answer_reads_its_log_with_the_prompt_and_counts_only_its_own_tokens_as_decoded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 1.0  # so that every step takes a second
        return now

    whole = list(engine.generate(PROMPT, WARM, max_tokens=6))
    monkeypatch.setattr(time, "perf_counter", perf_counter)
    for made, prefill_s, decode_s in [(0, 1, 5), (4, 1, 1), (5, 1, 0)]:
        fresh = Engine(engine.model, context=256, speculate=False)
        rest = fresh.generate(PROMPT, WARM, max_tokens=6, resume=ids_of(whole[:made]))
        assert ids_of(rest) == ids_of(whole[made:])
        usage = rest.usage
        assert (usage.prefill_s, usage.decode_s, usage.resumed_tokens) == (prefill_s, decode_s, made)
        assert (usage.prefill_tok_s, usage.decode_tok_s) == (len(PROMPT) + made, 1.0 if decode_s else 0.0)


def test_full_queue_is_refused_with_the_wait_and_what_was_let_in_ends(model: LoadedModel):
    engine = Engine(model, context=256, max_queued=2, max_queued_tokens=1000)
    running = [engine.generate(PROMPT, WARM, max_tokens=3) for _ in range(3)]
    running[0].start()
    running[1].start()
    refusal = r"waiting requests: 2, with 140 tokens; the limit is 2 requests$"
    with pytest.raises(Overloaded, match=refusal) as error:
        running[2].start()
    assert error.value.wait_s == pytest.approx(140 * 2 * model.weights_per_token / ASSUMED_OPS)
    assert f"about {error.value.wait_s:.1f} s" in error.value.hint
    assert [len(ids) for ids in pumped(engine, running[:2])] == [3, 3]
    assert len(list(running[2])) == 3


def test_full_queue_refuses_no_request_that_an_engine_that_died_had_admitted(model: LoadedModel):
    engine = Engine(model, context=256, max_queued=1)
    fresh = engine.generate(PROMPT, WARM, max_tokens=3)
    fresh.start()
    again = engine.generate_many(PROMPT, 2, WARM, max_tokens=3, resume=[[5], []], admitted=True)
    for answer in again:
        answer.start()
    assert [len(ids) for ids in pumped(engine, [fresh, *again])] == [3, 2, 3]


def test_queue_is_limited_by_tokens_too_but_one_request_always_enters(model: LoadedModel):
    engine = Engine(model, context=256, max_queued_tokens=100)
    first, second = (engine.generate([9] * 150, WARM, max_tokens=2) for _ in range(2))
    first.start()
    with pytest.raises(Overloaded):
        second.start()
    assert len(list(first)) == 2


def test_time_limit_ends_an_answer_and_frees_its_blocks(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    answer = engine.generate(PROMPT, WARM, deadline_s=600.0)
    next(answer)
    clock = engine._scheduler._clock
    monkeypatch.setattr(engine._scheduler, "_clock", lambda: clock() + 600.0)
    with pytest.raises(DeadlineExceeded, match=r"after [0-9]+ tokens"):
        for _ in answer:
            pass
    assert engine.stats().blocks_live == 0
    assert engine._speculation is not None and not engine._speculation._drafts
    monkeypatch.setattr(engine._scheduler.wait, "seconds", lambda request, entered: 100.0)
    with pytest.raises(DeadlineExceeded, match="the wait is about 100"):
        engine.generate(PROMPT, WARM, deadline_s=5.0).start()


def test_batch_work_in_the_queue_refuses_no_request_that_goes_before_it(model: LoadedModel):
    engine = Engine(model, context=256, max_queued=2)
    running = [engine.generate(PROMPT, WARM, max_tokens=3, priority="batch") for _ in range(3)]
    running[0].start()
    running[1].start()
    with pytest.raises(Overloaded):
        running[2].start()
    urgent = engine.generate(PROMPT, WARM, max_tokens=3)
    urgent.start()
    assert [len(ids) for ids in pumped(engine, [*running[:2], urgent])] == [3, 3, 3]


def test_absurd_priorities_and_time_limits_are_refused(engine: Engine):
    wrong: list[dict[str, Any]] = [{"priority": "urgent"}, {"deadline_s": 0.0}, {"deadline_s": float("nan")}]
    for options in wrong:
        with pytest.raises(UsageError):
            engine.generate(PROMPT, **options)
    with pytest.raises(UsageError, match="n is 0"):
        engine.generate_many(PROMPT, 0)


def test_prefills_share_steps_and_deliver_all_logits_in_order(engine: Engine):
    rows: list[np.ndarray] = []
    scored, answer = prefill(engine, PROMPT, rows.append), engine.generate(PROMPT, WARM, max_tokens=5)
    scored.start()
    answer.start()
    while not (scored.done and answer.done):
        engine.pump(0.0)
        answer.take()
        assert scored.take() == []
    assert np.array_equal(np.concatenate(rows), logits(engine, PROMPT))


def test_pump_without_work_waits_for_some_and_is_woken_by_it(engine: Engine):
    answer = engine.generate(PROMPT, WARM, max_tokens=1)
    waker = threading.Timer(0.05, answer.start)
    waker.start()
    while not engine.pump(60.0):
        pass
    waker.join()
    assert len(answer.take()) == 1


def test_engine_says_it_is_idle_as_soon_as_the_last_answer_ends(engine: Engine):
    left = engine.generate(PROMPT[::-1], WARM, max_tokens=100)
    left.start()
    answers = engine.generate_many(PROMPT, 3, WARM, max_tokens=12)
    for answer in answers:
        answer.start()
    while not all(answer.done for answer in answers):
        assert engine.pump(0.0)
        if answers[0].take() and not left.done:
            left.close()
        for answer in answers:
            answer.take()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_live) == (0, 0, 0)


def test_stats_count_what_was_done(engine: Engine):
    pumped(engine, [engine.generate(PROMPT, WARM, max_tokens=6)])
    pumped(engine, [engine.generate(PROMPT, WARM, max_tokens=6)])
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (140, 69, 12)
    assert stats.computed_tokens + stats.cached_tokens == stats.prompt_tokens
    assert stats.steps == sum(stats.step_sizes) > 0 and stats.progress_at > 0 and stats.blocks == 8
    assert stats.step_sizes[0] >= 10  # steps of the newest token alone
    assert (stats.running, stats.waiting, stats.blocks_live) == (0, 0, 0) and stats.blocks_cached > 0


def test_a_prompt_counts_by_its_source_once_it_is_read_and_never_less(engine: Engine):
    list(engine.generate(PROMPT, WARM, max_tokens=2))
    before = engine.stats()
    engine.generate([*PROMPT, 7], WARM, max_tokens=2).close()
    assert engine.stats().computed_tokens == before.computed_tokens
    answer = engine.generate(PROMPT, WARM, max_tokens=9)
    next(answer)
    after = engine.stats()
    assert after.cached_tokens - before.cached_tokens == answer.usage.cached_tokens > 0
    assert after.computed_tokens - before.computed_tokens == len(PROMPT) - answer.usage.cached_tokens


# --- ends from outside -------------------------------------------------------------------------------


def test_closing_an_answer_frees_its_blocks(engine: Engine):
    answer = engine.generate(PROMPT, GREEDY)
    next(answer)
    assert engine.free_blocks == 5
    answer.close()
    assert engine.free_blocks == 8 and list(answer) == []


def test_dropped_answer_frees_its_blocks(engine: Engine):
    next(engine.generate(PROMPT, GREEDY))
    assert engine.free_blocks == 8


def test_interrupt_ends_the_answer_and_leaves_the_engine_usable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    expected = ids_of(engine.generate(PROMPT, WARM, max_tokens=6))
    answer = engine.generate(PROMPT, WARM, max_tokens=6)
    next(answer)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "choose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(answer)
    assert engine.free_blocks == 8
    assert ids_of(engine.generate(PROMPT, WARM, max_tokens=6)) == expected


def test_closed_engine_refuses_work_and_running_answers(model: LoadedModel):
    with Engine(model, context=256) as engine:
        answer = engine.generate(PROMPT, GREEDY)
        next(answer)
    with pytest.raises(EngineClosed):
        list(answer)
    with pytest.raises(EngineClosed):
        engine.generate(PROMPT)
    engine.close()


def test_fork_of_an_engine_refuses_work(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getpid", lambda: engine._lifetime.pid + 1)
    with pytest.raises(EngineClosed, match="fork"):
        engine.generate(PROMPT)


def test_answer_whose_reader_stalls_gives_its_blocks_to_another(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preemption_module, "STALL_S", 0.0)
    engine = Engine(model, context=96)
    slow = engine.generate(PROMPT, WARM, max_tokens=10)
    first = next(slow)
    quick = ids_of(engine.generate(PROMPT[::-1], WARM, max_tokens=10))
    assert len(quick) == 10
    rest = ids_of(slow)
    assert [first.id, *rest] == ids_of(engine.generate(PROMPT, WARM, max_tokens=10))


# --- memory ------------------------------------------------------------------------------------------


def test_step_has_few_rows_of_logits_however_many_request_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    assert engine._runner is not None
    most, run = 0, engine._runner.run

    def counted(batch: list[ScheduledChunk], choose: bool = True) -> Any:
        nonlocal most
        most = max(most, sum(len(chunk.logit_rows) for chunk in batch))
        return run(batch, choose)

    monkeypatch.setattr(engine._runner, "run", counted)
    got: list[list[np.ndarray]] = [[] for _ in range(5)]
    scored = [prefill(engine, [i, *PROMPT], rows.append) for i, rows in enumerate(got)]
    answer = engine.generate([9] * 100, WARM, max_tokens=3)
    pumped(engine, [*scored, answer])
    assert most <= LOGIT_ROWS + 1
    for i, rows in enumerate(got):
        assert np.array_equal(np.concatenate(rows), logits(engine, [i, *PROMPT]))


def test_logits_take_the_place_of_those_before_unless_a_caller_holds_them(model: LoadedModel):
    rig = Rig(model, 8)
    held = rig.alone(PROMPT)
    kept = held.copy()
    other = rig.alone(PROMPT[1:])
    assert np.array_equal(held, kept) and not np.array_equal(held, other)
    place = other.__array_interface__["data"][0]
    del other
    for _ in range(4):
        assert rig.alone(PROMPT).__array_interface__["data"][0] == place
    assert np.array_equal(rig.alone(PROMPT), kept)
