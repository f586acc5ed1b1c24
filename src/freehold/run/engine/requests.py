"""Makes requests and their sequences, every field checked against the model and the context.

Knows token ids, the options of a request and a context's length; knows no queue, no step and no lock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from typing import Any, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import ContextOverflow, UsageError
from freehold.base.types import Priority, SamplingParams
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.constrain.constraint import TokenRules
from freehold.run.engine.sampler import MAX_TOP_LOGPROBS, check_sampling
from freehold.run.engine.sequence import PromptPictures, Request, Sequence
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter

F32 = NDArray[np.float32]
SEED_BITS = 63


class Sharing(TypedDict, total=False):
    """How a request shares the engine with others."""

    priority: Priority
    tenant: str  # whose cached prefixes it may see
    client: str  # whose share of queue, slots, steps and blocks it uses; the tenant's where none is given
    deadline_s: float | None  # seconds from now to its last token
    admitted: bool  # it continues a request that was admitted before, so no limit applies
    adapter: Adapter | None  # packed for the model
    pictures: PromptPictures | None  # of the prompt, whose ids of them it has


class AnswerOptions(Sharing, total=False):
    """What a request for an answer may say beside its prompt and its sampling parameters."""

    max_tokens: int | None  # None: until a stop token or the context's end
    stop_ids: Iterable[int]
    logprobs: int | None  # report log-probabilities and this many of the likeliest tokens
    constraint: TokenRules | None  # what the answer's text must be


class Requests:
    """Makes what one engine computes: `context` is the longest prompt and answer together.

    `span_rows`: rows of a picture that see each other, at most.
    """

    def __init__(self, model: LoadedModel, context: int, span_rows: int = 0) -> None:
        self._model, self._context, self._span_rows = model, context, span_rows

    def answer(
        self,
        prompt_ids: Ordered[int],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop_ids: Iterable[int] = (),
        logprobs: int | None = None,
        constraint: TokenRules | None = None,
        **sharing: Unpack[Sharing],
    ) -> Request:
        """Return the request for an answer to `prompt_ids`; without a seed it gets a random one.

        Raises UsageError, ContextOverflow.
        """
        prompt = self._prompt(prompt_ids, sharing.get("pictures"))
        if len(prompt) >= self._context:
            raise self._overflow(len(prompt))
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
        if logprobs is not None and not 0 <= logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(f"logprobs is {logprobs}; expected 0 to {MAX_TOP_LOGPROBS}")
        params = check_sampling(sampling or SamplingParams(), self._model.tokens)
        room = self._context - len(prompt)
        return Request(
            tuple(prompt),
            params,
            secrets.randbits(SEED_BITS) if params.seed is None else params.seed,
            room if max_tokens is None else min(max_tokens, room),
            frozenset(stop_ids),
            logprobs,
            constraint=constraint,
            **_shared(sharing),
        )

    def prefill(
        self, ids: Ordered[int], sink: Callable[[F32], None], hidden: bool = False, **sharing: Unpack[Sharing]
    ) -> Request:
        """Return the request for all rows of a prompt and no answer. Raises UsageError, ContextOverflow."""
        prompt = self._prompt(ids, sharing.get("pictures"))
        if len(prompt) > self._context:
            raise self._overflow(len(prompt), answer=False)
        return Request(
            tuple(prompt),
            SamplingParams(),
            seed=0,
            max_tokens=1,
            sink=sink,
            hidden=hidden,
            **_shared(sharing),
        )

    def sequence(
        self, request: Request, resume: Ordered[int] = (), parent: Sequence | None = None
    ) -> Sequence:
        """Return the sequence of a request that continues after `resume`; it is done if those end the answer."""
        answer = self.checked_ids(resume) if resume else []
        seq = Sequence(request, [*request.prompt, *answer], parent, resumed=len(answer))
        if answer and answer[-1] in request.stop_ids:
            seq.reason = "stop"
        elif len(answer) >= request.max_tokens:
            seq.reason = "length"
        seq.done = seq.reason is not None
        if request.constraint is not None and not seq.done:
            seq.matcher = request.constraint.matcher(request.stop_ids)
            for id in answer:
                seq.matcher.advance(id)
        return seq

    def _prompt(self, ids: Ordered[int], pictures: PromptPictures | None) -> list[int]:
        """Return a prompt's ids; those of pictures are checked as the word that stands for them."""
        if pictures is None:
            return self.checked_ids(ids)
        assert len(ids) == len(pictures.rows), "a row or a word for every token"
        longest = max((end - first for first, end in pictures.spans), default=0)
        if longest > self._span_rows:
            raise UsageError(
                f"a picture has {longest:,} tokens that attend to each other; {self._model.name} computes at most "
                f"{self._span_rows:,} at once"
            )
        shown = (pictures.rows >= 0).tolist()
        self.checked_ids([pictures.placeholder if s else id for id, s in zip(ids, shown, strict=True)])
        return [int(id) for id in ids]

    def checked_ids(self, ids: Ordered[int]) -> list[int]:
        """Return `ids` as integers. Raises UsageError where there is none, or one outside the vocabulary."""
        checked = [int(i) for i in ids]
        if not checked:
            raise UsageError("the prompt is empty", "give at least one token")
        check_vocabulary(checked, self._model)
        return checked

    def _overflow(self, count: int, answer: bool = True) -> ContextOverflow:
        needed = count + 1 if answer else count
        hint = "shorten the prompt"
        if needed <= self._model.context:
            hint = f"load it with --context {blocks_for(needed) * native.BLOCK_TOKENS}, or {hint}"
        also = ", the answer included" if count == self._context and answer else ""
        return ContextOverflow(
            f"prompt has {count:,} tokens; {self._model.name} is loaded with a context of "
            f"{self._context:,}{also}",
            hint,
        )


def check_vocabulary(ids: Ordered[int], model: LoadedModel) -> None:
    """Raise UsageError naming the first id outside the model's vocabulary."""
    wrong = next((i for i in ids if not 0 <= i < model.vocab), None)
    if wrong is not None:
        raise UsageError(f"{wrong} is not a token of {model.name}; ids are 0 to {model.vocab - 1}")


def _shared(sharing: Sharing) -> dict[str, Any]:
    """Return the fields of a Request that `sharing` stands for."""
    fields: dict[str, Any] = {**sharing}
    priority, deadline_s = sharing.get("priority", "interactive"), fields.pop("deadline_s", None)
    if priority not in get_args(Priority):
        raise UsageError(f"priority is {priority!r}; expected {' or '.join(get_args(Priority))}")
    if deadline_s is not None and not deadline_s > 0:
        raise UsageError(f"the time limit is {deadline_s} s; expected more than 0")
    fields["client"] = sharing.get("client") or sharing.get("tenant", "")
    return fields | {"deadline": None if deadline_s is None else time.monotonic() + deadline_s}
