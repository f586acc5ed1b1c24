"""The terminal chat: turns, commands, keys, and what is kept on disk."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from freehold.base.config import load_settings
from freehold.base.errors import ContextOverflow, StoreError, UsageError
from freehold.base.types import Chunk, Message, ToolCall, ToolPiece
from freehold.cli.chat.answer import AnswerSettings, Waiting
from freehold.cli.chat.chat import COMMANDS, Chat, ModelFacts
from freehold.cli.chat.markdown import PlainRenderer
from freehold.cli.chat.sessions import ChatSession, Sessions
from freehold.cli.chat.terminal import LineReader, is_open_block, unquoted
from freehold.cli.chat.tools import TerminalTools, Tooled
from freehold.serve.chats.types import ToolResult
from freehold.serve.fake import FakeModel, Reply


class Desk:
    """A chat with a scripted model, and everything it showed."""

    def __init__(self, home: Path, *replies, **chat) -> None:
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.model = replies[0] if replies and isinstance(replies[0], FakeModel) else FakeModel(replies)
        self.sessions = Sessions(home)
        self.chat = Chat(
            self.model,
            self.sessions,
            lambda: PlainRenderer(self.shown.append),
            self.notes.append,
            **{"facts": ModelFacts("Q4_K_M", 8192), **chat},
        )

    def type(self, *lines: str) -> Desk:
        for line in lines:
            self.chat.handle(line)
        return self

    @property
    def text(self) -> str:
        return "".join(self.shown)

    @property
    def said(self) -> str:
        return "\n".join(self.notes)

    @property
    def roles(self) -> list[str]:
        return [m.role for m in self.chat.messages]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_turns_carry_the_history(home):
    desk = Desk(home, "Hello you.", "Fine.").type("Hi", "How are you?")
    assert desk.text == "Hello you.\nFine.\n"
    asked = desk.model.calls[1].messages
    assert [(m.role, m.content) for m in asked] == [
        ("user", "Hi"),
        ("assistant", "Hello you."),
        ("user", "How are you?"),
    ]


def test_thinking_is_shown_and_kept_apart_from_the_answer(home):
    desk = Desk(home, Reply("42", thinking="let me see")).type("?")
    assert desk.text == "let me see\n\n42\n"
    assert desk.chat.messages[-1] == Message("assistant", "42", "let me see")


def test_session_is_saved_after_each_turn_for_its_owner_only(home):
    desk = Desk(home, "A", "B").type("one")
    path = next((home / "sessions").glob("*.jsonl"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert desk.sessions.latest().messages == (Message("user", "one"), Message("assistant", "A"))


def test_undo_takes_back_a_turn(home):
    desk = Desk(home, "A", "B").type("one", "two", "/undo")
    assert [m.content for m in desk.chat.messages] == ["one", "A"]
    assert desk.sessions.latest().messages == tuple(desk.chat.messages)


def test_undo_with_nothing_to_undo_says_so(home):
    assert "there is no message yet" in Desk(home).type("/undo").said


def test_retry_asks_the_same_again(home):
    desk = Desk(home, "A", "B").type("one", "/retry")
    assert [m.content for m in desk.chat.messages] == ["one", "B"]
    assert desk.model.calls[0].messages == desk.model.calls[1].messages


def test_failed_retry_keeps_the_earlier_answer(home):
    desk = Desk(home, "A", ContextOverflow("too long")).type("one", "/retry")
    assert [m.content for m in desk.chat.messages] == ["one", "A"]


def test_clear_keeps_the_system_prompt_and_starts_a_new_session(home):
    desk = Desk(home, "A", "B", system="be brief").type("one", "/clear", "two")
    assert desk.roles == ["system", "user", "assistant"]
    assert len(desk.sessions.recent()) == 2


def test_system_replaces_the_prompt(home):
    desk = Desk(home, "A", system="old").type("/system be brief", "one")
    assert desk.model.calls[0].messages[0] == Message("system", "be brief")


def test_set_changes_sampling_and_limits(home):
    desk = Desk(home, "A").type(
        "/set temperature 0.2", "/set max-tokens 7", "/set top_k 5", "/set stop END", "x"
    )
    call = desk.model.calls[0]
    assert call.sampling is not None
    assert (call.sampling.temperature, call.sampling.top_k, call.max_tokens) == (0.2, 5, 7)
    assert call.stop == ("END",)


@pytest.mark.parametrize(
    "line, part",
    [
        ("/set temprature 1", "did you mean temperature?"),
        ("/set temperature warm", "'warm' is not a valid float"),
        ("/set top-p 2", "above 0, at most 1"),
        ("/hlp", "did you mean /help?"),
        ("/zzzzzz", "/help lists them"),
        ("/load nothing", "'nothing' is not a session"),
        ("/name ../../etc", "is not a valid session name"),
        ("/think maybe", "not on, off or auto"),
    ],
)
def test_wrong_command_gets_one_line_and_a_way_out(home, line, part):
    assert part in Desk(home).type(line).said


def test_settings_are_listed(home):
    said = Desk(home).type("/set").said
    assert "temperature" in said and "overflow" in said


def test_help_lists_every_command(home):
    said = Desk(home).type("/help").said
    assert all(f"/{name}" in said for name in COMMANDS)


def test_save_names_the_session_and_load_goes_on(home):
    desk = Desk(home, "A", "B").type("one", "/name recipes")
    assert [s.name for s in desk.sessions.recent()] == ["recipes"]
    other = Desk(home, "C").type("/load recipes", "two")
    assert [m.content for m in other.chat.messages] == ["one", "A", "two", "C"]
    assert other.chat.session.name == "recipes"


def test_save_refuses_a_name_in_use(home):
    Desk(home, "A").type("one", "/name recipes")
    assert "exists already" in Desk(home, "B").type("two", "/name recipes").said


def test_load_lists_sessions_by_their_first_line(home):
    Desk(home, "A").type("How do I bake bread?")
    assert "How do I bake bread?" in Desk(home).type("/load").said


def test_error_ends_the_turn_only(home):
    desk = Desk(home, ContextOverflow("prompt has 9,120 tokens", "use --context"), "B").type("long", "short")
    assert "error: prompt has 9,120 tokens\nhint: use --context" in desk.said
    assert [m.content for m in desk.chat.messages] == ["short", "B"]


def test_dropped_messages_are_said(home):
    desk = Desk(home, Reply("A", dropped_messages=4), answers=AnswerSettings(overflow="drop-oldest")).type(
        "x"
    )
    assert "the 4 oldest messages were dropped" in desk.said
    assert desk.model.calls[0].overflow == "drop-oldest"


def test_answer_cut_by_the_limit_is_said(home):
    assert "token limit" in Desk(home, "a b c d", answers=AnswerSettings(max_tokens=2)).type("x").said


class Interrupted(FakeModel):
    """Ctrl-C arrives after the first piece, or before any when `pieces` is empty."""

    def stream(self, messages, **options):
        for chunk in super().stream(messages, **options):
            if chunk.text:
                yield Chunk(text=chunk.text, token_ids=chunk.token_ids)
            raise KeyboardInterrupt


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(home):
    desk = Desk(home, Interrupted(["Once upon a time"])).type("tell")
    assert [m.content for m in desk.chat.messages] == ["tell", "Once"]
    assert "(stopped)" in desk.said


def test_ctrl_c_before_any_text_takes_the_message_back(home):
    desk = Desk(home, Interrupted([""])).type("tell")
    assert desk.chat.messages == []
    assert "removed" in desk.said


def test_status_line_names_model_quantisation_context_and_speed(home):
    desk = Desk(home, "one two three").type("x")
    assert desk.chat.status() == " fake  Q4_K_M  4/8,192 tokens  20.0 tok/s "


def test_continued_session_takes_a_new_system_prompt(home):
    old = ChatSession(
        "old", "fake", (Message("system", "a"), Message("user", "one"), Message("assistant", "A"))
    )
    desk = Desk(home, "B", session=old, system="b").type("two")
    assert desk.model.calls[0].messages[0].content == "b"
    assert desk.roles == ["system", "user", "assistant", "user", "assistant"]


def typed(keys: str, home: Path, reads: int = 1) -> list[str]:
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        reader = LineReader(home / "history", lambda: "status", ["/help"], input=pipe, output=DummyOutput())
        return [reader.read() for _ in range(reads)]


@pytest.mark.parametrize(
    "keys, text",
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\x0atwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),
    ],
    ids=["enter", "alt-enter", "ctrl-j", "block", "paste"],
)
def test_keys_make_the_text(home, keys, text):
    assert typed(keys, home) == [text]


def test_history_comes_back_and_is_private(home):
    assert typed("first\r", home) == ["first"]
    assert typed("\x1b[A\r", home) == ["first"]
    assert stat.S_IMODE((home / "history").stat().st_mode) == 0o600


def test_ctrl_d_and_ctrl_c_reach_the_chat(home):
    with pytest.raises(EOFError):
        typed("\x04", home)
    with pytest.raises(KeyboardInterrupt):
        typed("\x03", home)


def test_chat_runs_until_the_user_leaves(home):
    lines = iter(["Hi", KeyboardInterrupt(), "", "/bye", "never"])

    def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    desk = Desk(home, "Hello.")
    desk.chat.run(read)
    assert desk.text == "Hello.\n"
    assert "press Ctrl-D or type /bye to quit" in desk.said
    assert next(lines) == "never"


def test_block_quotes_are_taken_off_only_in_pairs():
    assert is_open_block('"""a') and not is_open_block('"""a"""') and is_open_block('"""')
    assert unquoted('"""a"""') == "a" and unquoted('a """ b') == 'a """ b'


def test_search_finds_the_line_and_its_session(home):
    Desk(home, "Knead the dough.").type("How do I bake bread?", "/name bread")
    (match,) = Sessions(home).search("KNEAD")
    assert (match.session.name, match.role, match.excerpt) == ("bread", "assistant", "Knead the dough.")


def test_session_name_may_be_shortened_when_clear(home):
    sessions = Sessions(home)
    for name in ("alpha", "alps", "beta"):
        sessions.save(ChatSession(name, "fake", (Message("user", name),)))
    assert sessions.load("b").name == "beta"
    with pytest.raises(UsageError, match="'al' is not a session"):
        sessions.load("al")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "not json", '{"model": "m", "created": "x"}\n{"role": "king"}']
)
def test_damaged_session_is_named_and_left_out_of_the_list(home, text):
    sessions = Sessions(home)
    sessions.save(ChatSession("good", "fake", (Message("user", "x"),)))
    (home / "sessions" / "bad.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"bad\.jsonl is damaged"):
        sessions.load("bad")
    assert [s.name for s in sessions.recent()] == ["good"]


def test_two_sessions_in_a_minute_get_two_names(home):
    sessions = Sessions(home)
    first, second = (sessions.save(ChatSession(model="fake")) for _ in range(2))
    assert first.name != second.name


def test_unwritable_home_is_a_named_error(home):
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be saved"):
        Sessions(home).save(ChatSession("x", "fake"))


class Counting(FakeModel):
    """Counts a token for each character."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(m.content) for m in messages)


