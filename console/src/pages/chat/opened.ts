// The chat that is open: its tree, the branch shown, the messages loaded so far. Knows the routes of one chat; knows no
// run's events (runs.ts) and nothing that is drawn.
import { batch, computed, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import { ApiError, get, patch } from "../../api/client";
import type { Card, ChatSettings, Message, OpenedChat } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { changed } from "./cards";
import { reach } from "./link";
import { branchOf, EMPTY, endBelow, grown, type Tree, treeOf } from "./tree";

const WINDOW = 100; // messages asked for at once; 200 is the route's limit

export interface Chat {
  serial: number; // tells apart what the page opened, before there is an id too
  id: string | null; // null: a new chat, which the server does not know yet
  once: string; // the word with which it is begun, so that a second try begins no second chat
  card: Signal<Card | null>;
  settings: Signal<ChatSettings>;
  model: Signal<string>;
  tree: Signal<Tree>;
  leaf: Signal<string | null>;
  branch: ReadonlySignal<string[]>;
  trouble: Signal<unknown>; // why it could not be opened
  messages: Map<string, Signal<Message | null>>; // null: asked for, not here yet
  asked: Set<string>;
  seen: string; // the state of its card when it was read
}

/** What tells that a chat has changed: its newest message, their number, whether one is being written. */
export const stateOf = (card: Card) => `${card.updated} ${card.messages} ${card.running}`;

let serials = 0;

function blank(id: string | null): Chat {
  const tree = signal<Tree>(EMPTY);
  const leaf = signal<string | null>(null);
  return {
    serial: ++serials,
    id,
    once: `${Date.now()}-${Math.random()}`,
    card: signal<Card | null>(null),
    settings: signal<ChatSettings>({}),
    model: signal(""),
    tree,
    leaf,
    branch: computed(() => branchOf(tree.value, leaf.value)),
    trouble: signal<unknown>(null),
    messages: new Map(),
    asked: new Set(),
    seen: "",
  };
}

export const opened = signal<Chat>(blank(null));

/** Begin a new chat in the page; the server hears of it with its first message. */
export function fresh(model: string, settings: ChatSettings): Chat {
  const chat = blank(null);
  chat.model.value = model;
  chat.settings.value = settings;
  return (opened.value = chat);
}

/** Open a chat; returns the ids of its runs in progress. */
export async function open(id: string): Promise<string[]> {
  if (opened.peek().id !== id) opened.value = blank(id);
  return refresh(opened.peek());
}

/** Read a chat again: what another tab or the terminal added, and what a run left. */
export async function refresh(chat: Chat): Promise<string[]> {
  try {
    const answer = await reach(get<OpenedChat>(`/console/api/chats/${chat.id}?last=50`));
    take(chat, answer);
    return answer.running;
  } catch (e) {
    if (chat.tree.peek().nodes.size === 0) chat.trouble.value = e;
    if (e instanceof ApiError && e.status === 404) chat.trouble.value = e;
    throw e;
  }
}

function take(chat: Chat, answer: OpenedChat): void {
  chat.seen = stateOf(answer.chat);
  batch(() => {
    const shown = chat.leaf.peek();
    chat.trouble.value = null;
    chat.card.value = answer.chat;
    chat.settings.value = answer.settings;
    chat.model.value = answer.chat.model;
    const tree = treeOf(answer.tree);
    for (const message of answer.messages) put(chat, message);
    // An answer that has just begun may be missing in what was read before it: then the page knows more.
    const newer = (id: string) => !tree.nodes.has(id) && chat.messages.get(id)?.peek()?.state === "open";
    if ([...chat.tree.peek().nodes.keys()].some(newer)) return;
    chat.tree.value = tree;
    chat.leaf.value = answer.leaf ?? (shown !== null && tree.nodes.has(shown) ? shown : null);
    if (chat.leaf.value === null && tree.roots.length) chat.leaf.value = endBelow(tree, tree.roots.at(-1)!);
  });
  changed(answer.chat);
}

/** Put a message into the page; one that a run is writing is the run's. */
export function put(chat: Chat, message: Message, running = false): Signal<Message | null> {
  const held = messageOf(chat, message.id);
  const now = held.peek();
  if (!running && now && message.state === "open") return held; // the run knows more, or it has ended since
  held.value = message;
  return held;
}

/** Add a message that has just been made, and show its branch. */
export function add(chat: Chat, message: Message): void {
  batch(() => {
    put(chat, message, true);
    chat.tree.value = grown(chat.tree.peek(), message);
    chat.leaf.value = message.id;
  });
}

export function messageOf(chat: Chat, id: string): Signal<Message | null> {
  let held = chat.messages.get(id);
  if (!held) chat.messages.set(id, (held = signal<Message | null>(null)));
  return held;
}

/** Load the messages of `ids` that are not here; resolves when they are. */
export async function load(chat: Chat, ids: readonly string[]): Promise<void> {
  const missing = ids.filter((id) => !messageOf(chat, id).peek() && !chat.asked.has(id));
  const windows: Promise<void>[] = [];
  for (let at = 0; at < missing.length; at += WINDOW) windows.push(loadWindow(chat, missing.slice(at, at + WINDOW)));
  await Promise.all(windows);
}

async function loadWindow(chat: Chat, ids: string[]): Promise<void> {
  for (const id of ids) chat.asked.add(id);
  const path = `/console/api/chats/${chat.id}/messages?ids=${ids.map(encodeURIComponent).join(",")}`;
  try {
    const { messages } = await reach(get<{ messages: Message[] }>(path));
    batch(() => messages.forEach((message) => put(chat, message)));
  } finally {
    for (const id of ids) chat.asked.delete(id);
  }
}

/** Show another version of a message, with the newest of what came after it. */
export function show(chat: Chat, id: string): void {
  const end = endBelow(chat.tree.peek(), id);
  chat.leaf.value = end;
  void load(chat, chat.branch.peek().slice(-60));
  edit(chat, { leaf: end }).catch(notifyError);
}

/** Change what the server keeps of a chat. */
export async function edit(chat: Chat, change: object): Promise<void> {
  if (chat.id === null) return;
  const card = await reach(patch<Card>(`/console/api/chats/${chat.id}`, change));
  chat.card.value = card;
  changed(card);
}
