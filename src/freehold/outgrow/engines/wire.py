"""What engines of ours speak: OpenAI's routes with token ids, so that another engine can continue an answer.

A driver's wire is a subclass: `extras` for its own fields, `gives_ids` and `takes_ids` for what it can do. Jobs only:
no route of an engine beyond /chat/completions, /completions and /embeddings has a way to it from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.base.serving import Job, snippets
from freehold.base.types import Image
from freehold.route.providers.compatible import CompatibleWire
from freehold.route.providers.contract import Demands, Outgoing, RemoteModel
from freehold.route.providers.openai.events import CompletionReader


@dataclass(frozen=True, slots=True)
class TokenRoutes:
    """How an engine's /tokenize and /detokenize are called; both are beside /v1, for us alone."""

    text: str = "prompt"  # the text's field in a request to /tokenize,
    back: str = "prompt"  # and in an answer of /detokenize
    special: str = "add_special_tokens"  # the field that asks for a prompt's first token, such as BOS
    chats: bool = True  # /tokenize takes messages


class EngineDemands(Demands):
    """What an engine lacks: it has one vocabulary, which is the model's own, so ids and biases mean what they say.

    It runs inside the user's network: a picture's address would make it call that network's machines, or a cloud's.
    """

    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        job = self.job
        return (
            (_fetches(job), "does not download pictures: send them in the request, as data: URLs"),
            (bool(job.template), "does not accept a template in a request"),
            (bool(job.adapter), "has no adapters"),
            (job.prompt_logprobs is not None, "returns no log-probabilities for prompts"),
        )


class EngineWire(CompatibleWire):
    """Implements providers.contract.Wire for one engine."""

    demands = EngineDemands
    gives_ids = False  # `return_token_ids` gives the ids of prompt and answer
    takes_ids = False  # a prompt may be ids
    tokens: TokenRoutes | None = None  # None: it shows no tokenizer
    ready_path = ""  # of a route that has status 503 while the model loads; "": none has

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a chat, or a text or ids to be continued."""
        if job.messages is not None:
            return super().request(model, job, stream=stream)
        demands = self.demands(model, job)
        for wanted, why in (*demands.beyond_abilities(), *demands.beyond_dialect()):
            if wanted:
                demands.lacks(why)
        if not isinstance(job.prompt, str) and not self.takes_ids:
            demands.lacks("does not accept token ids as a prompt", "send it as text")
        body: dict[str, Any] = {"model": model.model, "prompt": job.prompt}
        if job.suffix is not None:
            body |= {"prompt": snippets(job.beside) + str(job.prompt), "suffix": job.suffix}
        if job.max_tokens is None:
            body["max_tokens"] = None  # to the context's end, not OpenAI's default of 16 tokens
        self.limits(body, demands, stream=stream)
        if "logprobs" in body:
            body["logprobs"] = body.pop("top_logprobs", 0)
        body |= self.asker(demands).format(job.format)
        return Outgoing("/completions", msgspec.json.encode(body), warnings=demands.warnings)

    def limits(self, body: dict[str, Any], demands: Demands, *, stream: bool) -> None:
        """Write what both routes have in common."""
        super().limits(body, demands, stream=stream)
        job = demands.job
        if job.ignore_eos:
            body["ignore_eos"] = True
        if bias := job.sampling.get("logit_bias"):
            body["logit_bias"] = bias
        if stream and self.asks_ids(job):
            body["return_token_ids"] = True
        if job.messages is not None and job.turn == "none":
            body["add_generation_prompt"] = False
        self.extras(body, job)

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write what this engine alone has a field for."""

    def asks_ids(self, job: Job) -> bool:
        """Whether a job's token ids are asked for: those of an answer that another engine may continue."""
        return self.gives_ids and is_repeatable(job)

    def chat_to_count(self, model: RemoteModel, job: Job) -> dict[str, Any]:
        """Return the body by which /tokenize renders a chat. Raises UnsupportedModel: it would fetch pictures too."""
        demands = self.demands(model, job)
        if _fetches(job):
            demands.lacks("does not download pictures: send them in the request, as data: URLs")
        asker = self.asker(demands)
        body: dict[str, Any] = {"messages": [asker.message(m) for m in job.messages or ()]}
        self.end_of(job.messages, body, demands)
        if job.turn == "none":
            body["add_generation_prompt"] = False
        self.think(body, demands)
        tools = asker.tools().get("tools")
        return body | ({"tools": tools} if tools else {})

    def reader(self, job: Job) -> CompletionReader:
        """Return a reader of one stream."""
        return CompletionReader(job.n, ids=self.asks_ids(job))


def _fetches(job: Job) -> bool:
    """Whether a job has pictures that are addresses."""
    parts = (part for message in job.messages or () for part in message.parts)
    return any(isinstance(part, Image) and part.url for part in parts)


def salt(tenant: str) -> str:
    """Return a tenant's word for `cache_salt`, by which an engine keeps its cached prompts from others."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def is_repeatable(job: Job) -> bool:
    """Whether the same job has the same answer again, as far as an engine is deterministic: greedy, or with a seed."""
    return job.n == 1 and (job.sampling.get("temperature") == 0 or job.sampling.get("seed") is not None)


class VllmWire(EngineWire):
    """OpenAI's routes as vLLM has them. It is here and not with its driver, as a plan does not need a wire."""

    gives_ids = True
    takes_ids = True
    tokens = TokenRoutes()

    def extras(self, body: dict[str, Any], job: Job) -> None:
        """Write the priority, of which the lower is scheduled first, and the tenant's own part of the prefix cache."""
        if job.priority == "batch":
            body["priority"] = 1
        if job.tenant:
            body["cache_salt"] = salt(job.tenant)
