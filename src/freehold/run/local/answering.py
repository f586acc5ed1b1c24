"""From the engine's tokens to the chunks of an answer, and what constrains it: a format, tool calls, thinking tokens.

Knows tokens, text in pieces and where an answer ends; knows dialects and grammars, and what a job asks; knows no
template, no step and no socket. There are two ways to wait for a token, and one way for it to become a chunk: iterating
drives the engine, and `take` returns what steps of other threads made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import DeadlineExceeded, UsageError
from freehold.base.serving import Begin, Job
from freehold.base.types import (
    Chunk,
    Completion,
    FinishReason,
    Format,
    OnPrefill,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolPiece,
)
from freehold.run.engine import Engine, Generation, TokenOut
from freehold.run.engine.constrain.constraint import Constraint, Trigger
from freehold.run.engine.constrain.grammar import Grammar, Grammars
from freehold.run.engine.requests import Sharing
from freehold.run.engine.sampler import log_sum_exp, top_logprobs
from freehold.run.engine.scoring import prefill
from freehold.run.engine.sequence import PromptPictures
from freehold.run.local.prompt import Prompt
from freehold.run.local.senses import SeenTogether
from freehold.run.models.lora import Adapter
from freehold.run.tokenizer import Detokenizer, Tokenizer
from freehold.run.tokenizer.dialects import Call, Dialect, HarmonyParser, Thought, ToolParser
from freehold.run.tokenizer.dialects.contract import StopStrings, ThinkingSplitter
from freehold.run.tokenizer.dialects.grammar import CallForm, closed, lark, lark_of_bare, pattern_of_bare
from freehold.run.tokenizer.history import letters

# --- constraints -----------------------------------------------------------------------------------


class ConstraintBuilder:
    """Makes constraints for one model."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._grammars = Grammars(tokenizer)

    def constraint(self, job: Job, prompt: Prompt) -> tuple[Constraint | None, tuple[str, ...]]:
        """Return the constraint of a job's answers, and warnings about what cannot be enforced. Raises UsageError."""
        grammar, triggers, left = self._text(job, prompt)
        tags = None if job.think is False else prompt.tags
        budget = job.think_tokens
        if budget is not None and tags is None:
            budget, left = None, (*left, f"think_tokens was left out: {self._name} does not think here")
        if grammar is None and not triggers and budget is None:
            return None, left
        return Constraint(grammar, self._tokenizer, tags, prompt.inside, triggers, budget), left

    def _text(self, job: Job, prompt: Prompt) -> tuple[Grammar | None, tuple[Trigger, ...], tuple[str, ...]]:
        """Return the grammar of the whole text, or of what follows a trigger, and warnings about the rest."""
        try:
            return (*self._led(job, prompt), ())
        except UsageError as e:
            named = self._named(e, job, prompt)
            if job.format is None and job.tool_choice != "required":
                return None, (), (f"calls are not constrained by the tools' schemas: {named.message}",)
            raise named from e

    def _named(self, error: UsageError, job: Job, prompt: Prompt) -> UsageError:
        """Return the error with the name of the tool that raises one alone; else the format's error."""
        for tool in prompt.tools:
            if job.tool_name in ("", tool.name):
                try:
                    self._led(replace(job, format=None), replace(prompt, tools=(tool,)))
                except UsageError as e:
                    return UsageError(f"the parameters of tool {tool.name!r}: {_what(e)}", e.hint, "tools")
        if job.format is not None or not prompt.tools:
            return error
        return UsageError(f"the parameters of all tools together: {_what(error)}", error.hint, "tools")

    def _led(self, job: Job, prompt: Prompt) -> tuple[Grammar | None, tuple[Trigger, ...]]:
        if prompt.dialect is None or not prompt.tools:
            formats = [_closed(job.format)] if job.format is not None else []
        elif job.tool_choice == "required":
            formats = [self._calls(job, prompt, prompt.dialect.form)]
        elif job.format is not None:  # calls or the text, as the model chooses
            bare = prompt.dialect.bare
            forms = [prompt.dialect.form, *([bare] if bare else [])]
            formats = [*(self._calls(job, prompt, form) for form in forms), _closed(job.format)]
        else:
            return None, tuple(self._triggers(job, prompt.tools, prompt.dialect))
        return self._grammars.grammar(*formats, at_start=prompt.at_start) if formats else None, ()

    def _calls(self, job: Job, prompt: Prompt, form: CallForm) -> Format:
        """Return the format of an answer that is calls and nothing else."""
        tools = [tool for tool in prompt.tools if job.tool_name in ("", tool.name)]
        many = job.parallel_tool_calls and not job.tool_name  # a named tool is called once
        return Format("lark", lark(form, tools, self._spell, many=many))

    def _triggers(self, job: Job, tools: tuple[Tool, ...], dialect: Dialect) -> Iterator[Trigger]:
        """Yield what begins a call: the family's mark, and a bare object where the family may write one."""
        form, mark = dialect.form, _mark(dialect)
        if mark:
            many = bool(form.before) and job.parallel_tool_calls  # else each call has a mark of its own
            behind = lark(form, tools, self._spell, many=many, opened=mark)
            yield self._trigger(re.escape(mark), behind)
        if any(opening.mark == "{" for opening in dialect.openings):
            yield self._trigger(pattern_of_bare(tools), lark_of_bare(tools))

    def _trigger(self, pattern: str, behind: str) -> Trigger:
        return Trigger(re.compile(pattern.encode()), self._grammars.grammar(Format("lark", behind)))

    def _spell(self, text: str) -> str:
        """Spell a text for a grammar: a control token by its id, since its characters are not written."""
        known = sorted(filter(None, self._tokenizer.control_tokens), key=len, reverse=True)
        used = [token for token in known if token in text]
        pieces = re.split("(" + "|".join(map(re.escape, used)) + ")", text) if used else [text]
        ids = {token: self._tokenizer.added_id(token) for token in used}
        spelled = (f"<[{ids[p]}]>" if p in ids else json.dumps(p, ensure_ascii=False) for p in pieces if p)
        return " ".join(spelled)


