"""Two chat pages by what a person does in them: llama.cpp's and ours, with what steps and bytes it takes.

Knows controls by the names that people hear; knows no task, no clock and no server.
Path: races.py -> LlamaPage, OursPage -> Chromium
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MESSAGES = 2000
TITLE = "A chat of two thousand messages"
OLD = "needle-in-the-oldest-message"
WAIT_MS = 20_000
LONG_MS = 300_000  # for MESSAGES on a page that draws all of them
HUB_MODEL = "01-ai/Yi-6B-Chat"  # of the catalogue; what the stand-in for the hub has under its name is small


class NotThere(Exception):
    """The page has no control for the task."""


class ChatPage:
    """What both pages have in common. `steps` counts what a person does, `bytes` what the network brought."""

    name = ""
    user = assistant = ""  # selectors of messages

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url, self.steps, self.bytes = browser, url, 0, 0
        self.context: Any = None
        self.fresh()

    def fresh(self, width: int = 1200) -> None:
        """Open the page in a context without anything kept."""
        if self.context:
            self.context.close()
        self.context = self.browser.new_context(viewport={"width": width, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        wire = self.context.new_cdp_session(self.page)
        wire.send("Network.enable")
        wire.on("Network.dataReceived", self._count)
        self.page.goto(self.url)
        self.box().wait_for()

    def _count(self, event: dict[str, Any]) -> None:
        self.bytes += event["encodedDataLength"]

    def box(self) -> Any:
        """Return where a message is typed."""
        raise NotImplementedError

    def step(self, times: int = 1) -> None:
        self.steps += times

    def send(self, text: str) -> None:
        """Type and send."""
        self.box().fill(text)
        self.box().press("Enter")
        self.step(2)

    def tap(self, text: str) -> None:
        """Do the same on a phone, where Enter may begin a line."""
        self.box().fill(text)
        self.step()
        self.click("Send")

    def click(self, name: str, within: Any = None, role: str = "button") -> None:
        """Press a control by its name."""
        found = (within or self.page).get_by_role(role, name=name, exact=True)
        if found.count() == 0:
            raise NotThere(f"no {role} {name}")
        found.last.click()
        self.step()

    def said(self, text: str) -> None:
        """Wait until an answer contains a text."""
        self.page.locator(self.assistant, has_text=text).last.wait_for()

    def last_answer(self) -> str:
        return self.page.locator(self.assistant).last.inner_text()

    def new_chat(self) -> None:
        self.click("New chat")

    def fill_chat(self) -> str:
        """Store a chat TITLE of MESSAGES messages, of which the first has the word OLD; return its address."""
        raise NotImplementedError

    def edit_last(self, text: str) -> None:
        """Change the last question, and send it."""
        raise NotImplementedError

    def edit_by_keys(self, text: str) -> None:
        """Do the same without a pointer."""
        raise NotImplementedError

    def find(self, word: str) -> None:
        """Come from a new chat to the oldest message of the long one, by a word that it has."""
        raise NotImplementedError

    def compare(self) -> None:
        """Have two models answer one question, with one seed."""
        raise NotThere("one answer at a time")

    def pull(self) -> None:
        """Fetch a model that is not on this machine."""
        raise NotThere("models are fetched where the server is started")

    def see(self, place: Any) -> None:
        """Wait until something is in sight."""
        from playwright.sync_api import expect

        expect(place).to_be_in_viewport(timeout=WAIT_MS)


class LlamaPage(ChatPage):
    """llama-server's page."""

    name = "llama.cpp"
    user, assistant = (
        '[aria-label="User message with actions"]',
        '[aria-label="Assistant message with actions"]',
    )

    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Type a message...")

    def fill_chat(self) -> str:
        self.send("hello")
        self.said("Hello!")
        self.page.evaluate(_FILL_LLAMA, [MESSAGES, OLD, TITLE])
        return self.page.url

    def edit_last(self, text: str) -> None:
        message = self.page.locator(self.user).last
        message.hover()
        self.click("Edit", message)
        box = message.get_by_role("textbox")
        box.fill(text)
        box.press("Enter")
        self.step(2)

    def edit_by_keys(self, text: str) -> None:
        keys = self.page.keyboard
        for _ in range(60):
            keys.press("Shift+Tab")
            self.step()
            if self.page.evaluate(_AT_EDIT, self.user):
                break
        else:
            raise NotThere("Edit is not reached by Shift-Tab")
        for key in ("Enter", "Control+a"):
            keys.press(key)
        keys.type(text)
        keys.press("Enter")
        self.step(4)

    def find(self, word: str) -> None:
        """Open the chat by its title, which is all that the page's search knows, and use the browser's search."""
        self.click("Search")
        self.page.get_by_role("searchbox").fill(TITLE)
        self.page.get_by_role("complementary").get_by_text(TITLE).first.click()
        self.step(2)
        self.page.get_by_text(f"Message {MESSAGES - 1}:").first.wait_for(timeout=LONG_MS)
        self.page.evaluate(
            "word => { if (!window.find(word, false, false, true)) throw Error('not found') }", word
        )
        self.step(2)  # Ctrl-F and the word
        self.see(self.page.get_by_role("main").get_by_text(word).first)


