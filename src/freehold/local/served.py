"""A loaded model as an engine process holds it: jobs in, chunks out, one thread that computes steps.

Knows the job a server sends and checks every field of it; knows no protocol and no socket. A program that loads a
model for itself has no use for it: that is LLM.
Path: worker/process/intake.py -> ServedModel.start -> LocalJob.enter; ServedModel.pump -> LocalJob.take
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.errors import ContextOverflow, UsageError
from freehold.local.answering import LocalJob
from freehold.local.jobs import check_chars, check_job, seeded
from freehold.local.llm import LLM
from freehold.serving import EmbedJob, Job
from freehold.store.overlays import overlaid
from freehold.types import Embeddings, Message, Turn

MAX_LISTED = 1 << 20  # ids of one reply: more would block the server's loop while it writes them out


class ServedModel(LLM):
    """An LLM whose requests come as jobs from callers that are not trusted, and whose steps `pump` computes."""

    def start(self, job: Job) -> LocalJob:
        """Check a job and prepare its answers; `enter` of the result queues them in the engine.

        Raises UsageError for a field beyond its limit (jobs.py names them), ContextOverflow, BadTemplate.
        """
        self._check_open()
        self._generating()
        check_job(job, self.context, self._tokenizer.longest)
        return self._prepared(job, seeded(job.sampling, self.default_sampling))

    def pump(self, timeout: float) -> bool:
        """Compute one step for all running requests; without any, wait up to `timeout` seconds for one."""
        return self._engine.pump(timeout)

    def embed_job(self, job: EmbedJob) -> Embeddings:
        """Embed the texts of a request, in the steps that `pump` computes."""
        return self._embedded(job)

    def tokenize(self, text: str, special: bool = False, *, bos: bool | None = None) -> list[int]:
        """Return the ids of a text. Raises ContextOverflow for one that no context of this size holds."""
        self._check_chars("the text", len(text))
        return _listable(super().tokenize(text, special, bos=bos))

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids, of no more than the context holds."""
        if len(ids) > self.context:
            raise ContextOverflow(
                f"there are {len(ids):,} token ids; the context holds {self.context:,}", "split them"
            )
        return super().detokenize(ids)

    def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each id; control tokens as they are spelled."""
        self._check_open()
        return [self._tokenizer.token_bytes(id, special=True) for id in ids]

    def render(self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new") -> list[int]:
        """Return the ids of a chat. Raises ContextOverflow for one that no context of this size holds."""
        self._check_chars("the chat", sum(len(m.content) + len(m.thinking) for m in messages))
        return _listable(super().render(messages, think, turn))

    def _check_chars(self, what: str, chars: int) -> None:
        check_chars(what, chars, self.context, self._tokenizer.longest)

    def count(self, job: Job) -> int:
        """Return the number of tokens in a job's prompt, also where it exceeds the context."""
        self._check_open()
        check_job(job, self.context, self._tokenizer.longest, counted=True)
        return self._prompter.count(job if self._overlay is None else overlaid(job, self._overlay))

    def template(self) -> dict[str, Any]:
        """Describe the tokenizer: vocabulary size, begin and end tokens, and the source of the chat template."""
        tokenizer = self._tokenizer
        named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        spelled = {k: None if id is None else tokenizer.token_text(id) for k, id in named.items()}
        source = self._prompter.template.source if self._prompter.can_chat else None
        return {
            "chat_template": source,
            **spelled,
            "eos_token_ids": sorted(tokenizer.eos_ids),
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": self.context,
        }


def _listable(ids: list[int]) -> list[int]:
    if len(ids) > MAX_LISTED:
        raise UsageError(
            f"the text has {len(ids):,} tokens; at most {MAX_LISTED:,} are listed", "split the text"
        )
    return ids
