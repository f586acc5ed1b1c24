// The chat page's keys, all in one place; `?` lists them.
import { useRef } from "preact/hooks";
import type { Role } from "../../api/types";
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
  const on = () => now.current.chat;
  const ask = () => now.current.asks;
  useKeys([
    { keys: "Enter", says: words.send },
    { keys: "Shift Enter", says: words.newLine },
    { keys: "ArrowUp", says: words.editLast },
    { keys: "Escape", says: words.stop, run: () => ask().leave() || stopNow(on()) },
    { keys: "@", says: words.mention },
    { keys: "/", says: words.message, run: () => composer.focus() },
    { keys: "Ctrl Shift O", says: words.newChat, run: () => go(to("chat")) },
    { keys: "Ctrl K", says: words.searchChats, run: () => searchChats(ask()) },
    { keys: "Ctrl F", says: words.find, run: () => ask().find() },
    { keys: "Ctrl B", says: words.list, run: () => ask().list() },
    { keys: "Ctrl ,", says: words.panel, run: () => ask().panel() },
    { keys: "Alt ArrowUp", says: words.previous, run: () => move(on(), -1) },
    { keys: "Alt ArrowDown", says: words.next, run: () => move(on(), 1) },
    { keys: "c", says: words.copy, run: () => copyNow(on()) },
    { keys: "e", says: words.edit, run: () => onMessage(on(), "user", (id) => void beginEdit(id)) },
    { keys: "r", says: words.regenerate, run: () => onMessage(on(), "assistant", (id) => void regenerate(id)) },
    { keys: "i", says: words.receipt, run: () => onMessage(on(), "assistant", () => press(texts.chat.receipt)) },
    { keys: "ArrowLeft", says: words.previousVersion, run: (e) => e.target === article() && version(on(), -1) },
    { keys: "ArrowRight", says: words.nextVersion, run: (e) => e.target === article() && version(on(), 1) },
  ]);
}

/** The message that has the focus, or holds what has it. */
const article = () => document.activeElement?.closest<HTMLElement>("article[data-id]") ?? null;
const at = () => article()?.dataset["id"] ?? null;

/** Press a button of the message at hand. */
function press(name: string): void {
  article()?.querySelector<HTMLElement>(`button[aria-label="${CSS.escape(name)}"]`)?.click();
}

/** Put the focus on the message before or after the one at hand, at first on the last. */
function move(chat: Chat, by: number): void {
  const branch = chat.branch.peek();
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

function version(chat: Chat, by: number): boolean {
  const id = at();
  if (!id) return false;
  const all = versions(chat.tree.peek(), id);
  step(chat, all, all.indexOf(id) + by);
  return true;
}

function searchChats(asks: Asks): void {
  if (!document.querySelector("nav.chats")) asks.list();
  requestAnimationFrame(() => finder.focus());
}

function stopNow(chat: Chat): boolean {
  const branch = chat.branch.peek();
  const live = [...lives.peek().values()].find((each) => branch.includes(each.peek().answer));
  if (live) void stop(live.peek());
  return Boolean(live);
}

function copyNow(chat: Chat): boolean {
  const id = at();
  const message = id ? messageOf(chat, id).peek() : null;
  if (message) void copy(message.content);
  return Boolean(message);
}

/** Do something with the message at hand, if it is of this role. */
function onMessage(chat: Chat, role: Role, run: (id: string) => void): boolean {
  const id = at();
  if (!id || chat.tree.peek().nodes.get(id)?.role !== role) return false;
  run(id);
  if (role === "user") composer.focus();
  return true;
}
