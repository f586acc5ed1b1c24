"""Edited answers and answers computed again become examples and pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from freehold.adapt.align import read_pairs
from freehold.adapt.gathering import gathered, write_data
from freehold.adapt.settings import GatherSettings
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.gathered import from_chats
from freehold.serve.chats.types import ChatChange, ChatSettings


def test_edits_and_answers_computed_again_are_pairs(tmp_path: Path):
    folder = ChatFolder.of(tmp_path)
    card = folder.create(model="m", settings=ChatSettings(system="Be brief."))
    with folder.writer(card.id) as writer:
        first = writer.message("user", "one?", parent=None)
        poor = writer.message("assistant", "poor", parent=first.id, model="m")
        writer.message("assistant", "mine", parent=first.id, model="m", edited=True)
        second = writer.message("user", "two?", parent=poor.id)
        writer.message("assistant", "early", parent=second.id, model="m")
        late = writer.message("assistant", "late", parent=second.id, model="m")
        third = writer.message("user", "three?", parent=late.id)
        only = writer.message("assistant", "only", parent=third.id, model="m")
        writer.set(ChatChange(leaf=only.id))
    left_out: Counter[str] = Counter()
    settings = GatherSettings(personal="keep", test_share=0)
    data = gathered(from_chats(folder, 0.0, left_out), settings, left_out)
    assert [(each.answer, each.rejected) for each in data.pairs] == [("mine", "poor"), ("late", "early")]
    assert [each.answer for each in data.examples] == ["mine"]
    assert data.pairs[1].messages[0].content == "Be brief." and data.pairs[1].question == "two?"
    write_data(data, tmp_path / "out", "your chats", settings)
    assert len(read_pairs(tmp_path / "out" / "pairs.jsonl").items) == 2


def test_thumbs_make_examples_and_pairs(tmp_path: Path):
    """A thumb up is an example, beside a thumb down a pair; a thumb down alone teaches nothing."""
    folder = ChatFolder.of(tmp_path)
    card = folder.create(model="m")
    with folder.writer(card.id) as writer:

        def answers(question: str, *texts: str, parent: str | None = None) -> list[str]:
            asked = writer.message("user", question, parent=parent).id
            return [writer.message("assistant", text, parent=asked, model="m").id for text in texts]

        (alone,) = answers("one?", "liked")
        first, second = answers("two?", "better", "worse", parent=alone)
        (poor,) = answers("three?", "disliked", parent=first)
        bad, shown = answers("four?", "bad", "shown", parent=poor)
        third, _ = answers("five?", "taken back", "other", parent=shown)
        for id in (alone, first):
            writer.judge(id, "good")
        for id in (second, poor, bad):
            writer.judge(id, "poor")
        writer.judge(third, "good")
        writer.judge(third, "")
        writer.set(ChatChange(leaf=third))
    left_out: Counter[str] = Counter()
    data = gathered(
        from_chats(folder, 0.0, left_out), GatherSettings(personal="keep", test_share=0), left_out
    )
    assert [each.answer for each in data.examples] == ["liked", "better"]
    assert [(each.answer, each.rejected) for each in data.pairs] == [("better", "worse"), ("shown", "bad")]
    assert {each.maker for each in data.examples} == {"m"}
