"""A model that answers for training: token ids in, token ids out with the log-probabilities they were drawn with.

Ids and never text: in a text control tokens are plain letters, and every answer would be off-template. An adapter may
be in memory alone, so a trainer samples with the values of its latest step. Rows of a prompt and its answer are made
as the server renders them. Knows no data and no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.trainee import Trainee
from freehold.base.errors import ContextOverflow, UnsupportedModel
from freehold.base.machine import available_bytes
from freehold.base.serving import Job
from freehold.base.types import FinishReason, Message, SamplingParams, ServedModelOptions
from freehold.run.engine import Generation
from freehold.run.engine.scoring import logit_chunks
from freehold.run.local.llm import DRIVE_S, LLM
from freehold.run.local.opening import open_model
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter, pack_pairs
from freehold.run.store import ModelRef
from freehold.run.tokenizer import ChatTemplate, Tokenizer

F32 = NDArray[np.float32]
CACHE_BYTES = 1 << 30  # most of a cache for many answers: 80,000 tokens of a 0.5b
NO_LIMIT = 1 << 40  # of tokens that wait: a batch is all there at once
AT_ONCE = 64  # answers that are computed together; more would add cache and no speed
BASE = "beneath"  # the name of the adapter that a training starts from, in its engine
GREEDY = SamplingParams(temperature=0.0)
AS_IT_IS = SamplingParams(temperature=1.0)  # the model's own distribution: nothing cut off, nothing sharpened


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """An answer's tokens, the one that ended it among them, and the log-probability of each."""

    ids: tuple[int, ...]
    logprobs: F32
    finish_reason: FinishReason


