// What is done to a message that is there: taken out and put back, another wording of an answer, more of one that was cut
// off, and a chat of its own up to it. Each changes the chat on the server, then what the page shows.
import { post } from "../../api/client";
import type { Card, Message, Thumb } from "../../api/types";
import { notify, notifyError } from "../../parts/notice";
import { go, to } from "../../parts/router";
import { texts } from "../../texts";
import { changed } from "./cards";
import { reach } from "./link";
import { add, type Chat, messageOf, opened, put, refresh, show } from "./opened";
import { start, tabs } from "./runs";

const UNDO_S = 20;

/** Whether an answer ended before its end, so that it can be continued. */
export function canContinue({ role, state, content, thinking, calls, parent, receipt }: Message): boolean {
  const cut = state === "length" || state === "stopped" || state === "lost";
  const { used = 0, limit = 0 } = receipt?.context ?? {};
  const full = limit > 0 && used >= limit; // there is no place for more
  return role === "assistant" && cut && !full && parent !== null && !calls?.length && Boolean(content || thinking);
}

/** Have an answer continued where it ended, as another version of it. */
export async function continueAnswer(id: string): Promise<void> {
  try {
    await start(opened.peek(), { parent: null, extend: id });
  } catch (e) {
    notifyError(e);
  }
}

/** Give an answer another wording, as another version of it. Throws ApiError. */
export async function reword(chat: Chat, id: string, content: string): Promise<void> {
  add(chat, await reach(post<Message>(`/console/api/chats/${chat.id}/answers`, { message: id, content })));
  tabs.postMessage(chat.id);
}

/** Keep what the reader thinks of an answer: freehold data from-chats makes examples and pairs of it. */
export async function judge(chat: Chat, { id }: Message, verdict: Thumb): Promise<void> {
  try {
    await reach(post(`/console/api/chats/${chat.id}/verdict`, { message: id, verdict }));
    const message = messageOf(chat, id).peek();
    if (message) put(chat, { ...message, verdict }, true);
    tabs.postMessage(chat.id);
  } catch (e) {
    notifyError(e);
  }
}

/** Take a message out of the chat, and offer to put it back. */
export async function takeOut(id: string): Promise<void> {
  const chat = opened.peek();
  try {
    const path = `/console/api/chats/${chat.id}`;
    const { messages } = await reach(post<{ messages: string[] }>(`${path}/take-out`, { message: id }));
    await again(chat);
    const putBack = async () => {
      await reach(post(`${path}/put-back`, { messages }));
      await again(chat);
      show(chat, id);
    };
    const run = () => void putBack().catch(notifyError);
    notify({ text: texts.chat.tookOut, seconds: UNDO_S, action: { label: texts.chat.undo, run } });
  } catch (e) {
    notifyError(e);
  }
}

async function again(chat: Chat): Promise<void> {
  await refresh(chat);
  tabs.postMessage(chat.id);
}

/** Begin a chat that has this one up to a message. */
export async function fork(id: string): Promise<void> {
  try {
    const card = await reach(post<Card>(`/console/api/chats/${opened.peek().id}/fork`, { message: id }));
    changed(card);
    go(to("chat", card.id));
  } catch (e) {
    notifyError(e);
  }
}