def _what(error: UsageError) -> str:
    """Return what is wrong, without the position in a grammar that the caller did not write."""
    return re.sub(r"^format: (at \d+\(\d+\): )?", "", error.message)


def _closed(format: Format) -> Format:
    """Allow no properties but those that a schema names, where it does not mention others."""
    return replace(format, source=closed(format.source)) if format.kind == "json_schema" else format


def _mark(dialect: Dialect) -> str:
    """Return the opening that a dialect's form begins with, if it is one that opens anywhere."""
    begin = dialect.form.before + dialect.form.head
    marks = [opening.mark for opening in dialect.openings if not opening.at_line]
    return next((mark for mark in marks if begin.startswith(mark)), "")


# --- answers ---------------------------------------------------------------------------------------

F32 = NDArray[np.float32]
Top = tuple[tuple[int, float], ...]


class LocalJob:
    """A job in this process: `n` answers to one prompt, and the prompt's own log-probabilities where requested.

    Use either `stream` (one answer; drives the engine) or `enter` and `take` (other threads drive it).
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        job: Job,
        prompt: Prompt,
        begin: Begin,
        constraint: Constraint | None = None,
        adapter: Adapter | None = None,
        seen: SeenLater | None = None,
    ) -> None:
        """Check what the engine checks, and raise its errors; nothing is computed before `enter`.

        `constraint`: of the answers' text. `adapter`: what job.adapter names. `seen`: the prompt's pictures; until they
        are computed the job has no answers, and the engine checks nothing.
        """
        self._engine, self._job, self._adapter = engine, job, adapter
        self._pictures: PromptPictures | None = None
        self._until = None if job.timeout_s is None else time.monotonic() + job.timeout_s
        spelling = _Spelling(tokenizer)
        self._scores = None if job.prompt_logprobs is None else _Scores(begin, job.prompt_logprobs, spelling)
        self._scoring: Generation | None = None
        self._answers: list[LocalAnswer] = []
        self._begin = begin
        self._over = False
        self._seen = seen
        ends = frozenset() if job.ignore_eos else tokenizer.eos_ids | prompt.ends
        self._answer = partial(self._answered, tokenizer, prompt, spelling, constraint, ends)
        if seen is not None and seen.seeing.done:
            self._show(seen)
        elif seen is None and (job.max_tokens != 0 or self._scores is None):
            self._answers = self._answer()
        if self._scores is not None:
            self._scoring = prefill(
                engine, begin.prompt_ids, self._scores.add, **self._sharing(bool(job.resume))
            )

    def _answered(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        spelling: _Spelling,
        constraint: Constraint | None,
        ends: frozenset[int],
    ) -> list[LocalAnswer]:
        resume = self._job.resume
        return [
            LocalAnswer(generation, self._text(tokenizer, prompt, i), spelling, resume[i : i + 1], ends)
            for i, generation in enumerate(self._generations(prompt, self._begin, ends, constraint))
        ]

    def _text(self, tokenizer: Tokenizer, prompt: Prompt, answer: int) -> AnswerText:
        job, begin = self._job, self._begin
        short = prompt.dialect is not None and prompt.dialect.short_ids
        return AnswerText(
            tokenizer,
            prompt,
            job.stop,
            name_call=lambda call: call_id(begin, answer, call, short=short),
            many_calls=job.parallel_tool_calls,
        )

    def _sharing(self, admitted: bool) -> Sharing:
        job = self._job
        return {
            "priority": job.priority,
            "tenant": job.tenant,
            "client": job.client,
            "deadline_s": job.timeout_s if self._pictures is None else self._left_s,
            "admitted": admitted,
            "adapter": self._adapter,
            "pictures": self._pictures,
        }

    def _generations(
        self, prompt: Prompt, begin: Begin, ends: frozenset[int], constraint: Constraint | None
    ) -> list[Generation]:
        job = self._job
        return self._engine.generate_many(
            prompt.ids,
            job.n,
            begin.sampling,
            max_tokens=job.max_tokens,
            stop_ids=ends,
            logprobs=job.logprobs,
            constraint=constraint,
            resume=job.resume,
            **self._sharing(bool(job.resume) or self._scores is not None),  # scoring waited already
        )

    def watched(self, on_prefill: OnPrefill | None) -> Self:
        """Report the prefill of the first answer's prompt to `on_prefill`."""
        if self._answers:
            self._answers[0].watch(on_prefill)
        return self

    @property
    def prefill(self) -> tuple[int, int] | None:
        """How many tokens of the prompt are read, and how many there are; None once an answer has begun."""
        return self._answers[0].prefill if self._answers and self._scoring is None else None

    @property
    def begin(self) -> Begin | None:
        """What the engine accepted; None until pictures are computed, and the prompt is scored if it is to be."""
        return self._begin if self._scoring is None and self._seen is None else None

    @property
    def seed(self) -> int:
        """The seed of its first answer; LLM drew one where none was given."""
        assert self._begin.sampling.seed is not None
        return self._begin.sampling.seed

    @property
    def done(self) -> bool:
        """Whether every answer's last chunk was taken, or the job was cancelled."""
        waits = self._scoring is not None or self._seen is not None
        return self._over or (not waits and all(answer.done for answer in self._answers))

    def enter(self) -> None:
        """Queue the job in the engine, once its pictures are computed.

        Raises Overloaded, DeadlineExceeded, except for a resumed job.
        """
        if self._seen is not None:
            self._seen.seeing.wakes(self._engine.wake)
        elif self._scoring is not None:
            self._scoring.start()
        else:
            for answer in self._answers:
                answer.enter()

    def take(self) -> list[tuple[int, Chunk]]:
        """Return (answer's index, chunk) for every chunk made and not yet taken; never waits.

        Raises the error that ended the job.
        """
        if self._seen is not None:
            self._look(self._seen)
            return []
        if self._scoring is not None:
            self._scoring.take()  # raises what ended it
            return self._scored(self._scoring) if self._scoring.done else []
        return [(i, chunk) for i, each in enumerate(self._answers) if not each.done for chunk in each.take()]

    @property
    def _left_s(self) -> float | None:
        """Seconds of its time limit that computing pictures has left."""
        return None if self._until is None else max(self._until - time.monotonic(), 1e-3)

    def _look(self, seen: SeenLater) -> None:
        """Make the answers and queue them if the pictures are computed."""
        if seen.seeing.done:
            self._show(seen)
            self.enter()
        elif self._until is not None and time.monotonic() > self._until:
            raise DeadlineExceeded("the time limit passed before the pictures of the prompt were computed")

    def _show(self, seen: SeenLater) -> None:
        """Make the answers, now that the pictures are there. Raises what opening or computing them did."""
        pictures = self._pictures = seen.pictures()
        self._seen = None
        self._answers = self._answer()
        for answer in self._answers:
            answer.opening_s, answer.encoding_s = seen.seeing.opening_s, seen.seeing.encoding_s
        self._begin = replace(self._begin, prompt_ids=pictures.marked(self._begin.prompt_ids))

    def _scored(self, scoring: Generation) -> list[tuple[int, Chunk]]:
        """Begin once the prompt is scored, and end at once if no answer was requested."""
        assert self._scores is not None
        usage = scoring.usage
        scoring.close()
        self._scoring = None
        self._begin = replace(self._begin, prompt_logprobs=tuple(self._scores.entries))
        if self._answers:
            self.enter()
            return []
        return [(i, Chunk(finish_reason="length", usage=usage)) for i in range(self._job.n)]

    def stream(self) -> Iterator[Chunk]:
        """Yield the first answer's chunks, computing them; ending the iteration stops the model."""
        if self._begin.dropped_messages or self._begin.warnings:
            yield Chunk(dropped_messages=self._begin.dropped_messages, warnings=self._begin.warnings)
        yield from self._answers[0]

    def cancel(self) -> None:
        """Stop; the engine drops the job within one step."""
        self._over = True
        if self._seen is not None:
            self._seen.seeing.cancel()
        if self._scoring is not None:
            self._scoring.close()
        for answer in self._answers:
            answer.close()


