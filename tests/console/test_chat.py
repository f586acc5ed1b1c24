"""The chat page with a real server: what people do in it, by the names that they hear.

One server for the whole file, with a model that says scripted text at some 2,000 tokens a second.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatChange, ChatLine
from tests.console.conftest import Served
from tests.console.scripted import write_scripted

LINES = 1500  # some seconds, also on a machine that does nothing else
LONG = "".join(f"Line {i} of a long answer, which has some more words.\n\n" for i in range(LINES))
SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n\nThat was **a table**.",
    "long": LONG,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of this file's tests; they do not end it."""
    folder = tmp_path_factory.mktemp("chat")
    model = write_scripted(folder / "scripted.gguf", SCRIPTS)
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text("adopt = false\nconsole.titles = false\n")
    served = Served(folder / "home", (str(model),))
    served.start()
    yield served
    served.stop()


@pytest.fixture
def chat(server: Served, page: Any) -> Any:
    """The page with a new chat."""
    page.goto(server.url)
    box(page).wait_for()
    page.get_by_role("button", name=re.compile("^Model: scripted")).wait_for()
    return page


def more(page: Any, action: str, article: str = "scripted") -> None:
    """Choose an action in the menu of the last message of the model, or of the user ("You")."""
    message = page.get_by_role("article", name=article).last
    message.get_by_role("button", name="More for this message").click()
    page.get_by_role("menuitem", name=action).click()


def box(page: Any) -> Any:
    return page.get_by_role("textbox", name="Message", exact=True)


