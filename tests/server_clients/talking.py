"""Four real clients behind one face: each keeps its own history, in its own words, as its users write it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@dataclass
class Said:
    """What a client made of an answer."""

    text: str
    finish: str  # in the protocol's words
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prompt: int = 0  # tokens, cached ones included
    cached: int = 0
    made: int = 0
    refusal: str = ""


class Talk(Protocol):
    """A conversation. `tools`: offer the one tool that there is; `thinking`: ask for it where the protocol can."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said: ...
    def results(self, *results: str) -> Said:
        """Answer the calls of the last turn, in their order."""
        ...


class _Talk:
    def __init__(
        self, url: str, model: str, *, stream: bool, tools: bool = False, thinking: bool = False
    ) -> None:
        self.url, self.model, self.stream, self.tools, self.thinking = url, model, stream, tools, thinking
        self.history: list[Any] = []
        self.calls: list[Any] = []  # of the last answer, as the client has them


class OpenAITalk(_Talk):
    """openai's chats; a stream's deltas are added up, as its users do."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said:
        content: Any = text
        if image:
            url = {"url": f"data:image/png;base64,{PNG}"}
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
        self.history.append({"role": "user", "content": content})
        return self._turn(**fields)

    def results(self, *results: str) -> Said:
        for call, result in zip(self.calls, results, strict=True):
            self.history.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return self._turn()

    def _turn(self, **fields: Any) -> Said:
        import openai

        if self.tools:
            function = {"name": "get_weather", "parameters": PARAMETERS}
            fields["tools"] = [{"type": "function", "function": function}]
        asked: dict[str, Any] = {"model": self.model, "messages": self.history, **fields}
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            if self.stream:
                answer = _added_up(client.chat.completions.create(**asked, **STREAMED))
            else:
                answer = client.chat.completions.create(**asked)
        (choice,) = answer.choices
        message, usage = choice.message, answer.usage
        self.history.append(message.to_dict())
        self.calls = message.tool_calls or []
        calls = [(c.function.name, json.loads(c.function.arguments)) for c in self.calls]
        return Said(
            message.content or "",
            choice.finish_reason,
            calls,
            usage.prompt_tokens,
            usage.prompt_tokens_details.cached_tokens,
            usage.completion_tokens,
            message.refusal or "",
        )


def _added_up(events: Any) -> Any:
    """Return the answer that events describe, as the package's own type."""
    from openai.types.chat import ChatCompletion

    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    for event in events:
        whole |= {"id": event.id, "created": event.created, "model": event.model}
        whole["usage"] = event.usage.to_dict() if event.usage else None
        for choice in event.choices:
            whole["choices"][0] |= {"finish_reason": choice.finish_reason, "logprobs": None}
            for name in ("content", "refusal"):
                if gained := getattr(choice.delta, name):
                    message[name] = (message[name] or "") + gained
            for piece in choice.delta.tool_calls or ():
                call = calls.setdefault(
                    piece.index, {"type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["id"] = piece.id or call.get("id")
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""
    if calls:
        message["tool_calls"] = [calls[i] for i in sorted(calls)]
    return ChatCompletion.model_validate(whole)


class AnthropicTalk(_Talk):
    """anthropic's messages, streamed with the package's own helper."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said:
        content: Any = text
        if image:
            source = {"type": "base64", "media_type": "image/png", "data": PNG}
            content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        self.history.append({"role": "user", "content": content})
        return self._turn(**fields)

    def results(self, *results: str) -> Said:
        pairs = zip(self.calls, results, strict=True)
        content = [{"type": "tool_result", "tool_use_id": call.id, "content": said} for call, said in pairs]
        self.history.append({"role": "user", "content": content})
        return self._turn()

    def _turn(self, **fields: Any) -> Said:
        import anthropic

        if self.tools:
            fields["tools"] = [{"name": "get_weather", "input_schema": PARAMETERS}]
        if self.thinking:
            fields["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        asked: dict[str, Any] = {"model": self.model, "messages": self.history, "max_tokens": 4096, **fields}
        with anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0) as client:
            if self.stream:
                with client.messages.stream(**asked) as events:
                    answer: Any = events.get_final_message()
            else:
                answer = client.messages.create(**asked)
        self.history.append({"role": "assistant", "content": answer.content})
        self.calls = [block for block in answer.content if block.type == "tool_use"]
        usage = answer.usage
        cached = usage.cache_read_input_tokens or 0
        return Said(
            "".join(block.text for block in answer.content if block.type == "text"),
            answer.stop_reason,
            [(c.name, c.input) for c in self.calls],
            usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
            cached,
            usage.output_tokens,
        )


class OllamaTalk(_Talk):
    """ollama's chats; a stream's messages are added up, as its users do."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said:
        self.history.append({"role": "user", "content": text, **({"images": [PNG]} if image else {})})
        return self._turn(**fields)

    def results(self, *results: str) -> Said:
        for result in results:
            self.history.append({"role": "tool", "tool_name": "get_weather", "content": result})
        return self._turn()

    def _turn(self, **options: Any) -> Said:
        import ollama

        function = {"name": "get_weather", "parameters": PARAMETERS}
        tools = [{"type": "function", "function": function}] if self.tools else None
        client = ollama.Client(host=self.url)
        asked: Any = {"model": self.model, "messages": self.history, "tools": tools, "options": options}
        if self.thinking:
            asked["think"] = True
        parts = [*client.chat(**asked, stream=True)] if self.stream else [client.chat(**asked)]
        text = "".join(part.message.content or "" for part in parts)
        calls: list[Any] = [call for part in parts for call in part.message.tool_calls or ()]
        self.history.append({"role": "assistant", "content": text, "tool_calls": calls or None})
        last, self.calls = parts[-1], calls
        return Said(
            text,
            last.done_reason or "",
            [(c.function.name, dict(c.function.arguments)) for c in calls],
            last.prompt_eval_count or 0,
            made=last.eval_count or 0,
        )


class LangChainTalk(_Talk):
    """langchain-openai's chat model; a stream's chunks are added up with +, as LangChain does."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said:
        from langchain_core.messages import HumanMessage

        content: Any = text
        if image:
            url = {"url": f"data:image/png;base64,{PNG}"}
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
        self.history.append(HumanMessage(content))
        return self._turn(**fields)

    def results(self, *results: str) -> Said:
        from langchain_core.messages import ToolMessage

        for call, result in zip(self.calls, results, strict=True):
            self.history.append(ToolMessage(result, tool_call_id=call["id"]))
        return self._turn()

    def _turn(self, **fields: Any) -> Said:
        from langchain_openai import ChatOpenAI

        made: Any = {"model": self.model, "base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        model: Any = ChatOpenAI(**made, stream_usage=True)
        if self.tools:
            function = {"name": "get_weather", "description": "", "parameters": PARAMETERS}
            model = model.bind_tools([{"type": "function", "function": function}])
        if self.stream:
            first, *rest = model.stream(self.history, **fields)
            for chunk in rest:
                first += chunk
            answer = first
        else:
            answer = model.invoke(self.history, **fields)
        self.history.append(answer)
        self.calls = answer.tool_calls
        usage = answer.usage_metadata
        return Said(
            answer.text if isinstance(answer.text, str) else answer.text(),
            answer.response_metadata["finish_reason"],
            [(c["name"], c["args"]) for c in self.calls],
            usage["input_tokens"],
            usage.get("input_token_details", {}).get("cache_read", 0),
            usage["output_tokens"],
            answer.additional_kwargs.get("refusal") or "",
        )


class LangChainOllamaTalk(_Talk):
    """langchain-ollama's chat model, whose pictures are LangChain's own standard blocks."""

    def ask(self, text: str, *, image: bool = False, **fields: Any) -> Said:
        from langchain_core.messages import HumanMessage

        content: Any = text
        if image:
            block = {"type": "image", "base64": PNG, "mime_type": "image/png"}
            content = [{"type": "text", "text": text}, block]
        self.history.append(HumanMessage(content))
        return self._turn(**fields)

    def results(self, *results: str) -> Said:
        from langchain_core.messages import ToolMessage

        for call, result in zip(self.calls, results, strict=True):
            self.history.append(ToolMessage(result, tool_call_id=call["id"]))
        return self._turn()

    def _turn(self, **fields: Any) -> Said:
        from langchain_ollama import ChatOllama

        model: Any = ChatOllama(model=self.model, base_url=self.url, **fields)
        if self.stream:
            first, *rest = model.stream(self.history)
            for chunk in rest:
                first += chunk
            answer = first
        else:
            answer = model.invoke(self.history)
        self.history.append(answer)
        self.calls = answer.tool_calls
        usage = answer.usage_metadata
        return Said(
            answer.text if isinstance(answer.text, str) else answer.text(),
            answer.response_metadata["done_reason"],
            [(c["name"], c["args"]) for c in self.calls],
            usage["input_tokens"],
            made=usage["output_tokens"],
        )


TALKS: dict[str, type[Any]] = {
    "openai": OpenAITalk,
    "anthropic": AnthropicTalk,
    "ollama": OllamaTalk,
    "langchain": LangChainTalk,
}
# Those that are asked about pictures: two of them by LangChain.
SEEING = TALKS | {"langchain-ollama": LangChainOllamaTalk}
