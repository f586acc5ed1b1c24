// Answers being made: starts a run, has it followed, stops it, answers its tools' questions. Knows the routes of runs; what
// their events say, follower.ts knows.
import { batch } from "@preact/signals";
import { ApiError, post } from "../../api/client";
import { follow } from "../../api/events";
import type { Ask, RunEvent, StartedRun } from "../../api/run";
import type { AttachedFile, ChatSettings, StoredPicture } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { texts } from "../../texts";
import { Follower } from "./follower";
import { reach } from "./link";
import { change, type Live } from "./lives";
import { add, type Chat, messageOf } from "./opened";
import { asUrl, type Picture } from "./picture";

export type Verdict = Extract<RunEvent, { t: "again" }>;

export interface Draft {
  text: string;
  files: AttachedFile[];
  images: Picture[];
}

const followers = new Set<Follower>();
/** Runs followed to their end: a chat that was read while one of them ended still lists it. */
const ended = new Set<string>();
/** Other tabs of this browser hear at once which chat has a new run. */
export const tabs = new BroadcastChannel("freehold-chats");

export const follows = (chat: Chat) => [...followers].some((each) => each.chat === chat);

interface Start {
  parent: string | null;
  message?: Draft;
  extend?: string; // an answer to continue
  model?: string | null;
  settings?: ChatSettings;
}

/** Ask for an answer. Throws ApiError when the server refuses or is not reached. */
export async function start(chat: Chat, { parent, message, extend, model, settings }: Start): Promise<void> {
  const images = message && (await stored(chat, message.images));
  const { run, user, answer } = await reach(
    post<StartedRun>(`/console/api/chats/${chat.id}/runs`, {
      parent,
      ...(message && {
        message: {
          content: message.text,
          ...(message.files.length && { files: message.files }),
          ...(images?.length && { images }),
        },
      }),
      ...(extend && { extend }),
      ...(model && { model }),
      ...(settings && { settings }),
    }),
  );
  batch(() => {
    if (user) add(chat, user);
    add(chat, answer);
  });
  tabs.postMessage(chat.id);
  void attach(chat, run, answer.id);
}

/** Give the server the pictures of a message, one at a time, and return what the message names them by. */
async function stored(chat: Chat, pictures: Picture[]): Promise<string[]> {
  const names: string[] = [];
  for (const { blob, saved } of pictures) {
    if (!blob) names.push(saved);
    else {
      const image = await asUrl(blob);
      names.push((await reach(post<StoredPicture>(`/console/api/chats/${chat.id}/pictures`, { image }))).picture);
    }
  }
  return names;
}

/** Follow a run until it ends; its text goes into the answer's message. A run that is followed already is not followed twice. */
export async function attach(chat: Chat, run: string, answer: string): Promise<void> {
  if (ended.has(run) || [...followers].some((each) => each.id === run && !each.left)) return;
  const follower = new Follower(chat, run, answer);
  followers.add(follower);
  await follower.run();
  followers.delete(follower);
  if (!follower.left) ended.add(run);
}

/** Let go of the runs of every chat but one: they continue on the server, and a browser has six connections. */
export function leaveOthers(chat: Chat): void {
  for (const each of followers) if (each.chat !== chat) each.leave();
}

/** The runs that a chat had when it was opened. */
export async function attachAll(chat: Chat, runs: string[]): Promise<void> {
  const open = chat.branch.peek().filter((id) => messageOf(chat, id).peek()?.state === "open");
  for (const run of runs) void attach(chat, run, open.at(-1) ?? "");
}

export async function stop(live: Live): Promise<void> {
  change(live.answer, () => ({ stopping: true }));
  try {
    await reach(post(`/console/api/runs/${live.run}/cancel`));
  } catch (e) {
    change(live.answer, () => ({ stopping: false }));
    notifyError(e);
  }
}

/** Answer a tool's question. */
export async function approve(live: Live, { call, digest }: Ask, verdict: object): Promise<void> {
  await reach(post(`/console/api/runs/${live.run}/approve`, { call, digest, ...verdict }));
  change(live.answer, ({ asks }) => ({ asks: asks.filter((ask) => ask.call !== call || ask.digest !== digest) }));
}

/** Compute an answer once more, and say whether all its tokens are equal. */
export async function sameBits(chat: Chat, message: string, signal: AbortSignal): Promise<Verdict> {
  const { run } = await reach(post<{ run: string }>(`/console/api/chats/${chat.id}/again`, { message }));
  let verdict: Verdict | null = null;
  let error = "";
  const seen = (event: RunEvent) => {
    if (event.t === "again") verdict = event;
    if (event.t === "end" && event.error) error = event.error.message;
  };
  await follow(run, 0, seen, () => {}, signal);
  if (verdict) return verdict;
  throw new ApiError(500, error || texts.chat.noVerdict);
}
