"""What one engine is asked: jobs on its wire, its tokenizer, its metrics; all over the socket that is ours alone.

Knows one engine's address and key; knows no other replica and no retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from freehold.base.errors import UnsupportedModel
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import Message
from freehold.outgrow.contract import DeployPlan, EngineDriver, EngineNumbers, LaunchedEngine
from freehold.outgrow.engines import MOST_COUNT
from freehold.outgrow.engines.wire import TokenRoutes
from freehold.route.providers import upstream
from freehold.route.providers.contract import (
    Abilities,
    Cleared,
    Outgoing,
    Provider,
    RemoteModel,
    Secret,
    UpstreamFault,
)
from freehold.route.providers.faults import decoded, invalid
from freehold.route.providers.hop import MAX_BODY, Hop, HopReply
from freehold.route.providers.upstream import UpstreamStream, WholeStream

CONNECTIONS = 4096  # of one engine: the server's own limit of requests is below
ASIDE_S = 5.0  # what metrics and a tokenizer may take
MOST_METRICS = 8 << 20  # bytes of a page: vLLM's has some 100 kB, and as much again for each of its engines
MOST_SERIES = 512  # of an engine that are shown on our page; the drivers choose some ten
MOST_ID = (1 << 31) - 1  # of a token
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_PROOF = "Hello"  # a prompt that any model takes
_NOT_ITS_OWN = (401, 403, 408, 429)  # statuses that refuse a request for other reasons than what it asks for


def abilities_of(plan: DeployPlan) -> Abilities:
    """Return what an engine can do as it is planned: a plan without a tool parser calls no tools.

    How an attached engine was started is not known: it is asked, and refuses by itself.
    """
    plan = plan.inner or plan
    names = {flag.name for flag in plan.flags}
    parses = any("tool" in name and "parser" in name for name in names) or "--jinja" in names
    return Abilities(
        images=bool(plan.attached) or plan.sees,
        tools=parses or bool(plan.attached) or plan.engine in ("ollama", "mlx", "freehold"),
        logprobs=True,
        several=plan.engine not in ("ollama", "mlx"),
        seed=True,
    )


class EngineCalls:
    """Asks one engine that runs."""

    def __init__(self, hop: Hop, driver: EngineDriver, engine: LaunchedEngine, place: str) -> None:
        """`place`: the name that errors give it."""
        plan = engine.plan
        self._hop, self._driver, self.wire = hop, driver, driver.wire
        self.many = plan.inner is not None  # a cluster: what one of its replicas failed, another may answer
        key = Secret(engine.key) if engine.key else None
        provider = Provider(
            place,
            "openai-compatible",
            engine.url,
            key,
            owned=True,
            connections=CONNECTIONS,
            socket=engine.socket,
        )
        can = abilities_of(plan)
        self.remote = RemoteModel(provider, plan.called, context=plan.context, abilities=can)
        # What proves that it is ready: the first that it does not refuse, and from then on that one alone.
        self._proofs: tuple[Callable[[float], Awaitable[None]], ...] = (self._one_token,)
        if not plan.model.gives_text:
            self._proofs = (self._one_vector,)
        elif not plan.model.anatomy.role:
            self._proofs = (self._one_token, self._one_answer, self._one_vector)
        # Connections of their own: metrics must not wait for the answers that they are to judge.
        self._beside = replace(provider, url=engine.url.removesuffix("/v1"), connections=8)
        self.providers = provider, self._beside
        self._key = driver.wire.authorized(key) if key is not None else {}

    async def start(self, job: Job, *, limit_s: float) -> UpstreamStream | WholeStream:
        """Start a job; return once its first token has come. Raises what upstream.start raises."""
        return await upstream.start(
            self._hop,
            self._cleared(job),
            self.remote,
            first_token_s=limit_s,
            timeout_s=limit_s,
            stream=not job.whole,
            wire=self.wire,
        )

    async def prove(self, limit_s: float) -> None:
        """Have one token, or the vector of a model that gives vectors. Raises what upstream.start raises.

        A model of which that is not known is asked for both: an attached engine does not say what it was started for.
        Where it refuses all of them, its first refusal is raised.
        """
        if self.wire.ready_path:
            await self._check_loaded(self.wire.ready_path)
        refused: UpstreamFault | None = None
        for proof in self._proofs:
            try:
                await proof(limit_s)
            except UpstreamFault as e:
                # Other than one by which it does not do what was asked: no such route, or not with its model.
                if e.status != 501 and (not 400 <= e.status < 500 or e.status in _NOT_ITS_OWN):
                    raise
                refused = refused or e
            else:
                self._proofs = (proof,)
                return
        assert refused is not None, "there is a proof to try"
        raise refused

    async def _check_loaded(self, path: str) -> None:
        """Raise UpstreamFault with status 503 while the engine says that it loads its model."""
        try:
            async with asyncio.timeout(ASIDE_S):
                reply = await self._hop.get(self._cleared(None), self._beside, self._key, path)
                reply.close()
        except TimeoutError:
            raise UpstreamFault("timeout", f"{path} did not answer in {ASIDE_S:.0f} s", status=503) from None
        if reply.status == 503:
            raise UpstreamFault("server", "it loads its model", status=503)

    @property
    def embeds(self) -> bool:
        """Whether it gives vectors alone, by its plan or by what it has answered."""
        return self._proofs == (self._one_vector,)

    async def _one_token(self, limit_s: float) -> None:
        await self._answered(Job(prompt=_PROOF, max_tokens=1, sampling={"temperature": 0.0}), limit_s)

    async def _one_answer(self, limit_s: float) -> None:
        # A token of a chat: a server may have no other route.
        messages = (Message("user", _PROOF),)
        await self._answered(Job(messages=messages, max_tokens=1, sampling={"temperature": 0.0}), limit_s)

    async def _one_vector(self, limit_s: float) -> None:
        await self.embed(EmbedJob((_PROOF,)), limit_s=limit_s)

    async def _answered(self, job: Job, limit_s: float) -> None:
        stream = await self.start(job, limit_s=limit_s)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()

    async def embed(self, job: EmbedJob, *, limit_s: float) -> Vectors:
        """Return unit vectors of texts."""
        return await upstream.embed(
            self._hop, self._cleared(job), self.remote, timeout_s=limit_s, wire=self.wire
        )

    async def numbers(self, before: EngineNumbers, limit_s: float = ASIDE_S) -> EngineNumbers | None:
        """Return its counters; None where it has none, or does not answer in time. `before`: the latest reading."""
        path = self._driver.metrics_path
        if not path:
            return None
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._hop.get(self._cleared(None), self._beside, self._key, path)
                numbers = self._driver.numbers(await _body(reply, MOST_METRICS), before)
        except Exception:  # whatever a page holds: who watches the engine must not end by it
            return None
        return numbers if _countable(numbers) else None

    # --- its tokenizer ----------------------------------------------------------------------------

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return a text's ids; `special`: with those that begin a prompt."""
        routes = self._routes()
        return _ids(await self._post("/tokenize", {routes.text: text, routes.special: special}))

    async def render(self, job: Job) -> list[int]:
        """Return the ids of a chat's prompt."""
        if not self._routes().chats:
            raise UnsupportedModel(f"the engine of {self.remote.model} renders no chat")
        return _ids(await self._post("/tokenize", self.wire.chat_to_count(self.remote, job)))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        text = (await self._post("/detokenize", {"tokens": [*ids]})).get(self._routes().back)
        if not isinstance(text, str):
            raise invalid("no text of its tokens")
        return text

    def _routes(self) -> TokenRoutes:
        if self.wire.tokens is None:
            raise UnsupportedModel(f"the engine of {self.remote.model} offers no tokenizer")
        return self.wire.tokens

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent = Outgoing(path, msgspec.json.encode({"model": self.remote.model, **body}))
        async with asyncio.timeout(ASIDE_S):
            reply = await self._hop.post(self._cleared(None), self._beside, self._key, sent)
            if reply.status != 200:
                raise self.wire.fault(reply.status, reply.headers, await _body(reply))
            return decoded(_OBJECT, await _body(reply), "tokens that cannot be read")

    def _cleared(self, work: Any) -> Cleared[Any]:
        return Cleared(work, frozenset({self.remote.provider.name}))


def _ids(body: dict[str, Any]) -> list[int]:
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i <= MOST_ID for i in ids):
        raise invalid("tokens that are none")
    return ids


def _countable(numbers: EngineNumbers) -> bool:
    """Return whether all counts are such that sums of them can be kept and shown."""
    counts = (numbers.running, numbers.waiting, numbers.prompt_tokens, numbers.generated_tokens)
    more = (numbers.cached_tokens or 0, numbers.steps or 0, numbers.cache_usage or 0)
    shown = numbers.series.values()
    if len(shown) > MOST_SERIES or not all(abs(n) <= MOST_COUNT for n in shown):
        return False
    return all(0 <= n <= MOST_COUNT for n in (*counts, *more))


async def _body(reply: HopReply, most: int = MAX_BODY) -> bytes:
    body = bytearray()
    try:
        while data := await reply.some():
            body += data
            if len(body) > most:
                raise invalid(f"more than {most:,} bytes")
        reply.finished()
        return bytes(body)
    finally:
        reply.close()
