"""What a job asks for and a provider's API may lack: refused before anything is sent, or named in a warning.

Refused is what would make another answer than the one asked for; a warning stands for what only shapes how tokens
are drawn, which no provider promises. Nothing is left out in silence. Knows no wire's field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Audio, Image, Message, SamplingParams, ToolCall
from freehold.route.providers.contract import RemoteModel

# All of it asks for nothing but the temperature, whose default each model has by itself.
_NEUTRAL = SamplingParams()
NEVER_DROPS = "overflow: a chat longer than the context is refused; only our own engine drops messages"


class Demands:
    """The demands of one job on one remote model, and the warnings that its answer will carry."""

    def __init__(self, model: RemoteModel, job: Job) -> None:
        self.model, self.job = model, job
        self._warnings: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings, each once."""
        return tuple(self._warnings)

    def warn(self, text: str) -> None:
        """Add a warning."""
        self._warnings[text] = None

    def lacks(self, what: str, hint: str = "") -> NoReturn:
        """Refuse the job: this model cannot do `what`."""
        raise cannot(self.model, what, hint)

    def chat(self, formats: Collection[str]) -> tuple[Message, ...]:
        """Return the chat of a job that this model can take; `formats`: kinds of Format that its API knows."""
        job, can = self.job, self.model.abilities
        if job.messages is None:
            self.lacks("continues no bare text, and fills in no middle", "ask it in a chat")
        for wanted, why in (*self.beyond_abilities(), *self.beyond_dialect()):
            if wanted:
                self.lacks(why)
        self._check_format(formats)
        if not can.images and any(isinstance(part, Image) for m in job.messages for part in m.parts):
            self.lacks("sees no pictures")
        if any(isinstance(part, Audio) for m in job.messages for part in m.parts):
            self.lacks(
                "is sent no sounds: freehold passes them to models on this machine alone",
                "take a model here that hears, or make a text of the sound: POST /v1/audio/transcriptions",
            )
        if job.overflow == "drop-oldest":
            self.warn(NEVER_DROPS)
        return job.messages

    def beyond_abilities(self) -> Sequence[tuple[bool, str]]:
        """Return what the model's abilities leave out of chats: (whether it is asked for, why it cannot be)."""
        job, can = self.job, self.model.abilities
        return (
            (job.logprobs is not None and not can.logprobs, "gives no log-probabilities"),
            (job.n > 1 and not can.several, f"gives one answer a request, not {job.n}"),
            (bool(job.tools) and not can.tools, "calls no tools"),
        )

    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        """Return the same of what providers' APIs have no field for."""
        job = self.job
        biased = bool(job.sampling.get("logit_bias"))
        return (
            (bool(job.template), "uses its own chat template"),
            (bool(job.adapter), "has no adapters"),
            (job.ignore_eos, "ends its answers itself: ignore_eos is not possible"),
            (job.prompt_logprobs is not None, "gives no log-probabilities of a prompt"),
            (biased, "has a vocabulary of its own: logit_bias cannot be translated"),
            (job.turn == "none", "answers every chat: a prompt without an answer's turn is not possible"),
        )

    def _check_format(self, formats: Collection[str]) -> None:
        format = self.job.format
        if format is None:
            return
        schema_unknown = format.kind == "json_schema" and not self.model.abilities.json_schema
        if format.kind not in formats or schema_unknown:
            known = ", ".join(sorted(formats)) or "none"
            self.lacks(f"cannot constrain an answer to a format of kind {format.kind}", f"it knows: {known}")

    def sampling(self, known: Mapping[str, str]) -> dict[str, Any]:
        """Return the sampling parameters that were given, under the wire's names; warn of those it does not know."""
        sampling: dict[str, Any] = {}
        for name, value in self.job.sampling.items():
            if value is None or name in ("logit_bias", "penalty_window"):
                continue
            if name != "temperature" and value == getattr(_NEUTRAL, name):
                continue
            if name in known:
                sampling[known[name]] = value
            else:
                self.unused(name)
        return sampling

    @property
    def thinks(self) -> bool:
        """Whether thinking is asked for: by itself, by a budget, or by an effort."""
        job = self.job
        return bool(job.think or job.think_tokens or (job.effort and job.think is None))

    def no_pictures(self, message: Message, where: str) -> None:
        """Refuse a message with a picture."""
        if any(isinstance(part, Image) for part in message.parts):
            self.lacks(f"takes no pictures in {where}")

    def check_media(self, image: Image, known: Sequence[str]) -> None:
        """Refuse bytes of a picture that the API cannot read."""
        if image.media_type not in known:
            self.lacks("sees no pictures of this type", f"it sees: {', '.join(known)}")

    def loose(self, keywords: Collection[str]) -> None:
        """Warn of keywords of the format's schema that the API does not enforce."""
        if keywords:
            names = ", ".join(sorted(keywords))
            name = self.model.model
            self.warn(f"{name} does not enforce {names} of the schema; the model reads them as text")

    def unused(self, name: str, why: str = "") -> None:
        """Warn that a parameter was left out."""
        self.warn(f"{name} was left out: {why or f'{self.model.model} does not take it'}")

    def sells_no_cache(self) -> None:
        """Warn of breakpoints of a cache, where the API has no field for them."""
        if self.job.cache_tools or any(message.cache for message in self.job.messages or ()):
            self.unused("cache", f"what {self.model.model} caches is the provider's choice")

    def max_tokens(self, unknown: int) -> int:
        """Return how many tokens an answer may have, where the API insists on a number."""
        max_tokens, most = self.job.max_tokens, self.model.max_output
        if max_tokens is None:
            filled = most or unknown
            self.warn(f"max_tokens was not given; {self.model.model} was asked for at most {filled:,} tokens")
            return filled
        if most and max_tokens > most:
            self.warn(f"max_tokens is {max_tokens:,}; {self.model.model} makes at most {most:,} tokens")
            return most
        return max_tokens


def cannot(model: RemoteModel, what: str, hint: str = "") -> UnsupportedModel:
    """Return the error of a job that asks a model for what it cannot do."""
    return UnsupportedModel(f"{model.model} at {model.provider.name} {what}", hint)


def reminder(text: str) -> str:
    """Return a system message from within a chat as a part of the user's turn."""
    return f"<system-reminder>\n{text}\n</system-reminder>"


def described(schema: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """Return a schema's description with keywords that the API does not know: the model may follow them there."""
    limits = ", ".join(f"{name}: {value}" for name, value in left.items())
    return "\n".join(filter(None, (str(schema.get("description") or ""), f"({limits})")))


def object_text(call: ToolCall) -> msgspec.Raw:
    """Return a call's arguments as they are, for a field that must be an object.

    Raises UsageError, whose message the ledger keeps as a reason: it has nothing of the request.
    """
    text = (call.arguments or "{}").encode()
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        raise UsageError("the arguments of a tool call are not a JSON object", field="messages") from None
    return msgspec.Raw(text)


def texts_of(job: EmbedJob) -> Sequence[str]:
    """Return the texts of an embedding job; token ids are another vocabulary's. Raises UsageError."""
    texts = [text for text in job.texts if isinstance(text, str)]
    if len(texts) < len(job.texts):
        raise UsageError(
            "texts given as token ids cannot be sent to a provider", "give them as text", field="input"
        )
    return texts
