"""What a user's chats teach: answers that the user worded or liked are examples, two answers to one message a pair.

An edited answer is better than the model's beside it, and one with a thumb up better than one with a thumb down. Of
answers that were computed again, the one that the chat shows is better than an earlier one that it does not continue
with. Knows chats; knows no file that is trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from freehold.adapt.gathering import GatheredItem, plain_messages
from freehold.base.errors import FreeholdError
from freehold.base.types import Message
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import SavedChat, SavedMessage


def from_chats(folder: ChatFolder, since: float, left_out: Counter[str]) -> Iterator[GatheredItem]:
    """Yield what the chats of a folder teach, the oldest chat first; count in `left_out` what cannot be used.

    `since`: of answers, in seconds since 1970.
    """
    for card in sorted(folder.cards(), key=lambda card: (card.updated, card.id)):
        try:
            chat = folder.read(card.id)
        except FreeholdError:
            left_out["a damaged chat"] += 1
            continue
        yield from _of_chat(chat, since, left_out)


def _of_chat(chat: SavedChat, since: float, left_out: Counter[str]) -> Iterator[GatheredItem]:
    siblings: dict[str | None, list[SavedMessage]] = {}
    for message in chat.messages.values():
        siblings.setdefault(message.parent, []).append(message)
    shown = {message.id for message in chat.branch()}
    for parent, messages in siblings.items():
        answers = [m for m in messages if m.role == "assistant" and m.state == "whole" and m.content.strip()]
        if parent is None or not any(m.at >= since for m in answers):
            continue
        best, others = _judged(answers, shown, siblings)
        if best is None:
            continue
        reason, before = _before(chat, parent)
        if any(m.calls for m in (best, *others)):
            reason = "tools"
        if reason:
            left_out[reason] += 1
            continue
        yield from _items(chat, before, best, others)


def _judged(
    answers: Sequence[SavedMessage], shown: set[str], below: Mapping[str | None, Sequence[SavedMessage]]
) -> tuple[SavedMessage | None, list[SavedMessage]]:
    """Return the answer that the user chose and those that lost to it; None where nothing says which."""
    poor = [m for m in answers if m.verdict == "poor"]
    edited = [m for m in answers if m.edited and m not in poor]
    own = [m for m in answers if not m.edited]
    if edited:
        return edited[-1], poor or own[-1:]
    kept = [m for m in own if m not in poor]
    liked = [m for m in kept if m.verdict == "good"]
    best = liked[-1] if liked else next((m for m in kept if m.id in shown), None)
    if best is None:
        return None, []
    left = [m for m in kept[: kept.index(best)] if m not in liked and not below.get(m.id)]
    lost = [m for m in own if m in poor or m in left]
    return (best, lost) if lost or liked else (None, [])


def _before(chat: SavedChat, parent: str) -> tuple[str, tuple[Message, ...]]:
    """Return the messages up to `parent` as training reads them; else why it cannot."""
    branch = chat.branch(parent)
    if any(message.images for message in branch):
        return "pictures or audio", ()
    if any(message.files for message in branch):
        return "attached files", ()
    turns = [{"role": m.role, "content": m.content, "tool_calls": m.calls} for m in branch]
    system = [{"role": "system", "content": chat.settings.system}] if chat.settings.system else []
    return plain_messages([*system, *turns])


def _items(
    chat: SavedChat, before: tuple[Message, ...], best: SavedMessage, others: Sequence[SavedMessage]
) -> Iterator[GatheredItem]:
    name, maker = f"{chat.card.id}/{best.id}", "" if best.edited else best.model
    if best.edited or best.verdict == "good":
        yield GatheredItem(name, before, best.content, maker=maker, at=best.at)
    for other in others:
        if other.content.strip() != best.content.strip():
            yield GatheredItem(name, before, best.content, other.content, maker=maker, at=best.at)
