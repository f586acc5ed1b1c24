"""Server-sent events, wherever the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.route.providers import upstream
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.upstream import Event, EventSplitter

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_events_are_the_same_however_bytes_are_cut(data: st.DataObject):
    events = data.draw(
        st.lists(st.tuples(st.sampled_from(["", "message", "delta"]), st.lists(LINE, min_size=1, max_size=3)))
    )
    sent = b"\xef\xbb\xbf" if data.draw(st.booleans()) else b""
    for name, lines in events:
        end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
        comment = [b": ping"] if data.draw(st.booleans()) else []
        named = [b"event: " + name.encode()] if name else []
        texts = [b"data: " + line.encode() for line in lines]
        sent += end.join([*comment, *named, *texts, b"id: 7"]) + end * 2
    places = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=30)))
    splitter, got = EventSplitter(), []
    for start, stop in zip([0, *places], [*places, len(sent)], strict=True):
        got += splitter.feed(sent[start:stop])
    assert got == [(name, "\n".join(lines).encode()) for name, lines in events]


@pytest.mark.parametrize("sent, events", [
    (b"data:no space\n\n", [("", b"no space")]),
    (b"data:  two spaces\n\n", [("", b" two spaces")]),
    (b"data\n\n", [("", b"")]),
    (b"event: ping\n\n", []),
    (b": only a comment\n\n\n\n", []),
    (b"data: a\rdata: b\r\r", []),  # the last CR may be half of a CRLF
    (b"data: a\rdata: b\r\r:", [("", b"a\nb")]),
    (b"data: cut off", []),
    (b"data: cut off\n", []),
    (b"data: a\r\n\r\ndata: b\n\n", [("", b"a"), ("", b"b")]),
])  # fmt: skip
def test_what_the_specification_says_of(sent: bytes, events: list[Event]):
    assert EventSplitter().feed(sent) == events


def test_an_endless_event_is_refused_at_its_limit_and_costs_no_square(monkeypatch):
    monkeypatch.setattr(upstream, "MAX_EVENT", 1 << 20)
    splitter = EventSplitter()
    with pytest.raises(UpstreamFault, match="1,048,576 bytes"):
        for _ in range(1 << 12):
            assert splitter.feed(b"data: " + b"x" * 1000 + b"\n") == []
