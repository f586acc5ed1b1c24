// From the composer to a run: what is written is kept until the server has it, is sent once, and is sent by itself when
// the server is back. Knows drafts, the open chat and how a run is started.
import { signal } from "@preact/signals";
import { ApiError, post } from "../../api/client";
import type { Card } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { go, to } from "../../parts/router";
import { texts } from "../../texts";
import { reword } from "./altering";
import { changed } from "./cards";
import { keep, keepFiles, kept, keptFiles } from "./kept";
import { isDown, onReturn, reach } from "./link";
import { preferred, readModels } from "./models";
import { type Chat, edit, load, messageOf, opened, refresh } from "./opened";
import { savedPicture } from "./picture";
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
  edited: string | null; // the message of which it is another version
  model: string | null;
  held: boolean; // the server is away: it is sent when it is back
}
export const pending = signal<Pending | null>(null);

const NOTHING: Draft = { text: "", files: [], images: [] };
type Unsent = Pick<Draft, "text"> & Pick<Pending, "parent"> & Pick<Chat, "once">;

const nameOf = (chat: Chat) => `draft/${chat.id ?? "new"}`;
const editOf = (chat: Chat) => `edit/${chat.id ?? "new"}`;
const unsentOf = (chat: Chat) => `unsent/${chat.id ?? "new"}`;

/** Fill the box with what was written in this chat and not sent; also what a page that ended had not sent. */
export async function readDraft(chat: Chat): Promise<void> {
  editing.value = other.value = null;
  const edit = kept<{ id: string; text: string } | null>(editOf(chat), null);
  if (edit && chat.tree.peek().nodes.has(edit.id)) return beginEdit(edit.id, edit.text);
  setBox({ ...NOTHING, text: kept(nameOf(chat), "") });
  const attached = await keptFiles(nameOf(chat));
  if (opened.peek() !== chat) return;
  if (attached.files.length + attached.images.length) setBox({ ...box.peek(), ...attached });
  await readUnsent(chat);
}

/** Put back what a page that ended was sending, unless the server has it. */
async function readUnsent(chat: Chat): Promise<void> {
  const name = unsentOf(chat);
  const sends = () => pending.peek()?.chat.id === chat.id;
  const unsent = sends() ? null : kept<Unsent | null>(name, null);
  if (!unsent) return;
  if (unsent.once) chat.once = unsent.once; // the server may have begun the chat
  const there = await isThere(chat, unsent.parent, unsent.text);
  const attached = await keptFiles(name);
  if (opened.peek() !== chat || sends()) return;
  if (!there) putBack({ text: unsent.text, ...attached });
  forget(name);
}

/** Put a message before what is in the box. */
function putBack(draft: Draft): void {
  const { text, files, images } = box.peek();
  setBox({
    text: [draft.text, text].filter(Boolean).join("\n\n"),
    files: [...draft.files, ...files],
    images: [...draft.images, ...images],
  });
  typed(box.peek().text);
  setFiles({});
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
  setBox({ text: text ?? message.content, files: message.files ?? [], images: (message.images ?? []).map(savedPicture) });
}

export function endEdit(): void {
  keep(editOf(opened.peek()), null);
  void readDraft(opened.peek());
}

/** Whether what is in the box is another wording of an answer, which is kept and not sent. */
export const rewording = (chat: Chat) => chat.tree.peek().nodes.get(editing.value ?? "")?.role === "assistant";

/** Keep the answer in the box as another version of the one that is edited. */
async function keepWording(chat: Chat, id: string, text: string): Promise<void> {
  try {
    await reword(chat, id, text);
    if (opened.peek() === chat) endEdit();
  } catch (e) {
    notifyError(e); // the box keeps it
  }
}

/** Send what is in the box. */
export async function send(): Promise<void> {
  const chat = opened.peek();
  const { text, files, images } = box.peek();
  if (pending.peek() || (!text.trim() && !files.length && !images.length)) return;
  const edited = editing.peek();
  if (edited && rewording(chat)) return keepWording(chat, edited, text);
  const parent = edited ? (chat.tree.peek().nodes.get(edited)?.parent ?? null) : chat.leaf.peek();
  const draft = { text, files, images };
  pending.value = { chat, draft, parent, edited, model: other.peek(), held: false };
  editing.value = other.value = null;
  keep(unsentOf(chat), { text, parent, once: chat.once } satisfies Unsent);
  void keepFiles(unsentOf(chat), draft);
  if (edited) {
    keep(editOf(chat), null);
    void readDraft(chat); // what was in the box before Edit
  } else {
    setBox(NOTHING);
    forget(nameOf(chat));
  }
  await deliver();
}

/** Take back a message that the server does not have. One of a chat that is left comes back when that is opened. */
export function takeBack(): void {
  const now = pending.peek();
  if (!now) return;
  pending.value = null;
  if (opened.peek() !== now.chat) return;
  if (!box.peek().text) editing.value = now.edited;
  putBack(now.draft);
  forget(unsentOf(now.chat));
}

async function deliver(): Promise<void> {
  const now = pending.peek();
  if (!now) return;
  const { chat, draft, parent, model } = now;
  try {
    if (!model) await choose(chat);
    if (chat.id === null) await create(chat);
    await start(chat, { parent, message: draft, model });
    delivered(chat);
  } catch (e) {
    if (e instanceof ApiError && e.status === 0) return void (pending.value = { ...now, held: true });
    takeBack();
    notifyError(e);
  }
}

/** The server has the message. */
function delivered(chat: Chat): void {
  if (pending.peek()?.chat === chat) pending.value = null;
  forget(unsentOf(chat));
}

function forget(name: string): void {
  keep(name, null);
  void keepFiles(name, NOTHING);
}

/** Give a chat without a model one, before anything of it is made; throws where there is none to choose. */
async function choose(chat: Chat): Promise<void> {
  if (chat.model.peek()) return;
  await readModels(); // the message was typed before the list came
  chat.model.value = preferred();
  if (!chat.model.peek()) throw new Error(texts.chat.noModelToSend);
  if (chat.id !== null) await edit(chat, { model: chat.model.peek() });
}

/** Make the chat on the server, and give the page its address. */
async function create(chat: Chat): Promise<void> {
  const settings = chat.settings.peek();
  const card = await reach(post<Card>("/console/api/chats", { once: chat.once, model: chat.model.peek(), settings }));
  const before = [nameOf(chat), unsentOf(chat)];
  chat.id = card.id;
  void moved(before[0]!, nameOf(chat));
  void moved(before[1]!, unsentOf(chat));
  chat.card.value = card;
  changed(card);
  if (opened.peek() === chat) go(to("chat", card.id), true);
}

/** What was kept of a new chat is kept under its id from now on. */
async function moved(from: string, to: string): Promise<void> {
  keep(to, kept(from, null));
  keep(from, null);
  const files = await keptFiles(from);
  if (!files.files.length && !files.images.length) return;
  await keepFiles(to, files);
  await keepFiles(from, NOTHING);
}

/** The server is back: send what waited, unless it had arrived before the connection broke. */
onReturn(() => {
  const now = pending.peek();
  if (now?.held) void again(now);
});

async function again(now: Pending): Promise<void> {
  try {
    if (now.chat.id !== null && (await arrived(now))) return delivered(now.chat);
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