class SamplingModel(LLM):
    """An LLM whose caller handles token ids and adapters in memory. One thread uses it.

    `base`: an adapter that every answer is computed with for which no other one is named.
    """

    base: Adapter | None = None

    def begin_over(self, path: Path) -> None:
        """Make an adapter the base of all answers. Raises what add_adapter raises."""
        self.add_adapter(BASE, path)
        self.base = self.adapters.find(BASE)

    def _overlaid(self, job: Job) -> Job:
        job = super()._overlaid(job)
        return job if job.adapter or self.base is None else replace(job, adapter=BASE)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self._tokenizer

    def packed(self, pairs: Mapping[str, tuple[F32, F32]], scale: float, name: str = "policy") -> Adapter:
        """Pack an adapter from memory; see pack_pairs."""
        return pack_pairs(pairs, scale, self._generating().model, name)

    def packed_by(self, pack: Callable[[LoadedModel], Adapter]) -> Adapter:
        """Return what `pack` makes for the model in memory."""
        return pack(self._generating().model)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        *,
        seeds: Sequence[int],
        max_tokens: int,
        sampling: SamplingParams = AS_IT_IS,
        adapter: Adapter | None = None,
    ) -> list[list[SampledAnswer]]:
        """Return `n` answers to each prompt, computed together; answer j to prompt i is drawn with seeds[i] + j.

        An answer depends on its prompt, its seed and the adapter alone, not on what it is computed with.
        """
        adapter = adapter or self.base
        answers: list[SampledAnswer] = []
        step = max(1, AT_ONCE // n)
        for first in range(0, len(prompts), step):
            generations = [
                generation
                for ids, seed in zip(prompts[first : first + step], seeds[first : first + step], strict=True)
                for generation in self._generating().generate_many(
                    ids,
                    n,
                    replace(sampling, seed=seed),
                    max_tokens=max_tokens,
                    stop_ids=self._tokenizer.eos_ids,
                    logprobs=0,
                    adapter=adapter,
                )
            ]
            answers += self._finished(generations)
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    def answer_logits(
        self, prompt: Sequence[int], answer: Sequence[int], adapter: Adapter | None = None
    ) -> F32:
        """Return the logits that each token of `answer` is drawn from, after `prompt`: float32 [len(answer), V]."""
        ids, adapter = [*prompt, *answer][:-1], adapter or self.base
        first, seen, kept = len(prompt) - 1, 0, []
        for rows in logit_chunks(self._generating(), ids, adapter=adapter):
            kept.append(rows[max(first - seen, 0) :])
            seen += len(rows)
        return np.concatenate(kept)

    def _finished(self, generations: list[Generation]) -> list[SampledAnswer]:
        """Compute running answers to their end; an interrupt ends all of them."""
        engine = self._generating()
        tokens: list[list[int]] = [[] for _ in generations]
        logprobs: list[list[float]] = [[] for _ in generations]
        try:
            for generation in generations:
                generation.start()
            while not all(generation.done for generation in generations):
                engine.drive(DRIVE_S)
                for generation, ids, logs in zip(generations, tokens, logprobs, strict=True):
                    for out in generation.take():
                        ids.append(out.id)
                        logs.append(cast(float, out.logprob))
        finally:
            for generation in generations:
                generation.close()
        return [
            SampledAnswer(
                tuple(ids), np.array(logs, np.float32), cast(FinishReason, generation.finish_reason)
            )
            for ids, logs, generation in zip(tokens, logprobs, generations, strict=True)
        ]


def open_sampling(
    ref: ModelRef,
    packs: Path | None = None,
    *,
    many: bool = False,
    beneath: Path | None = None,
    **options: Unpack[ServedModelOptions],
) -> SamplingModel:
    """Load a model to sample from. Speculation is off: it draws the same tokens and costs a trainer's small batches.

    `many`: give the cache room for eight whole contexts, so that many answers of a short context are computed
    together. `beneath`: an adapter that all answers are computed with, unless another is named. Raises as open_model
    does.
    """
    settings = cast(ServedModelOptions, {"speculate": False, **options})
    if many:
        settings["cache_bytes"] = min(CACHE_BYTES, available_bytes() // 4)
        settings["max_queued_tokens"] = NO_LIMIT
    model = cast(SamplingModel, open_model(ref, packs=packs, kind=SamplingModel, **settings))
    if beneath is not None:
        try:
            model.begin_over(beneath)
        except BaseException:
            model.close()
            raise
    return model


# --- what the engine that serves makes of a trained adapter -----------------------------------------
# Log-probabilities beside the trainer's own.
# The trainer multiplies floats and the engine 8-bit activations, so the two differ by some hundredths of a
# nat per token; a difference far above that is a mistake: another template, other rows, a wrong order of heads.
# The adapter goes from memory to the engine, as it is after the last step.


def served_log_probs(model: SamplingModel, rows: Sequence[AnswerRow], adapter: Adapter | None) -> list[F32]:
    """Return the engine's log-probability of each token of each answer."""
    log_probs = []
    for row in rows:
        logits = model.answer_logits(row.ids[: row.prompt], row.answer, adapter)
        most = logits.max(1, keepdims=True)
        sums = np.log(np.exp(logits - most).sum(1)) + most[:, 0]
        log_probs.append(logits[np.arange(len(row.answer)), list(row.answer)] - sums)
    return log_probs


def mismatch(trainee: Trainee, rows: Sequence[AnswerRow], served: Sequence[F32]) -> dict[str, Any]:
    """Return how far the trainer's log-probabilities are from those served, in nats per token."""
    import torch

    with torch.no_grad():
        own = trainee.log_probs([row.ids for row in rows], wanted=[row.wanted for row in rows])
    gap = torch.cat(own).numpy() - np.concatenate(served)
    return {
        "tokens": len(gap),
        "mean_absolute": float(np.abs(gap).mean()),
        "mean": float(gap.mean()),
        "p99": float(np.quantile(np.abs(gap), 0.99)),
    }


# --- a prompt and its answer as token ids, as the server renders them -------------------------------
# The prompt's ids are those that a server's request has, up to where the answer begins; the answer ends with
# the token that ends its turn, which a model has to learn as well.


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Token ids of a prompt and the answer after it."""

    ids: tuple[int, ...]
    prompt: int  # tokens of the prompt

    @property
    def wanted(self) -> list[bool]:
        """For each token after the first whether it is of the answer, as Trainee.log_probs takes it."""
        return [i >= self.prompt for i in range(1, len(self.ids))]

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens, with the one that ends its turn."""
        return self.ids[self.prompt :]


class AnswerRows:
    """Makes rows for one model. `most`: tokens a row may have."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, name: str, most: int) -> None:
        if template is None:
            raise UnsupportedModel(f"{name} has no chat template", "use a model that was trained to chat")
        self._tokenizer, self._template, self._name, self.most = tokenizer, template, name, most

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where its answer begins."""
        return self._tokenizer.encode_rendered(self._template.render(messages))

    def row(self, messages: Sequence[Message], answer: str) -> AnswerRow:
        """Return a conversation with its answer. Raises ContextOverflow for one that is too long."""
        before = self.prompt(messages)
        ids = (*before, *self._answer(before, messages, answer))
        if len(ids) > self.most:
            raise ContextOverflow(
                f"{len(ids):,} tokens; a row may have {self.most:,}", "shorten it, or raise --max-length"
            )
        return AnswerRow(ids, len(before))

    def _answer(self, before: Sequence[int], messages: Sequence[Message], answer: str) -> list[int]:
        """Return the answer's ids, the end of its turn among them.

        Where a template renders an old answer otherwise than a new one (it leaves out thinking, or what opens it), the
        server's prompt counts, and the answer is encoded by itself.
        """
        conversation = (*messages, Message("assistant", answer))
        whole = self._tokenizer.encode_rendered(
            self._template.render(conversation, add_generation_prompt=False)
        )
        ends = self._tokenizer.eos_ids
        if whole[: len(before)] == list(before):
            rest = whole[len(before) :]
            end = next((i for i, id in enumerate(rest) if id in ends), None)
            if end is not None:
                return rest[: end + 1]
        last = next((id for id in reversed(whole) if id in ends), self._tokenizer.eos_id)
        if last is None:
            raise UnsupportedModel(f"{self._name} has no token that ends an answer")
        return [*self._tokenizer.encode(answer, bos=False), last]