@dataclass(frozen=True, slots=True)
class SeenLater:
    """The pictures of a prompt while they are computed, and how they get into it."""

    seeing: SeenTogether
    pictures: Callable[[], PromptPictures]


class LocalAnswer:
    """One answer: tokens in, chunks out; the chunk with `finish_reason` comes last, however the answer ends."""

    def __init__(
        self,
        generation: Generation,
        text: AnswerText,
        spelling: _Spelling,
        resume: tuple[tuple[int, ...], ...],
        ends: frozenset[int],
    ) -> None:
        """`resume` holds the tokens that a previous engine sent, if there are any: their text is not repeated."""
        self._generation, self._text, self._spelling = generation, text, spelling
        self.opening_s = self.encoding_s = 0.0  # what the prompt's pictures took
        self.done = False
        for id in resume[0] if resume else ():
            if id not in ends:
                text.push(id)
        self._reason: FinishReason | None = text.over

    def watch(self, on_prefill: OnPrefill | None) -> None:
        """Report the prefill to `on_prefill`."""
        self._generation.on_prefill = on_prefill

    @property
    def prefill(self) -> tuple[int, int] | None:
        """As Generation.prefill."""
        return None if self._reason is not None else self._generation.prefill

    def enter(self) -> None:
        """Queue it in the engine, unless it is complete."""
        if self._reason is None and not self._generation.done:
            self._generation.start()

    def take(self) -> list[Chunk]:
        """Return the chunks made and not yet taken."""
        if self._reason is not None:  # it was complete when it was resumed
            return [self._last()]
        done = self._generation.done  # read first: tokens made after the next line belong to the next call
        chunks = list(self._gained(self._generation.take()))
        self._generation.report()
        if done or self._reason is not None:
            chunks.append(self._last())
        return chunks

    def __iter__(self) -> Iterator[Chunk]:
        try:
            if self._reason is None:
                yield from self._gained(self._generation)
            yield self._last()
        finally:
            self.close()

    def close(self) -> None:
        """Stop generating it."""
        self._generation.close()

    def _gained(self, outs: Iterable[TokenOut]) -> Iterator[Chunk]:
        for out in outs:
            reason = out.finish_reason
            delta = AnswerDelta() if reason == "stop" else self._text.push(out.id)
            self._reason = self._text.over or reason
            yield Chunk(
                delta.text, delta.thinking, (out.id,), self._spelling.logprobs(out), tool_calls=delta.calls
            )
            if self._reason is not None:
                return

    def _last(self) -> Chunk:
        generation = self._generation
        reason = self._reason or generation.finish_reason or "cancelled"
        usage = generation.usage
        if self.opening_s or self.encoding_s:
            usage = replace(usage, opening_s=self.opening_s, encoding_s=self.encoding_s)
        generation.close()
        self.done = True
        delta = self._text.finish()
        called = reason == "stop" and self._text.over != "stop" and self._text.calls > 0
        return Chunk(
            delta.text,
            delta.thinking,
            finish_reason="tool_calls" if called else reason,
            usage=usage,
            stop=self._text.stop,
            tool_calls=delta.calls,
        )


