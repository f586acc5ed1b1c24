// From the composer to a run: what is written is kept until the server has it, is sent once, and is sent by itself when
// the server is back. Knows drafts, the open chat and how a run is started.
import { signal } from "@preact/signals";
import { ApiError, post } from "../../api/client";
import type { Card } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { go, to } from "../../parts/router";
import { changed } from "./cards";
import { keep, keepFiles, kept, keptFiles } from "./kept";
import { isDown, onReturn, reach } from "./link";
import { preferred, readModels } from "./models";
import { type Chat, load, messageOf, opened, refresh } from "./opened";
import { type Draft, start } from "./runs";
import { branchOf } from "./tree";

/** What is in the box of the open chat. `count` grows when it was set from outside, so that the box shows it. */
export const box = signal<Draft & { count: number }>({ text: "", files: [], images: [], count: 0 });
/** The message of the chat that is being edited, in place of a new one. */
export const editing = signal<string | null>(null);
/** A model for this message alone. */
export const other = signal<string | null>(null);

/** A message on its way to the server. */
export interface Pending {
  chat: Chat;
  draft: Draft;
  parent: string | null;
  model: string | null;
  held: boolean; // the server is away: it is sent when it is back
}
export const pending = signal<Pending | null>(null);

const nameOf = (chat: Chat) => `draft/${chat.id ?? "new"}`;
const editOf = (chat: Chat) => `edit/${chat.id ?? "new"}`;
const unsentOf = (chat: Chat) => `unsent/${chat.id ?? "new"}`;

/** Fill the box with what was written in this chat and not sent; also what a page that ended had not sent. */
export async function readDraft(chat: Chat): Promise<void> {
  editing.value = other.value = null;
  const edit = kept<{ id: string; text: string } | null>(editOf(chat), null);
  if (edit && chat.tree.peek().nodes.has(edit.id)) return beginEdit(edit.id, edit.text);
  const unsent = pending.peek() ? null : kept<{ text: string; parent: string | null } | null>(unsentOf(chat), null);
  const back = unsent && !(await isThere(chat, unsent.parent, unsent.text)) ? unsent.text : "";
  const text = [back, kept(nameOf(chat), "")].filter(Boolean).join("\n\n");
  setBox({ text, files: [], images: [] });
  const attached = await keptFiles(nameOf(chat));
  if (opened.peek() === chat && attached.files.length + attached.images.length)
    setBox({ ...box.peek(), files: attached.files, images: attached.images });
}

export function setBox(draft: Draft): void {
  box.value = { ...draft, count: box.peek().count + 1 };
}

/** Note a key typed; cheap, for it happens at each. */
export function typed(text: string): void {
  box.value = { ...box.peek(), text };
  const chat = opened.peek();
  if (editing.peek() === null) keep(nameOf(chat), text);
  else keep(editOf(chat), { id: editing.peek(), text });
}

export function setFiles(change: Partial<Draft>): void {
  const now = { ...box.peek(), ...change };
  box.value = now;
  if (editing.peek() === null) void keepFiles(nameOf(opened.peek()), { files: now.files, images: now.images });
}

/** Put a message back into the box, to send another version of it. */
export async function beginEdit(id: string, text?: string): Promise<void> {
  const chat = opened.peek();
  await load(chat, [id]).catch(() => {});
  const message = messageOf(chat, id).peek();
  if (!message || opened.peek() !== chat) return;
  editing.value = id;
  setBox({ text: text ?? message.content, files: message.files ?? [], images: message.images ?? [] });
}

export function endEdit(): void {
  keep(editOf(opened.peek()), null);
  void readDraft(opened.peek());
}

