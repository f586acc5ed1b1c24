"""Speculation changes no token: drafts are verified by equality, and only their length is a matter of cost."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from freehold.base.errors import CapacityExceeded, NonFiniteLogits, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, TokenOut
from freehold.run.engine.cache.blocks import BlockManager
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.runner import ModelRunner
from freehold.run.engine.schedule.budget import StepCost
from freehold.run.engine.schedule.scheduler import Scheduler
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence
from freehold.run.engine.speculate import draft_model as draft_module
from freehold.run.engine.speculate import speculation as speculation_module
from freehold.run.engine.speculate.draft import NgramMatch
from freehold.run.engine.speculate.speculation import Speculation
from freehold.run.models.load import LoadedModel, load_model
from tests.engine.pumping import pumped
from tests.vectors.files import write_gguf

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0, seed=7)
PROMPT = [17 * i % 250 + 5 for i in range(40)]
PENALTIES = replace(WARM, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)


def plain(model: LoadedModel, context: int = 160) -> Engine:
    return Engine(model, context=context, speculate=False)


def ids_of(outs: Iterable[TokenOut]) -> list[int]:
    return [out.id for out in outs]


class Script:
    """A lookup that drafts from a list: what the answer will be, or anything else."""

    def __init__(self, tokens: list[int], script: list[int]) -> None:
        self._tokens, self._script = tokens, script

    def find(self, most: int) -> NgramMatch | None:
        after = self._script[len(self._tokens) :][:most]
        return NgramMatch(64, tuple(after)) if after else None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Make every engine draft these tokens, five at a time, whatever they cost."""

    def drafting(*scripts: list[int]) -> None:
        def lookup(tokens: list[int]) -> Script:
            return Script(tokens, next(s for s in scripts if s[:20] == tokens[:20]))

        monkeypatch.setattr(speculation_module, "NgramLookup", lookup)
        eager(monkeypatch)

    return drafting


def eager(patch: pytest.MonkeyPatch, count: int = 5) -> None:
    """Verify `count` draft tokens a step from the first, as many as there are."""

    def some(gains: list[float], plain: int, *_: object) -> int:
        return min(len(gains), plain * count)

    patch.setattr(speculation_module, "best_extra", some)
    patch.setattr(speculation_module, "BASE_SAMPLES", 1)
    patch.setattr(speculation_module, "MODEL_SAMPLES", 1)
    patch.setattr(speculation_module, "TRICKLE", 100.0)


# --- the same tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [GREEDY, WARM, PENALTIES, replace(WARM, top_p=0.9, top_k=40)])
@pytest.mark.parametrize("logprobs", [None, 3])
def test_right_drafts_save_steps_and_change_nothing(
    model: LoadedModel, script, params: SamplingParams, logprobs: int | None
):
    answer = list(plain(model).generate(PROMPT, params, max_tokens=60, logprobs=logprobs))
    script(PROMPT + ids_of(answer))
    engine = Engine(model, context=160)
    job = engine.generate(PROMPT, params, max_tokens=60, logprobs=logprobs)
    assert list(job) == answer
    assert job.usage.accepted_tokens == job.usage.drafted_tokens >= 40
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens == job.usage.drafted_tokens == sum(stats.accepted_at)
    assert stats.accepted_at[0] == stats.drafts


def test_wrong_drafts_change_nothing_either(model: LoadedModel, script):
    answer = list(plain(model).generate(PROMPT, WARM, max_tokens=60, logprobs=2))
    script(PROMPT + [(out.id + 1) % 250 for out in answer])
    engine = Engine(model, context=160)
    job = engine.generate(PROMPT, WARM, max_tokens=60, logprobs=2)
    assert list(job) == answer
    assert job.usage.accepted_tokens == 0 < job.usage.drafted_tokens
    assert engine.stats().accepted_at == () and engine.stats().drafts > 0