def call_id(begin: Begin, answer: int, call: int, *, short: bool) -> str:
    """Return the id of an answer's call: a function of prompt and seed, so that a resumed answer repeats it."""
    prompt = np.array(begin.prompt_ids, np.int64).tobytes()
    seed = f"{begin.sampling.seed} {answer} {call} ".encode() + prompt
    return letters(seed, 9) if short else "call_" + letters(seed, 24)


class _Spelling:
    """Log-probabilities with what their tokens write."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def logprobs(self, out: TokenOut) -> tuple[TokenLogprob, ...]:
        return () if out.logprob is None else (self.logprob(out.id, out.logprob, out.top),)

    def logprob(self, id: int, logprob: float, top: Top) -> TokenLogprob:
        return TokenLogprob(id, logprob, top, self._bytes(id), tuple(self._bytes(i) for i, _ in top))

    def _bytes(self, id: int) -> bytes:
        return self._tokenizer.token_bytes(id, special=True) if id < self._tokenizer.vocab_size else b""


class _Scores:
    """What the model thinks of a prompt: each token's log-probability, given those before it."""

    def __init__(self, begin: Begin, alternatives: int, spelling: _Spelling) -> None:
        self._ids, self._alternatives, self._spelling = begin.prompt_ids, alternatives, spelling
        self.entries: list[TokenLogprob | None] = [None]

    def add(self, rows: F32) -> None:
        """Take the logits after the next tokens; runs within the engine's step."""
        for row in rows[: len(self._ids) - len(self.entries)]:  # nothing follows the last
            position = len(self.entries)
            id, total = self._ids[position], log_sum_exp(row, position)
            top = top_logprobs(row, self._alternatives, total)
            self.entries.append(self._spelling.logprob(id, float(row[id]) - total, top))