/** Send what is in the box. */
export async function send(): Promise<void> {
  const chat = opened.peek();
  const { text, files, images } = box.peek();
  if (pending.peek() || (!text.trim() && !files.length && !images.length)) return;
  const edited = editing.peek();
  const parent = edited ? (chat.tree.peek().nodes.get(edited)?.parent ?? null) : chat.leaf.peek();
  pending.value = { chat, draft: { text, files, images }, parent, model: other.peek(), held: false };
  editing.value = other.value = null;
  keep(editOf(chat), null);
  setBox({ text: "", files: [], images: [] });
  await deliver();
}

/** Take back a message that the server does not have. */
export function takeBack(): void {
  const now = pending.peek();
  if (!now) return;
  pending.value = null;
  if (opened.peek() === now.chat) {
    setBox(now.draft);
    typed(now.draft.text);
    setFiles({});
  }
}

async function deliver(): Promise<void> {
  const now = pending.peek();
  if (!now) return;
  const { chat, draft, parent, model } = now;
  const [name, unsent] = [nameOf(chat), unsentOf(chat)];
  keep(unsent, { text: draft.text, parent });
  try {
    if (chat.id === null) await create(chat);
    await start(chat, { parent, message: draft, model });
    keep(unsent, null);
    forget(name, chat);
  } catch (e) {
    if (e instanceof ApiError && e.status === 0) return void (pending.value = { ...now, held: true });
    takeBack();
    keep(unsent, null);
    notifyError(e);
  }
}

function forget(name: string, chat: Chat): void {
  if (pending.peek()?.chat === chat) pending.value = null;
  for (const each of new Set([name, nameOf(chat)]))
    if (opened.peek() !== chat || each !== nameOf(chat) || !box.peek().text) {
      keep(each, null);
      void keepFiles(each, { files: [], images: [] });
    }
  if (opened.peek() === chat && box.peek().text) keep(nameOf(chat), box.peek().text); // typed while it was sent
}

/** Make the chat on the server, and give the page its address. */
async function create(chat: Chat): Promise<void> {
  if (!chat.model.peek()) {
    await readModels(); // somebody typed faster than the list came
    chat.model.value = preferred();
  }
  const settings = chat.settings.peek();
  const card = await reach(post<Card>("/console/api/chats", { model: chat.model.peek(), settings }));
  chat.id = card.id;
  chat.card.value = card;
  changed(card);
  if (opened.peek() === chat) go(to("chat", card.id), true);
}

/** The server is back: send what waited, unless it had arrived before the connection broke. */
onReturn(() => {
  const now = pending.peek();
  if (now?.held) void again(now);
});

async function again(now: Pending): Promise<void> {
  try {
    if (now.chat.id !== null && (await arrived(now))) return void (pending.value = null);
  } catch {
    return; // away again
  }
  if (pending.peek() !== now || isDown.peek()) return;
  pending.value = { ...now, held: false };
  await deliver();
}

async function arrived({ chat, parent, draft }: Pending): Promise<boolean> {
  const before = new Set(chat.tree.peek().nodes.keys());
  await refresh(chat);
  return isThere(chat, parent, draft.text, before);
}

/** Whether the chat has a message with this text after `parent`, besides those in `known`. */
async function isThere(chat: Chat, parent: string | null, text: string, known = new Set<string>()): Promise<boolean> {
  const tree = chat.tree.peek();
  const below = parent === null ? tree.roots : (tree.nodes.get(parent)?.children ?? []);
  const candidates = below.filter((id) => !known.has(id) && tree.nodes.get(id)?.role === "user");
  await load(chat, candidates).catch(() => {});
  return candidates.some((id) => messageOf(chat, id).peek()?.content === text);
}

/** Another answer to the question that `answer` answers. */
export async function regenerate(answer: string): Promise<void> {
  const chat = opened.peek();
  const tree = chat.tree.peek();
  const question = branchOf(tree, answer)
    .reverse()
    .find((id) => tree.nodes.get(id)?.role === "user");
  if (!question) return;
  try {
    await start(chat, { parent: question });
  } catch (e) {
    notifyError(e);
  }
}

