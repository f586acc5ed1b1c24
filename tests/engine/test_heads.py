"""Drafts by a model's own head change no token; what the head reads survives rejection, preemption, forks and hits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.schedule.budget import StepCost
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence
from freehold.run.engine.speculate import head as head_module
from freehold.run.engine.speculate import speculation as speculation_module
from freehold.run.engine.speculate.head import HeadDrafts
from freehold.run.engine.speculate.speculation import Speculation
from freehold.run.models.load import LoadedModel, load_model
from tests.engine.pumping import pumped
from tests.engine.test_speculation import GREEDY, PENALTIES, PROMPT, WARM, Script, eager
from tests.vectors.files import write_gguf

HEADS = ["qwen3_5-head", "glm4_moe-head", "deepseek_v3-head"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """Tiny models with heads."""
    folder: Path = tmp_path_factory.mktemp("heads")
    return {n: load_model(write_gguf(n, folder / f"{n}.gguf"), threads=1, name=n) for n in HEADS}


@pytest.fixture
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft with the head alone, three tokens at a time, whatever they cost."""
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    eager(monkeypatch, 3)
    monkeypatch.setattr(Speculation, "_price", lambda *_: 0.0)


def head_of(engine: Engine) -> HeadDrafts:
    assert engine._speculation is not None and isinstance(engine._speculation._source, HeadDrafts)
    return engine._speculation._source


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("params", [GREEDY, PENALTIES])
def test_head_changes_nothing(loaded, drafting, name: str, params: SamplingParams):
    model = loaded[name]
    plain = Engine(model, context=160, speculate=False).generate(PROMPT, params, max_tokens=60, logprobs=2)
    answer = list(plain)
    engine = Engine(model, context=160, head=True)
    job = engine.generate(PROMPT, params, max_tokens=60, logprobs=2)
    assert list(job) == answer
    assert job.usage.drafted_tokens > 20
    head = head_of(engine)
    assert not head._followers and len(head._free) == engine._blocks.count