@pytest.mark.parametrize("kind", ["sliding", "hybrid"])
@pytest.mark.parametrize("wrong", [2, 3, 7])
def test_drafts_right_in_part_change_nothing_behind_a_window_or_a_state(
    kind: str, wrong: int, request: pytest.FixtureRequest, script
):
    """Of a hybrid's draft the accepted tokens are computed again: the state before the draft is what is left."""
    loaded: LoadedModel = request.getfixturevalue(kind)
    answer = list(plain(loaded).generate(PROMPT, WARM, max_tokens=60, logprobs=1))
    script(PROMPT + [out.id if i % wrong else 5 for i, out in enumerate(answer)])
    job = Engine(loaded, context=160).generate(PROMPT, WARM, max_tokens=60, logprobs=1)
    assert list(job) == answer
    assert 0 < job.usage.accepted_tokens < job.usage.drafted_tokens


def test_right_drafts_save_steps_of_a_hybrid_too(hybrid: LoadedModel, script):
    answer = list(plain(hybrid).generate(PROMPT, WARM, max_tokens=60, logprobs=1))
    script(PROMPT + ids_of(answer))
    engine = Engine(hybrid, context=160)
    job = engine.generate(PROMPT, WARM, max_tokens=60, logprobs=1)
    assert list(job) == answer
    assert job.usage.accepted_tokens == job.usage.drafted_tokens >= 40 and engine.stats().steps < 25


def test_stop_token_in_a_draft_ends_the_answer_there(model: LoadedModel, script):
    free = ids_of(plain(model).generate(PROMPT, WARM, max_tokens=40))
    stop = next(t for i, t in enumerate(free) if i > 10 and t not in free[:i])
    script(PROMPT + free)
    engine = Engine(model, context=160)
    outs = list(engine.generate(PROMPT, WARM, max_tokens=40, stop_ids=[stop]))
    assert ids_of(outs) == free[: free.index(stop) + 1] and outs[-1].finish_reason == "stop"
    again = engine.generate(PROMPT + ids_of(outs) + [9], WARM, max_tokens=5)
    ids = ids_of(again)
    assert again.usage.cached_tokens == len(PROMPT) + len(outs) - 1
    assert ids == ids_of(plain(model).generate(PROMPT + ids_of(outs) + [9], WARM, max_tokens=5))


@pytest.mark.parametrize("most", [1, 2, 5, 6, 7, 13])
def test_drafts_never_exceed_max_tokens(model: LoadedModel, script, most: int):
    free = ids_of(plain(model).generate(PROMPT, WARM, max_tokens=40))
    script(PROMPT + free)
    outs = list(Engine(model, context=160).generate(PROMPT, WARM, max_tokens=most))
    assert ids_of(outs) == free[:most] and outs[-1].finish_reason == "length"


def test_drafts_never_exceed_the_context(model: LoadedModel, script):
    free = ids_of(plain(model).generate(PROMPT, WARM))
    assert len(PROMPT) + len(free) == 160
    script(PROMPT + free + [5] * 10)
    assert ids_of(Engine(model, context=160).generate(PROMPT, WARM)) == free


def test_tokens_made_and_not_taken_are_not_counted(model: LoadedModel, script):
    free = ids_of(plain(model).generate(PROMPT, WARM, max_tokens=40))
    script(PROMPT + free)
    job = Engine(model, context=160).generate(PROMPT, WARM, max_tokens=40)
    for taken in range(1, 12):
        next(job)
        assert job.usage.completion_tokens == taken


def test_closing_between_tokens_of_one_step_frees_the_blocks(model: LoadedModel, script):
    free = ids_of(plain(model).generate(PROMPT, WARM, max_tokens=40))
    script(PROMPT + free)
    engine = Engine(model, context=160)
    job = engine.generate(PROMPT, WARM, max_tokens=40)
    for _ in range(4):
        next(job)
    job.close()
    assert engine.free_blocks == 5 and list(job) == []
    assert engine._speculation is not None and not engine._speculation._drafts


def test_damage_behind_an_accepted_token_is_reported_after_the_tokens_before_it(
    model: LoadedModel, script, monkeypatch: pytest.MonkeyPatch
):
    free = ids_of(plain(model).generate(PROMPT, WARM, max_tokens=40))
    script(PROMPT + free)
    engine = Engine(model, context=160)
    assert engine._runner is not None
    run = engine._runner.run

    def damaged(batch: list[ScheduledChunk]):
        out = run(batch, choose=False)
        if batch[0].draft:
            out[0][3:] = float("nan")
        return out

    monkeypatch.setattr(engine._runner, "run", damaged)
    job = engine.generate(PROMPT, WARM, max_tokens=40)
    assert [next(job).id for _ in range(5)] == free[:5]
    with pytest.raises(NonFiniteLogits, match=f"position {len(PROMPT) + 5}"):
        next(job)
    assert engine.free_blocks == 5


