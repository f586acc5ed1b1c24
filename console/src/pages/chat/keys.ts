// The chat page's keys, all in one place; `?` lists them.
import { useRef } from "preact/hooks";
import { useKeys } from "../../parts/keys";
import { go, to } from "../../parts/router";
import { texts } from "../../texts";
import { copy, step } from "./actions";
import { composer } from "./composer";
import { finder } from "./list";
import { scroller } from "./log";
import { type Chat, messageOf } from "./opened";
import { lives } from "./lives";
import { stop } from "./runs";
import { beginEdit, regenerate } from "./sending";
import { versions } from "./tree";

const words = texts.chat.keys;

interface Asks {
  list: () => void;
  panel: () => void;
  find: () => boolean;
  leave: () => boolean; // whether something lay over the page
}

export function useChatKeys(chat: Chat, asks: Asks): void {
  const now = useRef({ chat, asks });
  now.current = { chat, asks };
  const article = () => document.activeElement?.closest<HTMLElement>("article[data-id]") ?? null;
  const at = () => article()?.dataset["id"] ?? null;
  const button = (name: string) => {
    article()?.querySelector<HTMLElement>(`button[aria-label="${CSS.escape(name)}"]`)?.click();
  };

  function move(by: number): void {
    const branch = now.current.chat.branch.peek();
    const from = at();
    const index = from ? branch.indexOf(from) + by : branch.length - 1;
    const id = branch[Math.min(branch.length - 1, Math.max(0, index))];
    if (!id) return;
    const drawn = () => document.querySelector<HTMLElement>(`[data-id="${CSS.escape(id)}"]`);
    if (!drawn()) scroller.now?.toMessage(id);
    requestAnimationFrame(() => requestAnimationFrame(() => {
      drawn()?.focus({ preventScroll: true });
      drawn()?.scrollIntoView({ block: "nearest" });
    }));
  }

  function version(by: number): boolean {
    const id = at();
    if (!id) return false;
    const all = versions(now.current.chat.tree.peek(), id);
    step(now.current.chat, all, all.indexOf(id) + by);
    return true;
  }

  useKeys([
    { keys: "Enter", says: words.send },
    { keys: "Shift Enter", says: words.newLine },
    { keys: "ArrowUp", says: words.editLast },
    { keys: "Escape", says: words.stop, run: stopNow },
    { keys: "@", says: words.mention },
    { keys: "/", says: words.message, run: () => composer.focus() },
    { keys: "Ctrl Shift O", says: words.newChat, run: () => go(to("chat")) },
    { keys: "Ctrl K", says: words.searchChats, run: searchChats },
    { keys: "Ctrl F", says: words.find, run: () => now.current.asks.find() },
    { keys: "Ctrl B", says: words.list, run: () => now.current.asks.list() },
    { keys: "Ctrl ,", says: words.panel, run: () => now.current.asks.panel() },
    { keys: "Alt ArrowUp", says: words.previous, run: () => move(-1) },
    { keys: "Alt ArrowDown", says: words.next, run: () => move(1) },
    { keys: "c", says: words.copy, run: copyNow },
    { keys: "e", says: words.edit, run: () => onMessage((id) => void beginEdit(id), "user") },
    { keys: "r", says: words.regenerate, run: () => onMessage((id) => void regenerate(id), "assistant") },
    { keys: "i", says: words.receipt, run: () => onMessage(() => button(texts.chat.receipt), "assistant") },
    { keys: "ArrowLeft", says: words.previousVersion, run: (e) => e.target === article() && version(-1) },
    { keys: "ArrowRight", says: words.nextVersion, run: (e) => e.target === article() && version(1) },
  ]);

  function searchChats(): void {
    if (!document.querySelector("nav.chats")) now.current.asks.list();
    requestAnimationFrame(() => finder.focus());
  }

  function stopNow(): boolean {
    if (now.current.asks.leave()) return true;
    const branch = now.current.chat.branch.peek();
    const live = [...lives.peek().values()].find((each) => branch.includes(each.peek().answer));
    if (live) void stop(live.peek());
    return Boolean(live);
  }

  function copyNow(): boolean {
    const id = at();
    const message = id ? messageOf(now.current.chat, id).peek() : null;
    if (message) void copy(message.content);
    return Boolean(message);
  }

  function onMessage(run: (id: string) => void, role: string): boolean {
    const id = at();
    if (!id || now.current.chat.tree.peek().nodes.get(id)?.role !== role) return false;
    run(id);
    if (role === "user") composer.focus();
    return true;
  }
}