# --- whole answers from the chunks of streams -------------------------------------------------------

# Several prompts, as `LLM.generate` takes them: texts, or lists of token ids.
Prompts = list[str] | list[list[int]] | tuple[str, ...] | tuple[Sequence[int], ...]


def is_batch(prompt: object) -> TypeGuard[Prompts]:
    """Tell a list of prompts from one prompt of token ids."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence) or len(prompt) == 0:
        return False
    return isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def complete(job: LocalJob) -> Completion:
    """Compute an answer to its end."""
    return completion(job.stream(), job.seed)


def completion(chunks: Iterable[Chunk], seed: int) -> Completion:
    """Join the chunks of a whole answer."""
    got = list(chunks)
    calls: list[ToolCall] = []
    for piece in (p for c in got for p in c.tool_calls):
        piece.join(calls)
    last = got[-1]
    if last.finish_reason is None or last.usage is None:
        raise RuntimeError("a stream ended without its last chunk")  # our own invariant
    return Completion(
        text="".join(c.text for c in got),
        thinking="".join(c.thinking for c in got),
        token_ids=tuple(i for c in got for i in c.token_ids),
        logprobs=tuple(p for c in got for p in c.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        seed=seed,
        dropped_messages=sum(c.dropped_messages for c in got),
        tool_calls=tuple(calls),
        warnings=tuple(w for c in got for w in c.warnings),
    )


# --- from an answer's tokens to its thinking, text and tool calls -----------------------------------
# Everything follows from the tokens, so an answer that is resumed comes to the same state by pushing those it
# had.

Piece = str | Call | Thought


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """What a token added for certain."""

    thinking: str = ""
    text: str = ""
    calls: tuple[ToolPiece, ...] = ()


class AnswerText:
    """Token ids in, pieces of thinking, text and calls out; `over` is the reason for which the answer ended."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        stop: tuple[str, ...],
        *,
        name_call: Callable[[int], str],
        many_calls: bool = True,
    ) -> None:
        """`name_call` gives the id of call number i; `many_calls` False: the answer ends with its first."""
        self._detokenizer = Detokenizer(tokenizer, at_start=prompt.at_start, shown=prompt.shown)
        self._stops = StopStrings(stop)
        dialect = prompt.dialect
        channels = dialect is not None and dialect.channels
        self._splitter = ThinkingSplitter(None if channels else prompt.tags, inside=prompt.inside)
        self._parser: HarmonyParser | ToolParser | None = None
        if dialect is not None:
            self._parser = HarmonyParser() if channels else ToolParser(dialect, prompt.tools)
        self._name_call, self._many = name_call, many_calls
        self.calls = 0
        self.over: FinishReason | None = None

    @property
    def stop(self) -> str:
        """The stop string that ended the answer, or nothing."""
        return self._stops.stop

    def push(self, id: int) -> AnswerDelta:
        """Add a token."""
        thinking, text = self._splitter.push(self._detokenizer.push(id))
        return self._delta(thinking, self._parsed(text))

    def finish(self) -> AnswerDelta:
        """Return the text buffered for a stop string or a call; nothing after a stop string."""
        last = self._splitter.push(self._detokenizer.finish())
        rest = self._splitter.finish()
        pieces = self._parsed(last[1] + rest[1])
        if self._parser is not None:
            pieces = [*pieces, *self._parser.finish()]
        delta = self._delta(last[0] + rest[0], pieces)
        return AnswerDelta(delta.thinking, delta.text + self._stops.finish(), delta.calls)

    def _parsed(self, text: str) -> Iterable[Piece]:
        if self._parser is None:
            return (text,)
        return self._parser.push(text) if text else ()

    def _delta(self, thinking: str, pieces: Iterable[Piece]) -> AnswerDelta:
        text, calls = "", []
        for piece in pieces:
            if self.over is not None:
                break
            if isinstance(piece, Thought):
                thinking += piece.text
            elif isinstance(piece, Call):
                calls.append(ToolPiece(self.calls, self._name_call(self.calls), piece.name, piece.arguments))
                self.calls += 1
                self.over = None if self._many else "tool_calls"
            else:
                text += self._stops.push(piece)
                self.over = "stop" if self._stops.hit else None
        return AnswerDelta(thinking, text, tuple(calls))
