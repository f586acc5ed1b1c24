"""Servers that speak OpenAI's chat completions: vLLM, llama.cpp, Ollama, another Freehold.

They take more sampling than OpenAI, `max_tokens`, formats under `structured_outputs`, a begun answer, bare text; they
return reasoning as `reasoning_content`, and want it back. A field they do not know they ignore, so warnings are only
given for what none of them knows.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.base.serving import Job, snippets
from freehold.base.types import Format
from freehold.route.providers.contract import Demands, Outgoing, RemoteModel
from freehold.route.providers.openai.wire import SAMPLING, ChatAsker, OpenAIWire

# llama.cpp's own name for the penalty, repeat_penalty, is left to its own door.
MORE_SAMPLING = {name: name for name in ("top_k", "min_p", "typical_p", "repetition_penalty")}


class _CompatibleAsker(ChatAsker):
    tool_names = True
    thinks_back = True

    def format(self, format: Format | None) -> dict[str, Any]:
        if format is None or format.kind in ("json", "json_schema"):
            return super().format(format)
        if format.kind == "choice":
            return {"structured_outputs": {"choice": list(format.source)}}
        return {"structured_outputs": {"grammar" if format.kind == "lark" else "regex": format.source}}


class CompatibleWire(OpenAIWire):
    """Implements contract.Wire."""

    asker = _CompatibleAsker
    formats = ("json", "json_schema", "choice", "regex", "lark")
    sampling = SAMPLING | MORE_SAMPLING
    most_field = "max_tokens"
    max_stops = None
    without_sampling = None

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a chat, or a text to be continued."""
        if job.messages is not None:
            return super().request(model, job, stream=stream)
        demands = Demands(model, job)
        if not isinstance(job.prompt, str):
            own = "has its own vocabulary: token ids cannot be sent as a prompt"
            demands.lacks(own, "give it as text")
        if job.logprobs is not None and not model.abilities.logprobs:
            demands.lacks("returns no log-probabilities")
        if job.prompt_logprobs is not None or job.adapter:
            demands.lacks("returns no log-probabilities for prompts, and has no adapters")
        body: dict[str, Any] = {"model": model.model, "prompt": job.prompt}
        if job.suffix is not None:
            body |= {"prompt": snippets(job.beside) + str(job.prompt), "suffix": job.suffix}
        self.limits(body, demands, stream=stream)
        if "logprobs" in body:
            body["logprobs"] = body.pop("top_logprobs", 0)
        body |= self.asker(demands).format(job.format)
        return Outgoing("/completions", msgspec.json.encode(body), warnings=demands.warnings)

    def end_of(self, messages: Any, body: dict[str, Any], demands: Demands) -> None:
        """Write a begun answer as vLLM takes it."""
        if demands.job.turn == "continue":
            body |= {"continue_final_message": True, "add_generation_prompt": False}

    def think(self, body: dict[str, Any], demands: Demands) -> None:
        """Write thinking as a template's switch, which vLLM, llama.cpp and ours take."""
        job = demands.job
        if job.think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": job.think}
        if job.effort:
            body["reasoning_effort"] = job.effort
        if job.think_tokens is not None:
            demands.unused("think_tokens", "no field for it is common to compatible servers")