def test_resumed_session_shows_its_last_messages_and_what_it_takes(home):
    session = ChatSession(
        "trip", "m", tuple(Message(r, f"{r}{i}") for i in range(3) for r in ("user", "assistant"))
    )
    desk = Desk(home, Counting([]), session=session)
    shown: list[str] = []
    desk.chat.resumed(lambda m: shown.append(m.content))
    assert shown == ["user2", "assistant2"]
    assert "trip, with m; the last 2 of 6 messages:" in desk.said
    assert f"{3 * 15}/8,192 tokens" in desk.chat.status()


def test_new_session_shows_nothing(home):
    desk = Desk(home)
    desk.chat.resumed(lambda m: pytest.fail("there is no message"))
    assert desk.said == ""


def test_file_goes_before_the_next_message_alone(home, tmp_path):
    (tmp_path / "notes.txt").write_text("buy milk\n")
    desk = Desk(home, "A", "B").type(f"/file {tmp_path / 'notes.txt'}", "What is to do?", "And now?")
    asked = [m.content for m in desk.model.calls[1].messages if m.role == "user"]
    assert asked == ["File notes.txt:\n```\nbuy milk\n```\n\nWhat is to do?", "And now?"]


def test_the_tokens_of_a_file_are_counted_while_they_are_read(home, tmp_path, monkeypatch):
    totals: list[int] = []
    monkeypatch.setattr(Waiting, "__call__", lambda self, done, total: totals.append(total))
    (tmp_path / "notes.txt").write_text("buy milk and bread " * 50)
    Desk(home, "A", "B").type("Hi", "/clear", f"/file {tmp_path / 'notes.txt'}", "Hi")
    assert len(totals) == 2 and totals[1] > totals[0] + 100


