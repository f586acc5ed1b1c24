"""/console/api/chats: list, search, read, change, delete with undo, export, import, and each key's its own."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import msgspec
import pytest

from freehold.base.errors import CapacityExceeded, StoreError
from freehold.serve.chats import exported as exports
from freehold.serve.chats import folder as folders
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import SavedChat
from freehold.serve.http.console import chats as handlers
from freehold.serve.http.console.chats import ChatShelf
from freehold.serve.http.core.call import CALLER_THREADS
from freehold.serve.http.core.keys import Ring, made
from freehold.serve.http.core.limits import ServerLimits
from tests.http.conftest import Running
from tests.http.test_streams import eventually

URL = "/console/api/chats"
ANN, BOB = "a" * 20, "b" * 20


@pytest.fixture
def server(serving, tmp_path: Path) -> Running:
    return serving(home=tmp_path / "mine")


@pytest.fixture
def mine(tmp_path: Path) -> ChatFolder:
    return ChatFolder.of(tmp_path / "mine")


def keyed(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def talked(folder: ChatFolder, *texts: str, title: str = "") -> str:
    """Make a chat of a user and a model in turns; return its id."""
    card = folder.create(model="tiny", title=title)
    with folder.writer(card.id) as writer:
        parent = None
        for n, text in enumerate(texts):
            parent = writer.message("assistant" if n % 2 else "user", text, parent=parent, model="tiny").id
    return card.id


def begin(server: Running, **fields: object) -> str:
    answer = server.client.post(URL, json=fields)
    assert answer.status_code == 201
    return answer.json()["id"]


def test_a_chat_of_the_page_is_the_terminal_s_and_the_other_way_round(server, mine):
    id = begin(server, model="tiny", title="of the page")
    assert mine.read(id).card.title == "of the page"
    other = talked(mine, "of the terminal")
    assert {c["id"] for c in server.client.get(URL).json()["chats"]} == {id, other}


def test_a_chat_that_is_begun_again_with_its_word_is_the_same_as_it_is_asked_for_now(server, mine):
    id = begin(server, once="w", model="tiny")
    assert begin(server, once="w", model="other", settings={"system": "Be brief."}) == id
    saved = mine.read(id)
    assert (saved.card.model, saved.settings.system, len(mine.cards())) == ("other", "Be brief.", 1)
    assert begin(server, once="v") != id and begin(server) != begin(server)
    server.client.delete(f"{URL}/{id}", headers={"Content-Type": "application/json"})
    assert begin(server, once="w") != id
    assert server.client.post(URL, json={"once": "w" * 65}).status_code == 400


def test_a_list_is_read_in_pages_pinned_ones_first_and_then_the_newest(server, mine):
    ids = [talked(mine, f"chat {n}") for n in range(7)]
    server.client.patch(f"{URL}/{ids[2]}", json={"pinned": True})
    seen, after = [], ""
    while after is not None:
        answer = server.client.get(URL, params={"limit": 3, "after": after}).json()
        seen += [c["id"] for c in answer["chats"]]
        after = answer["next"]
    assert seen[0] == ids[2] and sorted(seen) == sorted(ids) and len(seen) == 7
    cards = server.client.get(URL).json()["chats"]
    assert cards[0]["pinned"] and [c["updated"] for c in cards[1:]] == sorted(
        (c["updated"] for c in cards[1:]), reverse=True
    )


@pytest.mark.parametrize(
    "query",
    [
        "limit=501",
        "limit=-1",
        "limit=1e2",
        "after=zz",
        "after=1~x~y",
        "q=" + "x" * 201,
        "limit=" + "9" * 5000,
    ],
)
def test_a_query_that_is_none_is_refused_with_its_name(server, query):
    answer = server.client.get(f"{URL}?{query}")
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_window_has_the_shape_of_all_and_the_text_of_the_end(server, mine):
    id = talked(mine, *(f"message {n}" for n in range(120)))
    window = server.client.get(f"{URL}/{id}").json()
    assert len(window["tree"]) == 120 and window["tree"][0][1:] == [None, "user", 9]
    assert [m["content"] for m in window["messages"]] == [f"message {n}" for n in range(70, 120)]
    assert window["leaf"] == window["tree"][-1][0] and window["running"] == []
    first = window["tree"][0][0]
    found = server.client.get(f"{URL}/{id}/messages", params={"ids": f"{first},nothing"}).json()["messages"]
    assert [(m["id"], m["content"], m["state"]) for m in found] == [(first, "message 0", "whole")]


def test_a_branch_is_shown_and_shown_again(server, mine):
    id = talked(mine, "question", "first answer")
    question, first = (m.id for m in mine.read(id).branch())
    with mine.writer(id) as writer:
        second = writer.message("assistant", "second answer", parent=question).id
    assert server.client.get(f"{URL}/{id}").json()["leaf"] == second
    server.client.patch(f"{URL}/{id}", json={"leaf": first})
    shown = server.client.get(f"{URL}/{id}").json()
    assert [m["content"] for m in shown["messages"]] == ["question", "first answer"]
    assert len(shown["tree"]) == 3
    server.client.patch(f"{URL}/{id}", json={"leaf": None})
    assert server.client.get(f"{URL}/{id}").json()["messages"] == []
    assert server.client.patch(f"{URL}/{id}", json={"leaf": "none"}).status_code == 400


def test_a_title_is_the_first_line_of_the_user_until_it_is_set(server, mine):
    id = talked(mine, "\n  How do  I bake bread?\nTell me.", "Knead.")
    assert server.client.get(f"{URL}/{id}").json()["chat"]["title"] == "How do I bake bread?"
    before = mine.read(id).card.updated
    card = server.client.patch(f"{URL}/{id}", json={"title": "Bread\n and more"}).json()
    assert card["title"] == "Bread and more" and card["updated"] == before, "a new name is no new message"
    for much in ("x" * 201, " x" * 900):
        assert server.client.patch(f"{URL}/{id}", json={"title": much}).status_code == 400
    assert server.client.patch(f"{URL}/{id}", json={"title": ""}).json()["title"] == "How do I bake bread?"


def test_settings_and_model_are_kept(server):
    id = begin(server)
    wanted = {"system": "be brief", "think": False, "sampling": {"temperature": 0.2}}
    server.client.patch(f"{URL}/{id}", json={"settings": wanted, "model": "other"})
    window = server.client.get(f"{URL}/{id}").json()
    assert window["settings"] == wanted and window["chat"]["model"] == "other"


def test_search_finds_the_oldest_message_in_any_case_and_what_the_terminal_wrote_since(server, mine):
    id = talked(mine, "The STRASSE of Zürich", "a long answer", title="trip")
    for n in range(3):
        talked(mine, f"chat {n}")

    def found(text: str) -> list[tuple[str, str]]:
        matches = server.client.get(URL, params={"q": text}).json()["matches"]
        return [(m["chat"]["id"], m["excerpt"]) for m in matches]

    assert found("straße") == [(id, "The STRASSE of Zürich")]
    assert found("ZÜRICH") and found("TRIP") == [(id, "trip")] and found("nothing like it") == []
    with mine.writer(id) as writer:
        writer.message("user", "a later word: quokka", parent=None)
    assert found("Quokka") == [(id, "a later word: quokka")]
    server.client.delete(f"{URL}/{id}")
    assert found("Quokka") == []


def test_a_deleted_chat_comes_back_within_ten_minutes_even_after_a_restart(
    serving, tmp_path, mine, monkeypatch
):
    first = serving(home=tmp_path / "mine")
    kept, gone = talked(mine, "kept"), talked(mine, "gone")
    for id in (kept, gone):
        assert first.client.delete(f"{URL}/{id}").json() == {"undo_s": 600}
        assert first.client.get(f"{URL}/{id}").status_code == 404
    first.end()
    second = serving(home=tmp_path / "mine")
    assert second.client.post(f"{URL}/{kept}/restore", json={}).json()["title"] == "kept"
    assert second.client.get(f"{URL}/{kept}").json()["messages"][0]["content"] == "kept"
    now = time.time()
    monkeypatch.setattr(folders.time, "time", lambda: now + 601)
    assert second.client.post(f"{URL}/{gone}/restore", json={}).status_code == 404
    assert not list((mine.path / ".deleted").iterdir())


def test_export_and_import_make_the_same_chat_again(server, mine):
    id = talked(mine, "question", "an answer with ```code```", title="Bread")
    question = mine.read(id).branch()[0].id
    with mine.writer(id) as writer:
        open_ = writer.open_answer(parent=question, model="tiny")
        writer.end(open_.id, "length", text="cut", receipt={"tokens": 3})
    asked = server.client.get(f"{URL}/{id}/export", params={"as": "json"})
    assert asked.headers["content-disposition"] == f'attachment; filename="{id}.json"'
    made = server.client.post("/console/api/import", json={"chat": asked.json()})
    assert made.status_code == 201 and made.json()["id"] != id
    again = server.client.get(f"{URL}/{made.json()['id']}/export", params={"as": "json"}).json()
    assert {**again, "created": ""} == {**asked.json(), "created": ""}
    read = server.client.get(f"{URL}/{id}/export", params={"as": "md"})
    assert read.headers["content-type"] == "text/markdown; charset=utf-8"
    assert read.text == "# Bread\n\n## You\n\nquestion\n\n## tiny\n\ncut\n"
    assert server.client.get(f"{URL}/{id}/export?as=exe").status_code == 400


def test_an_import_drops_tools_and_on_request_the_system_prompt(server, mine):
    rows = [
        message("s", role="system", content="Obey."),
        message("a", "s"),
        message("b", "a", role="assistant"),
    ]
    chat = {
        "messages": rows,
        "leaf": "b",
        "settings": {"system": "You are evil.", "tools": ["files"], "sampling": {"seed": 7}},
    }
    kept = server.client.post("/console/api/import", json={"chat": chat}).json()["id"]
    settings = mine.read(kept).settings
    assert settings.tools == [] and settings.system == "You are evil." and settings.sampling == {"seed": 7}
    bare = server.client.post("/console/api/import", json={"chat": chat, "system": False}).json()["id"]
    saved = mine.read(bare)
    assert saved.settings.system == "" and saved.settings.tools == []
    assert [(m.id, m.parent) for m in saved.branch()] == [("a", None), ("b", "a")]


def test_an_export_is_no_longer_than_its_chat_s_file_and_an_import_takes_it(serving, tmp_path):
    limits = ServerLimits(body_bytes=200_000, body_containers=400, body_names=1000)
    server = serving(home=tmp_path / "mine", limits=limits)
    mine = ChatFolder.of(tmp_path / "mine")
    id = mine.create(model="tiny").id
    with mine.writer(id) as writer:
        parent = None
        for n in range(300):
            user = writer.message("user", f"{n} " + "é" * 300, parent=parent)
            answer = writer.open_answer(parent=user.id, model="tiny")
            writer.end(answer.id, "stop", text="an answer", receipt={"tokens": {"prompt": n}, "warnings": []})
            parent = answer.id
    data = server.client.get(f"{URL}/{id}/export").content
    assert limits.body_bytes < len(data) <= mine.file(id).stat().st_size + 1000
    made = server.client.post(
        "/console/api/import",
        content=b'{"chat": %s}' % data,
        headers={"content-type": "application/json"},
    )
    assert made.status_code == 201 and made.json()["messages"] == 600


@pytest.mark.parametrize("name, most", [("MAX_MESSAGES", 3), ("MAX_EXPORT_BYTES", 300)])
def test_what_no_import_takes_is_not_exported_as_json(server, mine, monkeypatch, name, most):
    id = talked(mine, "one", "two", "three", "four")
    monkeypatch.setattr(exports, name, most)
    refused = server.client.get(f"{URL}/{id}/export")
    assert refused.status_code == 400 and "Markdown" in refused.json()["error"]["message"]
    assert server.client.get(f"{URL}/{id}/export?as=md").status_code == 200


def test_an_import_of_more_than_a_chat_holds_leaves_nothing(server, mine, monkeypatch):
    monkeypatch.setattr(folders, "MAX_CHAT_BYTES", folders.FOR_ENDS + 50)
    asked = {"chat": {"messages": [message(content="x" * 100)]}}
    assert server.client.post("/console/api/import", json=asked).status_code == 400
    assert mine.cards() == []


def message(id: str = "a", parent: str | None = None, **more: object) -> dict:
    return {"id": id, "parent": parent, "role": "user", "content": "x", **more}


@pytest.mark.parametrize(
    "chat, part",
    [
        ({}, "messages"),
        ({"messages": [message(id="../x")]}, "is not an id"),
        ({"messages": [message(), message()]}, "occurs twice"),
        ({"messages": [message(parent="a")]}, "does not come before"),
        ({"messages": [message("a", "b"), message("b", "a")]}, "does not come before"),
        ({"messages": [message(role="king")]}, "king"),
        ({"messages": [message()], "leaf": "z"}, "is not one of its messages"),
        ({"messages": [message()], "title": "x" * 201}, "at most 200"),
        ({"messages": [message()], "format": "other"}, "expected 'freehold-chat'"),
        ({"messages": [message(images=["https://evil.example/a.png"])]}, "is not a data: URL"),
        ({"messages": [message(content=7)]}, "Expected `str`"),
        ({"messages": 7}, "Expected `array`"),
    ],
)
def test_what_is_no_exported_chat_is_refused_by_name_and_leaves_nothing(server, mine, chat, part):
    answer = server.client.post("/console/api/import", json={"chat": chat})
    assert answer.status_code == 400 and part in answer.json()["error"]["message"]
    assert mine.cards() == []


def test_an_import_has_as_many_messages_as_the_limit_says(server, monkeypatch):
    monkeypatch.setattr(exports, "MAX_MESSAGES", 3)
    for count, status in ((3, 201), (4, 400)):
        rows = [message(str(n), str(n - 1) if n else None) for n in range(count)]
        assert (
            server.client.post("/console/api/import", json={"chat": {"messages": rows}}).status_code == status
        )


def test_more_ids_than_the_limit_are_refused(server, mine):
    id = talked(mine, "x")
    ids = ",".join(map(str, range(handlers.MAX_IDS + 1)))
    assert server.client.get(f"{URL}/{id}/messages", params={"ids": ids}).status_code == 400


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"chat": 1}', b'{"title": 3}', b"\xff", b'{"a":' * 9000]
)
@pytest.mark.parametrize("path", [URL, "/console/api/import"])
def test_a_bad_body_is_answered_and_the_server_goes_on(server, path, body):
    answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (201, 400, 413)
    assert server.client.get(URL).status_code == 200


def asked_every_way(client: httpx2.Client, id: str) -> list[tuple[int, str]]:
    """Ask each route of a chat; return status and message, the id taken out."""
    answers = [
        client.get(f"{URL}/{id}"),
        client.get(f"{URL}/{id}/messages?ids=a"),
        client.get(f"{URL}/{id}/export"),
        client.get(f"{URL}/{id}/export?as=md"),
        client.patch(f"{URL}/{id}", json={"title": "mine now"}),
        client.patch(f"{URL}/{id}", json={"leaf": "a"}),
        client.delete(f"{URL}/{id}"),
        client.post(f"{URL}/{id}/restore", json={}),
    ]
    return [(a.status_code, a.text.replace(id, "ID")) for a in answers]


def test_each_key_has_its_own_chats_and_another_s_id_is_as_one_that_never_was(serving, tmp_path):
    keys = [made(n, k, admin=False, models=(), rate="", tokens="") for n, k in (("ann", ANN), ("bob", BOB))]
    server = serving(home=tmp_path / "mine", keys=Ring(keys))
    ann, bob = (
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) for key in (ANN, BOB)
    )
    with ann, bob:
        id = ann.post(URL, json={"title": "secret plan"}).json()["id"]
        assert id in [c["id"] for c in ann.get(URL).json()["chats"]]
        for other in (bob, server.admin, server.owner):
            assert other.get(URL).json()["chats"] == []
            assert other.get(URL, params={"q": "secret"}).json()["matches"] == []
            foreign, never = asked_every_way(other, id), asked_every_way(other, "2020-01-01-0000")
            assert foreign == never and {status for status, _ in foreign} == {404}
        assert ann.get(f"{URL}/{id}").json()["chat"]["title"] == "secret plan"
        assert httpx2.get(server.url + URL).status_code == 401
        owned = server.admin.post(URL, json={"title": "the owner's"}).json()["id"]
        assert ChatFolder.of(tmp_path / "mine").exists(owned)


@pytest.mark.parametrize(
    "id", ["..", "%2e%2e%2fx", "a%2fb", "keys", ".index.db", "x" * 81, "%00", "a~b", "é"]
)
def test_an_id_that_could_be_a_path_is_answered_as_one_that_is_not_there(server, mine, id):
    talked(mine, "x")
    answer = server.client.get(f"{URL}/{id}")
    assert answer.status_code in (404, 405) and "sessions" not in answer.text


def test_strangers_of_an_insecure_server_do_not_read_the_user_s_chats(serving, tmp_path, mine):
    talked(mine, "private")
    server = serving(home=tmp_path / "mine", insecure=True)
    assert server.client.get(URL).json()["chats"] == []
    assert [c["title"] for c in server.admin.get(URL).json()["chats"]] == ["private"]


def test_the_chats_of_a_key_have_a_limit_that_one_s_own_have_not(tmp_path: Path):
    folder = ChatFolder.of(tmp_path, "ann", 30_000)
    id = talked(folder, "short")
    with folder.writer(id) as writer:
        begun = writer.open_answer(parent=None, model="tiny")
        writer.more(begun.id, text="x" * 31_000)
        with pytest.raises(CapacityExceeded, match=r"and console\.chats_per_key allows 30,000") as refused:
            writer.message("user", "one more", parent=begun.id)
        assert "delete some" in refused.value.hint
        writer.end(begun.id, "stop", text="its end")
    assert folder.read(id).messages[begun.id].content.endswith("its end")
    with pytest.raises(CapacityExceeded):
        folder.create(title="another")
    folder.delete(id)
    with pytest.raises(CapacityExceeded):
        folder.create(title="while it can be restored")
    for path in (folder.path / ".deleted").iterdir():
        path.unlink()
    assert folder.create(title="after that").title == "after that"
    talked(ChatFolder.of(tmp_path, "", 1), "any", "number")


def test_a_full_key_hears_its_limit_and_the_way_out_and_another_goes_on(serving, tmp_path: Path):
    keys = [made(n, k, admin=False, models=(), rate="", tokens="") for n, k in (("ann", ANN), ("bob", BOB))]
    server = serving(home=tmp_path / "mine", keys=Ring(keys), chats_per_key=10_000)
    full, other = ({"Authorization": f"Bearer {key}"} for key in (ANN, BOB))
    answers = [server.client.post(URL, json={}, headers=full) for _ in range(4)]  # empty ones count too
    assert answers[0].status_code == 201 and answers[-1].status_code == 503
    said = answers[-1].json()["error"]
    assert said["code"] == "capacity_exceeded" and "console.chats_per_key allows 10,000" in said["message"]
    assert "config.toml" in said["hint"]
    assert server.client.post(URL, json={"title": "hello"}, headers=other).status_code == 201


def test_changes_fill_no_more_than_a_key_s_limit_and_a_tenth(serving, tmp_path: Path):
    keys = [made("ann", ANN, admin=False, models=(), rate="", tokens="")]
    server = serving(home=tmp_path / "mine", keys=Ring(keys), chats_per_key=20_000)
    ann = {"Authorization": f"Bearer {ANN}"}
    id = server.client.post(URL, json={"title": "small"}, headers=ann).json()["id"]

    def change(**fields: object) -> int:
        return server.client.patch(f"{URL}/{id}", json=fields, headers=ann).status_code

    assert [change(settings={"system": "x" * 10_100}) for _ in range(3)] == [200, 200, 503]
    assert change(pinned=True) == 200  # and what is there can be set in order
    assert change(model="x" * 9_000) == 400
    pins = [change(pinned=True) for _ in range(100)]
    assert pins[-1] == 503
    assert ChatFolder.of(tmp_path / "mine", "ann").file(id).stat().st_size < 22_200


def test_what_is_deleted_together_is_purged_once_and_off_the_loop(mine, tmp_path, monkeypatch):
    shelf, purged = ChatShelf(tmp_path), []

    async def body() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def purge(folder: ChatFolder) -> None:
            purged.append(threading.current_thread())
            loop.call_soon_threadsafe(done.set)

        monkeypatch.setattr(ChatFolder, "purge", purge)
        monkeypatch.setattr(handlers, "UNDO_S", 0.0)
        monkeypatch.setattr(handlers, "PURGE_S", 0.05)
        for _ in range(1000):
            shelf.purge_later(mine)
        assert len(shelf._purging) < 10
        await asyncio.wait_for(done.wait(), 60)

    asyncio.run(body())
    assert threading.current_thread() not in purged and len(purged) < 10


def test_one_key_s_chats_leave_threads_to_the_others(serving, tmp_path, monkeypatch):
    ann = made("ann", ANN, admin=False, models=(), rate="", tokens="")
    bob = made("bob", BOB, admin=False, models=(), rate="", tokens="")
    server = serving(home=tmp_path / "two", keys=Ring([ann, bob]))
    release, inside = threading.Event(), []

    def slow(folder: ChatFolder, id: str) -> SavedChat:
        inside.append(id)
        assert release.wait(60)
        raise StoreError("damaged")

    monkeypatch.setattr(ChatFolder, "read", slow)
    with ThreadPoolExecutor(40) as pool, httpx2.Client(base_url=server.url, timeout=60) as client:
        sent = [pool.submit(client.get, f"{URL}/c{n}", headers=keyed(ANN)) for n in range(40)]
        try:
            assert eventually(
                lambda: server.doors.server.requests["key ann"] == 40 and len(inside) == CALLER_THREADS
            )
            assert client.get(URL, headers=keyed(BOB)).status_code == 200
            assert len(inside) == CALLER_THREADS
        finally:
            release.set()
        assert {each.result().status_code for each in sent} == {500}


def test_an_import_converts_its_messages_one_by_one(monkeypatch):
    kinds, convert = [], msgspec.convert
    monkeypatch.setattr(exports.msgspec, "convert", lambda v, kind: kinds.append(kind) or convert(v, kind))
    lines = exports.taken({"messages": [message("a"), message("b", "a")]}, system=True).lines
    assert kinds == [exports.ExportedMessage, exports.ExportedMessage, exports.ExportedChat]
    assert [each.id for each in lines if each.role] == ["a", "b"]