# --- a draft model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Another model of the same tokens."""
    path = write_gguf("qwen2", tmp_path_factory.mktemp("draft") / "draft.gguf", dtype="Q4_0")
    return load_model(path, threads=1, name="tiny-draft")


@pytest.mark.parametrize("params", [GREEDY, WARM, PENALTIES])
def test_draft_model_changes_nothing(
    model: LoadedModel, other: LoadedModel, params: SamplingParams, monkeypatch: pytest.MonkeyPatch
):
    answer = list(plain(model).generate(PROMPT, params, max_tokens=80))
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    eager(monkeypatch)
    monkeypatch.setattr(Speculation, "_price", lambda *_: 0.0)
    engine = Engine(model, context=160, draft=other)
    job = engine.generate(PROMPT, params, max_tokens=80)
    assert list(job) == answer
    assert 0 < job.usage.accepted_tokens < job.usage.drafted_tokens


@pytest.mark.parametrize("kind", ["model", "hybrid"])
def test_model_that_drafts_for_itself_is_always_right(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    loaded: LoadedModel = request.getfixturevalue(kind)
    answer = list(plain(loaded).generate(PROMPT, PENALTIES, max_tokens=80))
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    eager(monkeypatch, 16)
    monkeypatch.setattr(Speculation, "_price", lambda *_: 0.0)
    job = Engine(loaded, context=160, draft=loaded).generate(PROMPT, PENALTIES, max_tokens=80)
    assert list(job) == answer
    assert job.usage.accepted_tokens == job.usage.drafted_tokens > 40


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_hybrid_that_drafts_with_few_slots_drafts_less_and_changes_nothing(
    hybrid: LoadedModel, slots: int, monkeypatch: pytest.MonkeyPatch
):
    """One state is a shadow's, another the scout's it drafts in; without that a draft has one token."""
    prompts = [PROMPT, PROMPT[10:]]
    alone = [list(plain(hybrid).generate(prompt, WARM, max_tokens=40)) for prompt in prompts]
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    eager(monkeypatch)
    monkeypatch.setattr(Speculation, "_price", lambda *_: 0.0)
    engine = Engine(hybrid, context=160, draft=hybrid)
    assert engine._speculation is not None and engine._speculation._draft_model is not None
    draft_model = engine._speculation._draft_model
    draft_model._blocks = BlockManager(draft_model._blocks.count, [Recurrent(slots)])
    draft_model._runner = ModelRunner(hybrid, draft_model._blocks, 64, hybrid.threads)
    jobs = [engine.generate(prompt, WARM, max_tokens=40) for prompt in prompts]
    assert pumped(engine, jobs) == alone
    assert engine.stats().drafted_tokens > 0
    assert draft_model._blocks.stats["states_live"] == 0


def test_damaged_draft_model_is_given_up_and_changes_nothing(
    model: LoadedModel, other: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    answer = list(plain(model).generate(PROMPT, WARM, max_tokens=40))
    engine = Engine(model, context=160, draft=other)
    speculation = engine._speculation
    assert speculation is not None and speculation._draft_model is not None
    run = speculation._draft_model._runner.run
    monkeypatch.setattr(
        speculation._draft_model._runner,
        "run",
        lambda batch, choose: [rows * np.float32("nan") for rows in run(batch, choose)],
    )
    eager(monkeypatch)
    monkeypatch.setattr(Speculation, "_worth_starting", lambda *_: [0])
    assert list(engine.generate(PROMPT, WARM, max_tokens=40)) == answer
    assert speculation._draft_model is None


def test_closing_frees_both_caches(model: LoadedModel, other: LoadedModel):
    engine = Engine(model, context=160, draft=other)
    assert engine._speculation is not None and engine._speculation._draft_model is not None
    caches = [weakref.ref(r) for r in (engine._runner, engine._speculation._draft_model._runner)]
    engine.close()
    assert [cache() for cache in caches] == [None, None]


def test_draft_model_of_other_tokens_is_refused_with_both_counts(model: LoadedModel):
    with pytest.raises(UsageError, match=r"has 255 tokens and tiny 256"):
        Engine(model, context=160, draft=replace(model, tokens=255))


def test_draft_model_whose_cache_does_not_fit_is_refused(
    model: LoadedModel, other: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(draft_module, "available_bytes", lambda: 1000)
    with pytest.raises(CapacityExceeded, match=r"tiny-draft needs .* to draft"):
        Engine(model, context=160, draft=other)


# --- how many ----------------------------------------------------------------------------------------


def decoding(tokens: list[int], made: int = 1) -> Sequence:
    request = Request(tuple(tokens[:-made]), GREEDY, 0, 200)
    seq = Sequence(request, list(tokens))
    seq.num_computed_tokens = len(tokens) - 1
    return seq


def run(
    speculation: Speculation,
    seqs: list[Sequence],
    what: list[int],
    seconds: float,
    steps: int,
    longest_s: float = inf,
) -> list[int]:
    """Let sequences become `what` in steps of so many seconds; return the draft tokens in each.

    `longest_s`: what a step may take that several clients share.
    """
    scheduler = Scheduler(BlockManager(100), 64, lambda: 0.0)
    speculation.cost = scheduler.budget.cost
    for seq in seqs:
        scheduler.add(seq)
    counts = []
    for _ in range(steps):
        batch = scheduler.schedule()
        scheduler.budget.longest_s = longest_s
        batch = speculation.extend(batch, scheduler)
        counts.append(sum(len(chunk.draft) for chunk in batch))
        scheduler.learn(batch, seconds)
        for chunk in batch:
            for drafted in (*chunk.draft, None):
                chunk.seq.tokens.append(what[len(chunk.seq.tokens)])
                if chunk.seq.tokens[-1] != drafted:
                    break
            chunk.seq.num_computed_tokens = len(chunk.seq.tokens) - 1
        speculation.learn(batch)
    return counts


def test_text_that_repeats_itself_gets_long_drafts():
    text = list(range(100, 170)) * 4
    assert max(run(Speculation(StepCost()), [decoding(text[:71])], text, 1.0, 12)) > 20


def test_drafts_do_not_lengthen_a_step_beyond_what_clients_share():
    text = list(range(100, 170)) * 4
    assert max(run(Speculation(StepCost()), [decoding(text[:71])], text, 1.0, 12, longest_s=1.5)) == 0


def test_text_that_never_repeats_is_decoded_plainly():
    text = list(range(1000))
    assert run(Speculation(StepCost()), [decoding(text[:50])], text, 1.0, 100) == [0] * 100


def test_drafts_that_keep_failing_cost_little():
    """Every pair comes again with another end; whatever the evidence says, losses are bounded."""
    text = [t for i in range(300) for t in (1, 2, 1000 + i)]
    counts = run(Speculation(StepCost()), [decoding(text[:51])], text, 1.0, 200)
    assert sum(map(bool, counts[-100:])) <= 60


def test_step_that_measures_answers_alone_has_no_draft():
    """It leaves waiting prompts out to measure what newest tokens take, which a draft would add to."""
    speculation, scheduler = Speculation(StepCost()), Scheduler(BlockManager(100), 64, lambda: 0.0)
    speculation.cost = scheduler.budget.cost
    text = list(range(100, 120)) * 5
    scheduler.add(decoding(text))
    run_alone, measured = 4, 0
    for step in range(40):
        if step == run_alone:
            scheduler.add(Sequence(Request(tuple(range(2500)), GREEDY, 0, 1), list(range(2500))))
        batch = speculation.extend(scheduler.schedule(), scheduler)
        drafted = sum(len(chunk.draft) for chunk in batch)
        if scheduler.budget.measuring:
            measured += 1
            assert not drafted
        scheduler.learn(batch, 1.0)
        for chunk in batch:
            chunk.seq.num_computed_tokens = chunk.first + chunk.count
            if chunk.decodes:
                chunk.seq.tokens.append(text[len(chunk.seq.tokens) % 20])
                chunk.seq.num_computed_tokens = len(chunk.seq.tokens) - 1
        speculation.learn(batch)
    assert measured