def right(head: HeadDrafts, answers: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a head that computes draft what the answer to a prompt of this length will be."""
    advance = head.advance

    def known(seqs: list[Sequence]) -> list[tuple[int, float]]:
        drafted = advance(seqs)
        out = []
        for seq, (_, chance) in zip(seqs, drafted, strict=True):
            chain = head._followers[seq].chain
            whole = answers[len(seq.request.prompt)]
            at = len(seq.tokens) + len(chain) - 1
            chain[-1] = whole[at] if at < len(whole) else 5
            out.append((chain[-1], chance))
        return out

    monkeypatch.setattr(head, "advance", known)


@pytest.mark.parametrize("name", HEADS)
def test_head_that_is_right_saves_steps(loaded, drafting, name: str, monkeypatch: pytest.MonkeyPatch):
    model = loaded[name]
    answer = list(Engine(model, context=160, speculate=False).generate(PROMPT, WARM, max_tokens=60))
    engine = Engine(model, context=160)
    right(head_of(engine), {len(PROMPT): PROMPT + [out.id for out in answer]}, monkeypatch)
    job = engine.generate(PROMPT, WARM, max_tokens=60)
    assert list(job) == answer
    assert job.usage.accepted_tokens == job.usage.drafted_tokens >= 40 and engine.stats().steps < 25


@pytest.mark.parametrize("share", [1, 4])
@pytest.mark.parametrize("name", HEADS)
def test_head_drafts_what_it_drafts_over_the_whole_text(
    loaded, drafting, name: str, share: int, monkeypatch: pytest.MonkeyPatch
):
    """The rows it keeps of an answer, rejected drafts among them, are those of one pass over all tokens.

    With a share of the ids it drafts the best of those.
    """
    model = loaded[name]
    ids = model.tokens // share
    monkeypatch.setattr(HeadDrafts, "_reach", lambda *_: ids)
    engine = Engine(model, context=160, kv_type="f32")
    head = head_of(engine)
    drafts: dict[int, int] = {}
    advance = head.advance

    def noted(seqs: list[Sequence]) -> list[tuple[int, float]]:
        first = not head._followers[seqs[0]].chain
        out = advance(seqs)
        if first:
            drafts[len(seqs[0].tokens)] = out[0][0]
        return out

    head.advance = noted  # type: ignore[method-assign]
    answer = [out.id for out in engine.generate(PROMPT, GREEDY, max_tokens=50)]
    assert answer == [
        out.id
        for out in Engine(model, context=160, speculate=False, kv_type="f32").generate(
            PROMPT, GREEDY, max_tokens=50
        )
    ]
    whole = PROMPT + answer
    from tests.models.test_heads import drafted

    logits = drafted(model, np.array(whole, np.int32), [len(whole) - 1])
    assert len(drafts) > 10
    assert all(int(logits[at - 2, :ids].argmax()) == token for at, token in drafts.items())


def test_ids_to_choose_among_follow_the_text(loaded, monkeypatch: pytest.MonkeyPatch):
    """An eighth of the ids is read where the share of a text that it holds outweighs its bytes."""
    monkeypatch.setattr(head_module, "LEAST_IDS", 1)
    model = loaded["qwen3_5-head"]
    head = head_of(Engine(model, context=160))
    head._matrix_share = 0.4  # of a step, so that an eighth costs a twentieth
    eighth = -(-model.tokens // 8)
    follower, other = head_module._Follower(), head_module._Follower()
    assert head._reach(follower) == eighth
    head._count(follower, np.arange(300) % eighth)
    assert head._reach(follower) == eighth
    head._count(other, np.full(300, model.tokens - 1))
    assert head._reach(other) == model.tokens and head._reach(follower) == eighth
    for _ in range(10):  # old tokens weigh less and less
        head._count(follower, np.full(100, 3 * eighth))
    assert head._reach(follower) == -(-model.tokens * 4 // 8)


class Fixed(StepCost):
    """Costs that are not measured."""

    def __init__(self, first: float, more: float) -> None:
        super().__init__()
        self._first, self._more = first, more

    def count(self, tokens: int) -> int:
        return 100

    def seconds(self, tokens: int) -> float:
        return self._first + self._more * (tokens - 1)

    at_most = seconds


def priced(engine: Engine) -> Engine:
    """Let a step cost one second and 0.15 for each further row, and the head a tenth."""
    assert engine._speculation is not None
    engine._speculation.cost = Fixed(1.0, 0.15)
    head_of(engine)._costs = {ids: Fixed(0.1, 0.01) for ids in range(engine.model.tokens + 1)}
    return engine


def test_head_whose_drafts_are_refused_is_not_asked_by_later_answers(loaded, monkeypatch: pytest.MonkeyPatch):
    """What an answer may lose is lost once, not by each of many short ones."""
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    model = loaded["glm4_moe-head"]
    engine = priced(Engine(model, context=160))
    steps = []
    for seed in range(8):
        params = replace(WARM, seed=seed)
        answer = list(Engine(model, context=160, speculate=False).generate(PROMPT, params, max_tokens=40))
        wrong = [(out.id + 1) % 250 for out in answer]
        with pytest.MonkeyPatch.context() as patch:
            right(head_of(engine), {len(PROMPT): PROMPT + wrong}, patch)
            job = engine.generate(PROMPT, params, max_tokens=40)
            assert list(job) == answer
        steps.append(job.usage.drafted_tokens)
    assert steps[0] > 0 and sum(steps[1:]) <= 14  # 0.01 of 280 steps, at 0.25 each, and what the first left


def test_head_that_is_right_is_asked_by_its_price(loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speculation_module, "NgramLookup", lambda tokens: Script(tokens, []))
    model = loaded["glm4_moe-head"]
    answer = list(Engine(model, context=160, speculate=False).generate(PROMPT, WARM, max_tokens=60))
    engine = priced(Engine(model, context=160))
    right(head_of(engine), {len(PROMPT): PROMPT + [out.id for out in answer]}, monkeypatch)
    job = engine.generate(PROMPT, WARM, max_tokens=60)
    assert list(job) == answer
    assert engine.stats().steps < 30 and job.usage.accepted_tokens == job.usage.drafted_tokens


def test_rows_that_wait_long_are_cut_to_the_latest(loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head_module, "MOST_WAITING", 8)
    head = head_of(Engine(loaded["glm4_moe-head"], context=160))
    seq = Sequence(Request(tuple(range(10, 40)), GREEDY, 0, 60), list(range(10, 40)))
    for at in range(29, 60):
        seq.tokens.append(at % 50)
        head.keep(ScheduledChunk(seq, at, 1), range(1), np.full((1, 64), at, np.float32))
        assert head.missing(seq) <= 10
    follower = head._followers[seq]
    assert follower.next == 60 and follower.start + follower.waits == 60
    assert follower.joined()[:, 0].tolist() == list(range(follower.start, 60))


def test_long_prompt_keeps_its_last_rows_alone(loaded, drafting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head_module, "MOST_WAITING", 16)
    model = loaded["glm4_moe-head"]
    prompt = [17 * i % 250 + 5 for i in range(100)]
    answer = list(Engine(model, context=160, speculate=False).generate(prompt, WARM, max_tokens=30))
    engine = Engine(model, context=160, max_num_batched_tokens=32)
    job = engine.generate(prompt, WARM, max_tokens=30)
    assert list(job) == answer and job.usage.drafted_tokens > 0


def test_rows_that_were_missed_begin_again(loaded):
    """A prefix hit leaves no rows of the prompt's beginning; the head begins where rows come."""
    head = head_of(Engine(loaded["glm4_moe-head"], context=160))
    seq = Sequence(Request(tuple(range(10, 40)), GREEDY, 0, 20), list(range(10, 40)))
    rows = np.ones((5, 64), np.float32)
    seq.tokens.append(7)
    head.keep(ScheduledChunk(seq, 25, 5), range(5), rows)
    assert head.missing(seq) == 5 and head._followers[seq].start == 25
    assert head.follow(seq, 3) == 3
    head.keep(ScheduledChunk(seq, 40, 1), range(1), rows[:1])
    assert head.follow(seq, 3) == 0  # rows 30 to 39 never came
    head.forget(seq)
    assert len(head._free) == 5


def test_damaged_head_is_given_up_and_changes_nothing(loaded, drafting, monkeypatch: pytest.MonkeyPatch):
    model = loaded["glm4_moe-head"]
    answer = list(Engine(model, context=160, speculate=False).generate(PROMPT, WARM, max_tokens=30))
    engine = Engine(model, context=160)
    head = head_of(engine)
    run = head._run
    monkeypatch.setattr(head, "_run", lambda *a: (run(*a)[0] * 0 - 1, run(*a)[1]))  # a logit is not finite
    assert list(engine.generate(PROMPT, WARM, max_tokens=30)) == answer
    assert engine._speculation is not None and engine._speculation._draft_model is None
    assert not head._followers


def test_two_streams_draft_together(loaded, drafting):
    model = loaded["qwen3_5-head"]
    prompts = [PROMPT, PROMPT[7:]]
    alone = [
        list(Engine(model, context=160, speculate=False).generate(p, WARM, max_tokens=40)) for p in prompts
    ]
    engine = Engine(model, context=160, blocks=12)
    jobs = [engine.generate(prompt, WARM, max_tokens=40) for prompt in prompts]
    assert pumped(engine, jobs) == alone and engine.stats().drafted_tokens > 0


def test_head_that_is_required_must_be_there(loaded, model: LoadedModel):
    with pytest.raises(UsageError, match="has no head of its own"):
        Engine(model, context=160, head=True)
    assert Engine(loaded["glm4_moe-head"], context=160, head=False)._speculation._source is None  # type: ignore[union-attr]
