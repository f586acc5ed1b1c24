// A recording's way to text: sent to a speech model of this server, followed while it is heard, put where it was begun.
// Knows the route's fields and events; knows no element.
import { signal, type Signal } from "@preact/signals";
import { ApiError, hintOnce, upload } from "../../../api/client";
import { sse } from "../../../api/events";
import { notify, saying } from "../../../parts/notice";
import { texts } from "../../../texts";
import { shown } from "../../../text/shown";
import { spoken } from "../lives";
import { hearing } from "../models";
import { type Chat, opened } from "../opened";
import { plain, type TimedText } from "./subtitles";

const words = texts.chat.ears;
const LONG_S = 90; // of speech that goes into the message by itself; what is longer is read and cut first
const SUFFIXES = /\.(wav|flac|mp3|ogg|oga|opus|m4a|m4b|mp4|aac|webm|mka|mkv|mov|aiff?|aifc|amr|wma|3gp)$/i;

/** A recording that becomes text. */
export interface Hearing {
  id: number;
  name: string;
  sound: File;
  chat: Chat; // in which it was begun
  state: Signal<"sending" | "hearing" | "done" | "failed">;
  seconds: Signal<number | null>; // how long it is, where that is known
  segments: Signal<TimedText[]>;
  trouble: Signal<string>;
  stop: AbortController;
}

/** All that are on their way, and those whose text was not used yet. */
export const hearings = signal<Hearing[]>([]);
/** Whose transcript is shown. */
export const read = signal<Hearing | null>(null);
/** Where a text goes that was spoken: the composer puts it at its caret. */
export const caret: { insert: (text: string) => void } = { insert: () => {} };

let count = 0;

export const isRecording = (file: File) => /^(audio|video)\//.test(file.type) || (!file.type && SUFFIXES.test(file.name));

/** A recording belongs to the chat it was begun in, also when that is opened again. */
export const isOf = (each: Hearing, chat: Chat) => each.chat === chat || each.chat.id === chat.id;

/** Have a recording heard. Says why not where no model here hears. */
export function hear(sound: File, seconds: number | null = null): void {
  if (!hearing.peek().length) return void notify({ kind: "error", text: words.deaf(shown(sound.name)) });
  const now: Hearing = {
    id: ++count,
    name: sound.name,
    sound,
    chat: opened.peek(),
    state: signal("sending"),
    seconds: signal(seconds),
    segments: signal([]),
    trouble: signal(""),
    stop: new AbortController(),
  };
  hearings.value = [...hearings.peek(), now];
  void follow(now);
}

export function again(now: Hearing): void {
  now.stop = new AbortController();
  now.segments.value = [];
  now.state.value = "sending";
  void follow(now);
}

/** Forget a recording; the server stops hearing it. */
export function leave(now: Hearing): void {
  now.stop.abort();
  hearings.value = hearings.peek().filter((each) => each !== now);
  if (read.peek() === now) read.value = null;
}

interface SpeechEvent {
  type?: string;
  delta?: string;
  start?: number;
  end?: number;
  text?: string;
  freehold?: { duration_s?: number };
  error?: { message: string; code?: string; hint?: string };
}

async function follow(now: Hearing): Promise<void> {
  const { signal: stopped } = now.stop;
  try {
    const form = new FormData();
    form.append("model", hearing.peek()[0]!);
    form.append("stream", "true");
    form.append("file", now.sound, now.name);
    const answer = await upload("/v1/audio/transcriptions", form, stopped);
    now.state.value = "hearing";
    let whole = false;
    for await (const come of sse(answer.body!))
      for (const { data } of come) if (data !== "[DONE]") whole = take(now, JSON.parse(data) as SpeechEvent) || whole;
    if (!whole) throw new ApiError(0, words.cut);
    end(now);
  } catch (e) {
    if (stopped.aborted) return;
    now.trouble.value = e instanceof ApiError && e.hint ? `${e.message}; ${e.hint}` : saying(e);
    now.state.value = "failed";
    spoken.value = now.trouble.peek();
  }
}

/** Take in an event; returns whether it was the last one. */
function take(now: Hearing, event: SpeechEvent): boolean {
  const { error, delta, start = 0, end = start } = event;
  if (error) {
    const { message, code = "", hint = "" } = hintOnce(error);
    throw new ApiError(500, message, code, hint);
  }
  if (event.type === "transcript.text.delta" && delta)
    now.segments.value = [...now.segments.peek(), { start, end, text: delta.trim() }];
  now.seconds.value = event.freehold?.duration_s ?? now.seconds.peek();
  return event.type === "transcript.text.done";
}

const lengthOf = (now: Hearing) => now.seconds.peek() ?? now.segments.peek().at(-1)?.end ?? 0;

function end(now: Hearing): void {
  now.state.value = "done";
  if (!now.segments.peek().length) {
    notify({ text: words.silent(shown(now.name)) });
    leave(now);
  } else if (lengthOf(now) <= LONG_S && isOf(now, opened.peek()) && read.peek() !== now) use(now);
  else spoken.value = words.whole(shown(now.name));
}

/** Put a recording's text into the message. */
export function use(now: Hearing): void {
  caret.insert(plain(now.segments.peek()).trim().replaceAll("\n", " "));
  const show = () => {
    hearings.value = [...hearings.peek(), now];
    read.value = now;
  };
  leave(now);
  if (now.name !== words.recorded) notify({ text: words.used(shown(now.name)), action: { label: words.transcript, run: show } });
}