def say(page: Any, text: str) -> None:
    box(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def answers(page: Any) -> Any:
    return page.get_by_role("log").locator("article:not(.user)")


def said(page: Any, count: int = 1) -> Any:
    """Wait for that many whole answers; return the last."""
    page.locator(f"article:not(.user):not([aria-busy]) >> nth={count - 1}").wait_for()
    return answers(page).nth(count - 1)


def stored(server: Served, page: Any) -> Any:
    """The chat that is open, as its file has it."""
    return ChatFolder.of(server.home).read(page.url.rpartition("/")[2].split("?")[0])


def write_chat(server: Served, count: int) -> str:
    """Write a chat of so many messages; the oldest has a word of its own."""
    lines = [
        ChatLine(
            id=f"m{i}",
            parent=f"m{i - 1}" if i else None,
            role="assistant" if i % 2 else "user",
            content=f"Text {i} with **some** words.\n\n- one\n- two" + (" xylograph" if i == 0 else ""),
            at=1.7e9 + i,
            model="scripted" if i % 2 else "",
        )
        for i in range(count)
    ]
    lines.append(ChatLine(set=ChatChange(title=f"Of {count}", leaf=f"m{count - 1}")))
    return ChatFolder.of(server.home).write("", "scripted", lines).id


_FROM_END = """() => {
    const log = document.querySelector("[role=log]");
    return log.scrollHeight - log.scrollTop - log.clientHeight;
}"""


@pytest.mark.heavy
def test_a_fast_answer_is_followed_to_its_end_and_a_sent_message_is_scrolled_to(chat):
    chat.set_viewport_size({"width": 390, "height": 800})
    say(chat, "something long")
    expect(chat.get_by_role("log").get_by_text(f"Line {LINES - 1} of")).to_be_in_viewport(timeout=60_000)
    chat.get_by_role("button", name="Send", exact=True).wait_for()
    chat.get_by_role("log").hover()
    chat.mouse.wheel(0, -3000)
    chat.get_by_role("button", name="To the end").wait_for()
    assert chat.evaluate(_FROM_END) > 1000, "the reader who goes up is left there"
    say(chat, "hello")
    expect(chat.get_by_role("log").get_by_text("Hello! What shall I say?")).to_be_in_viewport()


def test_a_text_that_shrinks_and_grows_between_two_frames_does_not_end_the_following(chat, server):
    chat.goto(f"{server.url}/#/chat/{write_chat(server, 40)}")
    last = chat.get_by_role("log").get_by_role("article").last
    expect(last).to_be_in_viewport()
    last.evaluate(
        """async (article) => {
            const frame = () => new Promise(requestAnimationFrame);
            const text = article.appendChild(document.createElement("div"));
            text.style.height = "1500px";
            for (let i = 0; i < 3; i++) await frame();
            text.style.height = "0px";
            await new Promise((done) => setTimeout(done, 0));
            text.style.height = "3000px";
            for (let i = 0; i < 3; i++) await frame();
        }"""
    )
    assert chat.evaluate(_FROM_END) < 10
    assert chat.get_by_role("button", name="To the end").count() == 0


def test_conversation_is_a_log_of_articles_named_you_and_by_the_model(chat):
    say(chat, "show me a table")
    said(chat).get_by_role("table").wait_for()
    log = chat.get_by_role("log")
    assert log.get_by_role("article", name="You").inner_text().strip() == "show me a table"
    assert log.get_by_role("article", name="scripted").count() == 1
    assert (
        chat.get_by_role("navigation", name="Chats").get_by_role("link").first.inner_text()
        == "show me a table"
    )
    for name in ("New chat", "Send", "Regenerate", "Edit", "Receipt"):
        assert chat.get_by_role("button", name=name, exact=True).count() == 1, name
    assert chat.get_by_role("button", name="Copy", exact=True).count() == 2


def test_stop_keeps_what_has_come(chat, server):
    say(chat, "something long")
    chat.get_by_text("Line 20 of").first.wait_for()
    chat.get_by_role("button", name="Stop", exact=True).click()
    chat.get_by_text("You stopped this answer.").wait_for()
    [_, answer] = stored(server, chat).branch()
    assert answer.state == "stopped" and LONG.startswith(answer.content) and len(answer.content) < len(LONG)


def test_focus_is_in_the_box_after_stop_and_edit_and_for_a_letter_typed_nowhere(chat):
    say(chat, "long please")
    chat.get_by_role("button", name="Stop", exact=True).click()
    expect(box(chat)).to_be_focused()
    expect(
        chat.get_by_role("button", name="Regenerate")
    ).to_be_visible()  # the answer has ended, and moves no more
    chat.get_by_role("log").evaluate("log => log.scrollTo(0, 0)")  # a long answer leaves the question undrawn
    chat.get_by_role("button", name="Edit", exact=True).click()
    expect(box(chat)).to_be_focused()
    expect(box(chat)).to_have_value("long please")
    chat.keyboard.press("Escape")
    chat.get_by_role("heading", level=1).click()
    expect(box(chat)).not_to_be_focused()
    chat.keyboard.type("hello")
    expect(box(chat)).to_have_value("hello")


def test_edit_makes_another_version_and_the_arrow_leads_back(chat, server):
    say(chat, "first words")
    said(chat)
    chat.get_by_role("button", name="Edit", exact=True).click()
    expect(box(chat)).to_have_value("first words")
    say(chat, "a table now")
    said(chat).get_by_role("table").wait_for()
    assert chat.get_by_text("2/2").count() == 1
    chat.get_by_role("button", name="Previous version").click()
    chat.get_by_role("article", name="You").get_by_text("first words").wait_for()
    assert answers(chat).count() == 1 and "Hello!" in answers(chat).inner_text()
    assert len(stored(server, chat).messages) == 4


def test_the_way_back_from_another_page_is_to_the_chat_that_was_left(chat):
    say(chat, "hello again")
    said(chat)
    pages = chat.get_by_role("navigation", name="Freehold")
    pages.get_by_role("link", name="Settings").click()
    chat.get_by_role("heading", name="Settings", level=1).wait_for()
    pages.get_by_role("link", name="Chat", exact=True).click()
    expect(answers(chat)).to_have_count(1)
    pages.get_by_role("link", name="Chat", exact=True).click()
    expect(chat.get_by_role("heading", name="New chat", level=1)).to_be_visible()


def test_regenerate_adds_an_answer_beside_the_first(chat):
    say(chat, "hello")
    said(chat)
    chat.get_by_role("button", name="Regenerate", exact=True).click()
    chat.get_by_text("2/2").wait_for()
    said(chat)
    assert chat.get_by_role("article", name="You").count() == 1


def test_a_thumb_is_kept_and_the_same_one_takes_it_back(chat, server):
    say(chat, "hello")
    said(chat)
    good, poor = (chat.get_by_role("button", name=f"{name} answer", exact=True) for name in ("Good", "Poor"))
    for button, pressed, verdict in ((good, True, "good"), (poor, True, "poor"), (poor, False, "")):
        button.click()
        expect(button).to_have_attribute("aria-pressed", str(pressed).lower())
        assert stored(server, chat).branch()[-1].verdict == verdict
    expect(good).to_have_attribute("aria-pressed", "false")
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    chat.reload()
    expect(good).to_have_attribute("aria-pressed", "true")


@pytest.mark.heavy
def test_reload_in_mid_stream_leaves_no_hole(chat, server):
    say(chat, "something long")
    chat.get_by_text("Line 30 of").first.wait_for()
    chat.reload()
    chat.get_by_text(f"Line {LINES - 1} of").first.wait_for(timeout=60_000)
    chat.get_by_role("button", name="Send", exact=True).wait_for(timeout=60_000)
    [_, answer] = stored(server, chat).branch()
    assert answer.content == LONG and answer.state == "whole"
    shown = chat.evaluate("document.querySelector('article:not(.user) .said').innerText")
    assert re.findall(r"Line (\d+) of", shown) == [str(i) for i in range(LINES)]


def test_draft_survives_a_reload_and_belongs_to_its_chat(chat):
    say(chat, "hello")
    said(chat)
    box(chat).press_sequentially("not sent yet")
    chat.reload()
    box(chat).wait_for()
    expect(box(chat)).to_have_value("not sent yet")
    chat.get_by_role("button", name="New chat", exact=True).click()
    expect(box(chat)).to_have_value("")
    chat.go_back()
    expect(box(chat)).to_have_value("not sent yet")


def test_a_double_click_sends_once(chat, server):
    box(chat).fill("hello twice")
    chat.get_by_role("button", name="Send", exact=True).dblclick()
    said(chat)
    assert [m.role for m in stored(server, chat).messages.values()] == ["user", "assistant"]


def test_enter_of_an_input_method_sends_nothing(chat):
    box(chat).fill("かな")
    compose = "(key) => document.querySelector('textarea').dispatchEvent(new KeyboardEvent('keydown', key))"
    chat.evaluate(compose, {"key": "Enter", "isComposing": True, "bubbles": True})
    chat.evaluate(compose, {"key": "Enter", "keyCode": 229, "bubbles": True})
    chat.wait_for_timeout(200)
    assert box(chat).input_value() == "かな" and chat.get_by_role("article").count() == 0
    box(chat).press("Shift+Enter")
    assert box(chat).input_value() == "かな\n"
    box(chat).press("Enter")
    said(chat)


def test_up_arrow_in_an_empty_box_edits_the_last_message(chat):
    say(chat, "hello up")
    said(chat)
    box(chat).press("ArrowUp")
    expect(box(chat)).to_have_value("hello up")
    box(chat).press("Escape")
    expect(box(chat)).to_have_value("")


def test_large_paste_becomes_a_file_with_its_tokens(chat, server):
    paste = """(text) => {
      const data = new DataTransfer();
      data.setData('text/plain', text);
      const options = {bubbles: true, cancelable: true, clipboardData: data};
      document.querySelector('textarea').dispatchEvent(new ClipboardEvent('paste', options));
    }"""
    chat.evaluate(paste, "\n".join(f"row {i}" for i in range(300)))
    files = chat.get_by_role("list", name="Attached")
    files.get_by_text("pasted text 1.txt").wait_for()
    files.get_by_text(re.compile(r"[\d,]+ tokens")).wait_for()
    assert box(chat).input_value() == ""
    chat.reload()
    files.get_by_text("pasted text 1.txt").wait_for()
    say(chat, "hello")
    said(chat)
    message, _ = stored(server, chat).branch()
    assert message.files[0].name == "pasted text 1.txt" and message.files[0].text.endswith("row 299")


def test_a_file_that_is_no_text_is_refused_by_name(chat, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "b.py").write_text("x = 1\n")
    chat.locator("form input[type=file]").set_input_files([tmp_path / "a.bin", tmp_path / "b.py"])
    chat.get_by_text("a.bin is not text").wait_for()
    chat.get_by_role("list", name="Attached").get_by_text("b.py").wait_for()


def test_chats_are_renamed_pinned_deleted_and_taken_back(chat):
    say(chat, "hello list")
    said(chat)
    nav = chat.get_by_role("navigation", name="Chats")

    def choose(title: str, command: str) -> None:
        nav.get_by_role("link", name=title, exact=True).hover()
        nav.get_by_role("button", name=f"More for {title}", exact=True).click()
        chat.get_by_role("menuitem", name=command).click()

    choose("hello list", "Rename")
    chat.get_by_role("textbox", name="Rename").fill("Greeting")
    chat.keyboard.press("Enter")
    chat.get_by_role("heading", name="Greeting", level=1).wait_for()
    choose("Greeting", "Pin")
    nav.get_by_role("heading", name="Pinned").wait_for()
    choose("Greeting", "Delete")
    chat.get_by_role("link", name="Greeting", exact=True).wait_for(state="detached")
    chat.get_by_role("button", name="Undo").click()
    nav.get_by_role("link", name="Greeting", exact=True).wait_for()
    said(chat)


def test_search_and_find_reach_the_oldest_message(chat, server):
    id = write_chat(server, 400)
    chat.goto(f"{server.url}/#/chat/{id}")
    chat.get_by_role("article").last.get_by_text("Text 399").wait_for()
    assert chat.get_by_text("xylograph").count() == 0, "it is not drawn"
    chat.keyboard.press("Control+f")
    chat.keyboard.type("xylograph")
    chat.get_by_text("1 message", exact=True).wait_for()
    chat.keyboard.press("Enter")
    chat.get_by_role("log").get_by_text("xylograph").wait_for()
    chat.get_by_role("button", name="New chat", exact=True).click()
    chat.get_by_role("searchbox", name="Search chats").fill("xylograph")
    chat.get_by_role("link", name=re.compile("Of 400.*xylograph")).click()
    chat.get_by_role("log").get_by_text("xylograph").wait_for()


def test_two_thousand_messages_are_few_elements_and_keep_the_readers_place(chat, server):
    id = write_chat(server, 2000)
    chat.goto(f"{server.url}/#/chat/{id}")
    chat.get_by_role("article").last.get_by_text("Text 1999").wait_for()
    assert chat.evaluate("document.querySelectorAll('*').length") < 5000
    chat.evaluate("document.querySelector('[role=log]').scrollTop -= 30000")
    chat.wait_for_timeout(300)
    first = """() => {
      const top = document.querySelector('[role=log]').getBoundingClientRect().top;
      const seen = [...document.querySelectorAll('article')].find((a) => a.getBoundingClientRect().bottom > top);
      return [seen.dataset.id, Math.round(seen.getBoundingClientRect().top)];
    }"""
    before = chat.evaluate(first)
    chat.wait_for_timeout(300)
    assert chat.evaluate(first) == before, "what is read does not move while heights settle"
    assert chat.evaluate("document.querySelectorAll('*').length") < 5000


def test_receipt_says_the_seed_and_the_same_bits_come_again(chat):
    say(chat, "hello receipt")
    said(chat)
    chat.get_by_role("button", name="Receipt", exact=True).click()
    receipt = chat.get_by_role("region", name="Receipt")
    receipt.get_by_text(re.compile("read, .* written")).wait_for()
    assert receipt.locator("dt", has_text="Seed").count() == 1
    receipt.get_by_role("button", name="Same bits again").click()
    receipt.get_by_text(re.compile(r"Equal: all \d+ tokens")).wait_for()


def test_request_names_the_seed_with_all_its_digits(chat, server):
    say(chat, "hello request")
    said(chat)
    more(chat, "As a program")
    expect(chat.locator("pre.request")).to_contain_text("-d '")
    curl = chat.locator("pre.request").inner_text()
    body = json.loads(curl[curl.index("-d '") + 4 : curl.rindex("'")])
    assert body["seed"] == stored(server, chat).branch()[-1].receipt["sampling"]["seed"]
    assert body["messages"] == [{"role": "user", "content": "hello request"}]


def test_settings_name_the_models_own_and_reach_the_next_answer(chat, server):
    chat.get_by_role("button", name="Chat settings").click()
    panel = chat.get_by_role("complementary", name="Chat settings")
    panel.get_by_role("textbox", name="System prompt").fill("Be brief.")
    panel.get_by_text("Sampling", exact=True).click()
    panel.get_by_role("spinbutton", name="Temperature").fill("0.4")
    panel.get_by_role("button", name="Save as preset").click()
    panel.get_by_role("textbox", name="Name of the preset").fill("Short")
    chat.keyboard.press("Enter")
    assert panel.get_by_role("combobox", name="Preset").input_value() == "Short"
    say(chat, "hello settings")
    said(chat)
    saved = stored(server, chat)
    assert saved.settings.system == "Be brief." and saved.settings.sampling == {"temperature": 0.4}
    assert saved.branch()[-1].receipt["sampling"]["temperature"] == 0.4


def test_a_second_tab_shows_what_the_first_one_adds(chat, server):
    say(chat, "hello tabs")
    said(chat)
    other = chat.context.new_page()
    other.goto(chat.url)
    said(other)
    say(chat, "one more")
    said(other, 2)
    assert other.get_by_role("article", name="You").last.inner_text().strip() == "one more"


def test_a_screen_reader_hears_the_finished_answer_once(chat):
    chat.evaluate("""() => {
      window.heard = [];
      const status = document.querySelector('.chat-page > .unseen[role=status]');
      new MutationObserver(() => {
        const text = status.textContent;
        if (text && window.heard.at(-1) !== text) window.heard.push(text);
      }).observe(status, {
        childList: true, characterData: true, subtree: true});
    }""")
    say(chat, "hello reader")
    said(chat)
    expect(chat.locator(".chat-page > .unseen[role=status]")).to_have_text("Hello! What shall I say?")
    assert chat.evaluate("window.heard") == ["Answering", "Hello! What shall I say?"]
    assert chat.get_by_role("log").get_attribute("aria-live") == "off"


def test_every_step_of_a_chat_by_keyboard_alone(chat):
    chat.keyboard.type("hello keys")
    chat.keyboard.press("Enter")
    said(chat)
    chat.keyboard.press("Alt+ArrowUp")
    expect(answers(chat).last).to_be_focused()
    chat.keyboard.press("r")
    chat.get_by_text("2/2").wait_for()
    said(chat)
    chat.keyboard.press("Alt+ArrowUp")
    expect(answers(chat).last).to_be_focused()
    chat.keyboard.press("ArrowLeft")
    chat.get_by_text("1/2").wait_for()
    chat.keyboard.press("?")
    chat.get_by_role("dialog", name="Keys of this page").wait_for()
    chat.keyboard.press("Escape")
    expect(chat.get_by_role("dialog")).to_have_count(0)
    chat.wait_for_timeout(300)  # the focus goes back to what had it before the dialog
    chat.keyboard.press("/")
    expect(box(chat)).to_be_focused()
    chat.keyboard.press("Control+Shift+O")
    chat.get_by_role("heading", name="New chat", level=1).wait_for()


def test_list_is_a_drawer_on_a_phone(server, chromium):
    context = chromium.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(server.url)
    say(page, "hello phone")
    said(page)
    assert page.get_by_role("navigation", name="Chats").count() == 0
    page.get_by_role("button", name="Show or hide the list of chats").click()
    page.get_by_role("navigation", name="Chats").get_by_role("link", name="hello phone").click()
    page.get_by_role("navigation", name="Chats").wait_for(state="detached")
    for shown, what in (
        ("Show or hide the list of chats", page.get_by_role("navigation", name="Chats")),
        ("Chat settings", page.get_by_label("System prompt")),
    ):
        page.get_by_role("button", name=shown).click()
        what.wait_for()
        page.keyboard.press("Escape")
        what.wait_for(state="detached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_an_exported_chat_comes_back(chat, tmp_path: Path):
    say(chat, "hello export")
    said(chat)
    with chat.expect_download() as download:
        chat.get_by_role("button", name="More for hello export").click()
        chat.get_by_role("menuitem", name="Export as JSON").click()
    download.value.save_as(tmp_path / "chat.json")
    before = chat.url
    chat.locator("nav input[type=file]").set_input_files(tmp_path / "chat.json")
    chat.wait_for_url(lambda url: url != before)
    assert "Hello!" in said(chat).inner_text()


def test_a_model_named_with_an_at_answers_this_message(chat):
    box(chat).press_sequentially("hello @SCR")
    chat.get_by_role("option", name=re.compile("^scripted")).wait_for()
    box(chat).press("Enter")
    assert box(chat).input_value() == "hello "
    chat.get_by_role("list", name="Attached").get_by_text("Answered by scripted").wait_for()


@pytest.mark.heavy
@pytest.mark.long
def test_an_ended_server_is_said_and_the_page_continues_by_itself(serving, tmp_path, page):
    server = serving(str(write_scripted(tmp_path / "scripted.gguf", SCRIPTS)))
    page.goto(server.url)
    say(page, "something long")
    page.get_by_text("Line 30 of").first.wait_for()
    while not stored(server, page).branch()[-1].content:  # it is written down a few times a second
        page.wait_for_timeout(20)
    server.stop(9)
    ended = time.monotonic()
    page.get_by_text("The server does not answer.").wait_for()
    assert time.monotonic() - ended < 10
    box(page).fill("typed meanwhile")
    server.again()
    page.get_by_text("The server does not answer.").wait_for(state="detached")
    page.get_by_text("The server ended while it wrote this answer.").wait_for()
    assert box(page).input_value() == "typed meanwhile"
    [_, answer] = stored(server, page).branch()
    assert answer.state == "lost" and LONG.startswith(answer.content) and answer.content
    page.get_by_role("button", name="Send", exact=True).click()
    said(page, 2)
    page.errors.clear()


@pytest.mark.heavy
@pytest.mark.long
def test_twenty_seconds_without_a_network_leave_no_hole(serving, tmp_path, page):
    server = serving(str(write_scripted(tmp_path / "scripted.gguf", SCRIPTS)))
    page.goto(server.url)
    say(page, "something long")
    page.get_by_text("Line 30 of").first.wait_for()
    page.context.set_offline(True)
    page.get_by_text("The server does not answer.").wait_for()
    page.wait_for_timeout(20_000)
    page.context.set_offline(False)
    page.get_by_text("The server does not answer.").wait_for(state="detached")
    page.get_by_role("button", name="Send", exact=True).wait_for(timeout=60_000)
    shown = page.evaluate("document.querySelector('article:not(.user) .said').innerText")
    assert re.findall(r"Line (\d+) of", shown) == [str(i) for i in range(LINES)]
    page.errors.clear()


@pytest.mark.heavy
@pytest.mark.long
def test_a_message_written_while_the_server_is_away_is_sent_once(serving, tmp_path, page):
    server = serving(str(write_scripted(tmp_path / "scripted.gguf", SCRIPTS)))
    page.goto(server.url)
    say(page, "hello")
    said(page)
    server.stop(9)
    say(page, "hello again")
    page.get_by_text("This message is sent when it is back").wait_for()
    server.again()
    said(page, 2)
    texts = [m.content for m in stored(server, page).messages.values() if m.role == "user"]
    assert texts == ["hello", "hello again"]
    page.errors.clear()
