"""POST /api/chat: a chat in, an assistant's message out, a line of JSON a piece.

Knows the route; fields.py reads, shape.py writes. Path: Gate -> chat -> fields.chat_job -> generating.answer
"""

from __future__ import annotations

from freehold.server.core.call import HttpCall
from freehold.server.core.pictures import Pictures
from freehold.server.ollama.fields import OllamaChatRequest, chat_job, is_empty
from freehold.server.ollama.generating import answer, load_only
from freehold.server.ollama.shape import OllamaChatShape


async def chat(call: HttpCall) -> None:
    """Answer a chat; without messages load the model, or unload it with keep_alive 0."""
    request, raw = await call.struct(OllamaChatRequest)
    pictures = Pictures()
    ollama_job = await call.apart(chat_job, request, raw, call.tenant, pictures)
    if is_empty(request):
        await load_only(call, request, {"message": {"role": "assistant", "content": ""}})
        return
    shape = OllamaChatShape(logprobs=ollama_job.job.logprobs is not None, context=ollama_job.context)
    await answer(call, request, ollama_job.job, shape, ollama_job.warnings, pictures)