class OursPage(ChatPage):
    """The console. `code` asks for what `freehold open` puts into the owner's address."""

    name = "Freehold"
    user, assistant = 'article[aria-label^="You"]', 'article:not([aria-label^="You"])'

    def __init__(self, browser: Any, url: str, code: Callable[[], str]) -> None:
        self.code = code
        super().__init__(browser, url)

    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def fill_chat(self) -> str:
        messages = []
        for i in range(MESSAGES):
            text = f"{OLD}: question {i}" if i == 0 else f"Message {i}: " + "some words of it. " * 8
            parent = f"m{i - 1}" if i else None
            role = ("user", "assistant")[i % 2]
            messages.append({"id": f"m{i}", "parent": parent, "role": role, "content": text})
        body = {"chat": {"title": TITLE, "model": "", "messages": messages}}
        return f"{self.url}/#/chat/{self.page.evaluate(_IMPORT, body)['id']}"

    def edit_last(self, text: str) -> None:
        message = self.page.locator(self.user).last
        message.hover()
        self.click("Edit", message)
        self.send(text)

    def edit_by_keys(self, text: str) -> None:
        for key in ("ArrowUp", "Control+a"):
            self.page.keyboard.press(key)
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.step(4)

    def find(self, word: str) -> None:
        self.page.get_by_role("searchbox", name="Search chats").fill(word)
        self.page.get_by_role("navigation", name="Chats").get_by_role("link", name=word).first.click()
        self.step(2)
        self.see(self.page.locator(self.user, has_text=word).first)

    def compare(self) -> None:
        self.click("Compare", role="link")
        self.box().fill("hello")
        self.step()
        self.click("Compare")
        self.page.locator(".verdict").wait_for()

    def pull(self) -> None:
        self.page.goto(f"{self.url}/#/open/{self.code()}")
        self.step()
        self.click("Models", role="link")
        self.page.get_by_role("tab", name="Catalogue").click(timeout=LONG_MS)  # the first list takes seconds
        self.page.get_by_role("searchbox", name="Search models").fill(HUB_MODEL)
        self.step(2)
        row = self.page.get_by_role("row").filter(has_text=HUB_MODEL)
        row.get_by_role("button", name="Download").click(timeout=LONG_MS)
        self.step()
        self.page.get_by_text("its digest was verified").wait_for(timeout=LONG_MS)


_AT_EDIT = """user => {
  const at = document.activeElement;
  return (at.ariaLabel || at.innerText || '').trim() === 'Edit' && at.closest(user) !== null;
}"""
_IMPORT = """async body => (await fetch('/console/api/import', {method: 'POST',
  headers: {'content-type': 'application/json'}, body: JSON.stringify(body)})).json()"""
_FILL_LLAMA = """async ([count, old, title]) => {
  const db = await new Promise(r => { const q = indexedDB.open('LlamaUi'); q.onsuccess = () => r(q.result) });
  const t = db.transaction(['conversations', 'messages'], 'readwrite');
  const all = s => new Promise(r => { const q = t.objectStore(s).getAll(); q.onsuccess = () => r(q.result) });
  const id = location.hash.split('/').pop();
  const chat = (await all('conversations')).find(c => c.id === id);
  const kept = (await all('messages')).filter(m => m.convId === id), root = kept.find(m => m.type === 'root');
  for (const m of kept) if (m !== root) t.objectStore('messages').delete(m.id);
  let parent = root; root.children = [];
  for (let i = 0; i < count; i++) {
    const content = i ? `Message ${i}: ` + 'some words of it. '.repeat(8) : `${old}: question 0`;
    const m = {id: `m${i}`, convId: id, parent: parent.id, children: [], content, type: 'text', toolCalls: '',
      role: i % 2 ? 'assistant' : 'user', timestamp: Date.now() + i, extra: []};
    parent.children = [m.id]; t.objectStore('messages').put(parent); parent = m;
  }
  t.objectStore('messages').put(parent); chat.currNode = parent.id; chat.name = title;
  t.objectStore('conversations').put(chat);
  await new Promise(r => t.oncomplete = r);
}"""