def test_file_stays_when_the_answer_fails(home, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    desk = Desk(home, ContextOverflow("too long"), "A").type(f"/file {tmp_path / 'a.txt'}", "one", "two")
    assert desk.model.calls[1].messages[0].content.startswith("File a.txt:")


@pytest.mark.parametrize("raw, says", [(b"\x00\x01", "is binary"), (None, "cannot be read")])
def test_file_that_is_no_text_is_refused(home, tmp_path, raw, says):
    path = tmp_path / "x.bin"
    if raw is not None:
        path.write_bytes(raw)
    assert says in Desk(home).type(f"/file {path}").said


def test_copy_hands_the_last_answer_to_a_clipboard_program(home, tmp_path, monkeypatch):
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path / 'board'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    desk = Desk(home, "first", "sécond").type("one", "two", "/copy")
    assert (tmp_path / "board").read_text() == "sécond" and "copied 6 characters by pbcopy" in desk.said


def test_copy_without_a_clipboard_says_what_helps(home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "install wl-copy or xclip" in Desk(home, "A").type("one", "/copy").said
    assert "there is no answer yet" in Desk(home).type("/copy").said


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = tmp_path / "editor"
    program.write_text(f"#!/bin/sh\nprintf '{text}' > \"$1\"\ntouch -d '+5 seconds' \"$1\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(program))


def test_edit_asks_the_changed_message_in_place_of_the_last(home, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, "uno")
    desk = Desk(home, "A", "B").type("one", "/edit")
    assert [m.content for m in desk.chat.messages] == ["uno", "B"]


def test_edit_that_fails_keeps_the_earlier_turn(home, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, "uno")
    desk = Desk(home, "A", ContextOverflow("too long")).type("one", "/edit")
    assert [m.content for m in desk.chat.messages] == ["one", "A"]


def test_model_switches_and_keeps_the_messages(home):
    other = FakeModel(["B"], name="other")
    desk = Desk(home, "A", switch=lambda name: (other, ModelFacts("Q8_0", 100))).type(
        "one", "/model other", "two"
    )
    assert [m.content for m in other.calls[0].messages] == ["one", "A", "two"]
    assert desk.chat.session.model == "other" and "other  Q8_0" in desk.chat.status()


def test_wrong_model_leaves_the_present_one(home):
    def missing(name: str):
        raise UsageError(f"no {name}")

    desk = Desk(home, "A", "B", switch=missing).type("one", "/model nope", "two")
    assert "error: no nope" in desk.said and desk.chat.messages[-1].content == "B"


def test_answer_that_repeats_itself_is_stopped_and_kept(home):
    desk = Desk(home, "again and " * 400).type("go on")
    assert "the answer repeats itself" in desk.said
    assert 1_000 < len(desk.chat.messages[-1].content) < 3_000


def test_guard_can_be_off(home):
    desk = Desk(home, "again and " * 400, guard=False).type("go on")
    assert len(desk.chat.messages[-1].content) == 4_000 and "repeats" not in desk.said


def test_retry_and_edit_leave_the_earlier_ones_as_branches(home, tmp_path, monkeypatch):
    editor(tmp_path, monkeypatch, "uno")
    desk = Desk(home, "A", "B", "C").type("one", "/retry", "/edit")
    chat = desk.sessions.folder.read(desk.chat.session.id)
    said = {m.content: m for m in chat.messages.values()}
    assert list(said) == ["one", "A", "B", "uno", "C"]
    assert said["A"].parent == said["B"].parent == said["one"].id and said["uno"].parent is None
    assert [m.content for m in chat.branch()] == ["uno", "C"]


def test_a_message_is_on_disk_before_its_answer_and_each_second_of_the_answer_too(home, monkeypatch):
    monkeypatch.setattr("freehold.cli.chat.sessions.EACH_S", 0.0)
    seen: list[list[tuple[str, str, str]]] = []

    class Looked(FakeModel):
        def stream(self, messages, **options):
            for chunk in super().stream(messages, **options):
                (card,) = Sessions(home).folder.cards()
                chat = Sessions(home).folder.read(card.id)
                seen.append([(m.role, m.content, m.state) for m in chat.messages.values()])
                yield chunk

    Desk(home, Looked(["one two three"])).type("count")
    assert seen[0] == [("user", "count", "whole"), ("assistant", "", "open")]
    grown = [rows[1][1] for rows in seen]
    assert grown == sorted(grown) and "one" in grown[-1] and seen[-1][1][2] == "open"
    (message,) = [m for m in Sessions(home).latest().messages if m.role == "assistant"]
    assert message.content == "one two three"


def test_a_failed_message_stays_in_the_file_with_its_reason(home):
    desk = Desk(home, ContextOverflow("prompt has 9,120 tokens", "use --context"), "B").type("long", "short")
    chat = desk.sessions.folder.read(desk.chat.session.id)
    assert [m.content for m in chat.branch()] == ["short", "B"]
    assert [(m.role, m.content, m.state) for m in chat.messages.values()][:2] == [
        ("user", "long", "whole"),
        ("assistant", "", "failed"),
    ]
    failed = next(m for m in chat.messages.values() if m.state == "failed")
    assert failed.error == {"message": "prompt has 9,120 tokens", "hint": "use --context"}


def test_a_full_disk_is_said_once_and_what_it_refused_is_saved_later(home, monkeypatch):
    from freehold.base.errors import CapacityExceeded
    from freehold.serve.chats import writer

    full, append = [False], writer.append

    def refusing(fd, data, chat, most, *, flush):
        if full[0]:
            raise CapacityExceeded("the disk is full: chat x is saved up to here")
        append(fd, data, chat, most, flush=flush)

    monkeypatch.setattr(writer, "append", refusing)
    desk = Desk(home, "A", "B", "C").type("one")
    full[0] = True
    desk.type("two")
    assert desk.said.count("the disk is full") == 1 and "B" in desk.text
    full[0] = False
    desk.type("three")
    assert [m.content for m in desk.sessions.latest().messages] == ["one", "A", "two", "B", "three", "C"]


def test_a_chat_that_the_page_deleted_goes_on_in_a_new_file_with_all_of_it(home):
    desk = Desk(home, "A", "B").type("one")
    gone = desk.chat.session.id
    desk.sessions.folder.delete(gone)
    desk.type("two")
    assert desk.chat.session.id != gone and "deleted by another program" in desk.said
    assert [m.content for m in desk.sessions.latest().messages] == ["one", "A", "two", "B"]


def test_a_name_leaves_the_chat_in_its_file_so_that_a_page_still_has_it(home):
    desk = Desk(home, "A").type("one")
    id = desk.chat.session.id
    desk.type("/name recipes")
    assert desk.sessions.folder.read(id).card.title == "recipes"
    assert desk.sessions.load("recipes").id == id == desk.sessions.load(id).id


def test_a_session_of_the_older_format_is_read_and_continued(home):
    (home / "sessions").mkdir(parents=True)
    lines = [
        '{"session": "old", "model": "m", "created": "2026-01-01T00:00:00+00:00"}',
        '{"role": "system", "content": "be brief", "thinking": "", "tool_calls": [], "parts": []}',
        '{"role": "user", "content": "one", "thinking": ""}',
        '{"role": "assistant", "content": "A", "thinking": "hm"}',
    ]
    (home / "sessions" / "old.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    desk = Desk(home, "B").type("/load old", "two")
    assert [m.content for m in desk.model.calls[0].messages] == ["be brief", "one", "A", "two"]
    assert [m.content for m in desk.sessions.load("old").messages] == ["be brief", "one", "A", "two", "B"]


class Calling(FakeModel):
    """Calls two tools in its first answer to a question, and one more in the second."""

    info = SimpleNamespace(can_see=False)

    def stream(self, messages, **options):
        calls = {"user": ("a", "b"), "b": ("c",)}.get(messages[-1].tool_call_id or messages[-1].role, ())
        yield Chunk(f"after {messages[-1].content}. ")
        for index, id in enumerate(calls):
            piece = ToolPiece(index, id, "echo", f'{{"text": "{id}"}}')
            yield Chunk("", tool_calls=(piece,), finish_reason="tool_calls")


class Echoing(TerminalTools):
    """Runs calls without a program."""

    def __init__(self, home: Path) -> None:
        super().__init__(load_settings({"FREEHOLD_HOME": str(home)}), (), "chat")
        self.fails = ""

    def use(self, call: ToolCall) -> ToolResult:
        if call.id == self.fails:
            raise KeyboardInterrupt
        return ToolResult(content=f"result of {call.id}", server="h")

    def server_of(self, name: str) -> str:
        return "h"


@pytest.fixture
def echoing(home):
    tools = Echoing(home)
    yield tools
    tools.close()


def test_calls_and_results_are_kept_as_the_page_keeps_them(home, echoing):
    desk = Desk(home, Calling(()), tools=echoing)
    desk.chat.model = Tooled(desk.model, echoing)
    desk.type("go", "again")
    chat = desk.sessions.folder.read(desk.chat.session.id)
    branch = chat.branch()
    rounds = ["assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert [m.role for m in branch] == ["user", *rounds, "user", *rounds] and len(chat.messages) == len(
        branch
    )
    assert [(m.content, m.call, [(c.id, c.server, c.name) for c in m.calls]) for m in branch[:7]] == [
        ("go", "", []),
        ("after go. ", "", [("a", "h", "echo"), ("b", "h", "echo")]),
        ("result of a", "a", []),
        ("result of b", "b", []),
        ("after result of b. ", "", [("c", "h", "echo")]),
        ("result of c", "c", []),
        ("after result of c. ", "", []),
    ]
    assert all(m.state == "whole" and m.content for m in branch)
    assert desk.text.count("after") == 6
    again = desk.sessions.load(desk.chat.session.name)
    assert [(m.role, m.content, m.tool_calls, m.tool_call_id) for m in again.messages] == [
        (m.role, m.content, m.tool_calls, m.tool_call_id) for m in desk.chat.messages
    ]


def test_ctrl_c_in_a_tool_takes_the_message_back_and_leaves_its_calls_as_a_branch(home, echoing):
    desk = Desk(home, Calling(()), tools=echoing)
    desk.chat.model = Tooled(desk.model, echoing)
    desk.type("go")
    echoing.fails = "b"
    desk.type("again")
    assert "the message was removed" in desk.said and desk.roles[-1] == "assistant"
    chat = desk.sessions.folder.read(desk.chat.session.id)
    assert [m.content for m in chat.branch()][-1] == "after result of c. "
    assert [m.content for m in chat.messages.values()][-3:] == ["again", "after again. ", "result of a"]


@pytest.mark.parametrize("line", ["/bye", "/exit", "/quit"])
def test_every_word_for_leaving_leaves(home, line: str):
    assert Desk(home).chat.handle(line) is False


def test_a_lone_exit_asks_and_a_blank_line_leaves(home):
    chat = Desk(home, "It ends a program.", "Hello.").chat
    assert chat.handle("exit") and chat.handle("hello")  # another message goes on
    desk = Desk(home, "It ends a program.")
    assert desk.chat.handle("exit") and "quit the chat? Enter quits" in desk.said
    assert not desk.model.calls
    assert desk.chat.handle("exit") and desk.model.calls[0].messages[-1].content == "exit"
    assert desk.chat.handle("") and desk.chat.handle("quit") and not desk.chat.handle("")


def test_save_makes_a_model_of_the_system_prompt(home):
    made: list[tuple[str, str]] = []

    def keep(name: str, system: str) -> str:
        made.append((name, system))
        return name

    desk = Desk(home, keep=keep).type("/system Answer as a pirate.", "/save pirate", "/save")
    assert made == [("pirate", "Answer as a pirate.")]
    assert "to chat: freehold run pirate" in desk.said and "/save NAME saves a model" in desk.said
