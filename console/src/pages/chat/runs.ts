// Answers being made: starts a run, follows its events, stops it. A run belongs to the server, so that losing the
// connection loses nothing: events continue after the last one seen. Knows no element of the page.
import { batch, computed, type Signal, signal } from "@preact/signals";
import { ApiError, get, post } from "../../api/client";
import { follow } from "../../api/events";
import type { Ask, AttachedFile, ChatSettings, Message, RunEvent, StartedRun } from "../../api/types";
import { notifyError } from "../../parts/notice";
import { texts } from "../../texts";
import { found, lost, onReturn, reach } from "./link";
import { add, type Chat, messageOf, put, refresh } from "./opened";

export type Tool = Extract<RunEvent, { t: "tool" }>;
export type Wait = Extract<RunEvent, { t: "wait" }>;
export type Verdict = Extract<RunEvent, { t: "again" }>;

/** A run as the page shows it beside its answer. */
export interface Live {
  run: string;
  answer: string;
  began: number;
  phase: "waiting" | "thinking" | "answering";
  seconds: number; // of thinking
  wait: Wait | null;
  notes: string[];
  asks: Ask[];
  tools: Tool[];
  away: boolean; // the connection is lost, and tried again
  stopping: boolean;
}

export interface Draft {
  text: string;
  files: AttachedFile[];
  images: string[];
}

/** Runs in progress, by the answer they write. */
export const lives = signal<ReadonlyMap<string, Signal<Live>>>(new Map());
const followers = new Set<Follower>();
/** Runs followed to their end: a chat that was read while one of them ended still lists it. */
const ended = new Set<string>();
/** Other tabs of this browser hear at once which chat has a new run. */
export const tabs = new BroadcastChannel("freehold-chats");

export const follows = (chat: Chat) => [...followers].some((each) => each.chat === chat);
/** What remains to be said of an answer whose run has ended: its notes, or why it failed. */
export const epilogues = signal<ReadonlyMap<string, { notes: string[]; error?: { message: string; hint?: string } }>>(
  new Map(),
);
export const thoughtSeconds = new Map<string, number>();
/** Said to screen readers, once each. */
export const spoken = signal("");

export const liveOf = (answer: string) => lives.value.get(answer)?.value ?? null;
export const runningIn = (chat: Chat) => computed(() => chat.branch.value.map((id) => lives.value.get(id)).find(Boolean));

interface Start {
  parent: string | null;
  message?: Draft;
  model?: string | null;
  settings?: ChatSettings;
}

/** Ask for an answer. Throws ApiError when the server refuses or is not reached. */
export async function start(chat: Chat, { parent, message, model, settings }: Start): Promise<void> {
  const { run, user, answer } = await reach(
    post<StartedRun>(`/console/api/chats/${chat.id}/runs`, {
      parent,
      ...(message && {
        message: {
          content: message.text,
          ...(message.files.length && { files: message.files }),
          ...(message.images.length && { images: message.images }),
        },
      }),
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

/** Follow a run until it ends; its text goes into the answer's message. One call a run, whoever asks. */
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
  const held = lives.peek().get(live.answer);
  if (held) held.value = { ...held.peek(), stopping: true };
  try {
    await reach(post(`/console/api/runs/${live.run}/cancel`));
  } catch (e) {
    if (held) held.value = { ...held.peek(), stopping: false };
    notifyError(e);
  }
}

/** Answer a tool's question. */
export async function approve(live: Live, { call, digest }: Ask, verdict: object): Promise<void> {
  await reach(post(`/console/api/runs/${live.run}/approve`, { call, digest, ...verdict }));
  const held = lives.peek().get(live.answer);
  if (held) held.value = { ...held.peek(), asks: held.peek().asks.filter((ask) => ask.call !== call || ask.digest !== digest) };
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

class Follower {
  private live: Signal<Live>;
  private content = "";
  private thinking = "";
  private drawn = true;
  private over = new AbortController();
  left = false; // the page shows another chat, and follows this run no more
  private broken = false; // its connection is given up, and made again from the first event
  private finished: Extract<RunEvent, { t: "end" }> | null = null;
  private unwatch: () => void;

  constructor(
    readonly chat: Chat,
    readonly id: string,
    private answer: string,
  ) {
    this.live = signal<Live>({
      run: id,
      answer,
      began: Date.now(),
      phase: "waiting",
      seconds: 0,
      wait: null,
      notes: [],
      asks: [],
      tools: [],
      away: false,
      stopping: false,
    });
    this.name(answer);
    spoken.value = texts.chat.answering;
    // A network that was away may leave a connection that looks open and brings nothing more.
    this.unwatch = onReturn(() => !this.live.peek().away && this.restart());
  }

  async run(): Promise<void> {
    try {
      do {
        this.broken = false;
        this.over = new AbortController();
        await follow(this.id, 0, this.take, this.connection, this.over.signal);
      } while (this.broken && !this.left);
    } catch (e) {
      // Its events are gone: the server was started again, or the run ended more than ten minutes ago.
      if (!(e instanceof ApiError)) throw e;
    } finally {
      await this.end();
    }
  }

  leave(): void {
    this.left = true;
    this.over.abort();
  }

  /** Take an event in. Where text is missing before it, all events are read again. */
  private take = (event: RunEvent): void => {
    if (this.broken) return;
    const live = this.live.peek();
    switch (event.t) {
      case "begin":
        if (event.answer !== this.answer) this.next(event.answer, event.parent, event.model);
        break;
      case "text":
        if (event.at > this.content.length) return this.restart();
        this.content = this.content.slice(0, event.at) + event.text;
        if (live.phase !== "answering") this.say({ phase: "answering", wait: null });
        this.draw();
        break;
      case "thinking":
        if (event.at > this.thinking.length) return this.restart();
        this.thinking = this.thinking.slice(0, event.at) + event.text;
        thoughtSeconds.set(this.answer, event.s);
        this.say({ phase: "thinking", seconds: event.s, wait: null });
        this.draw();
        break;
      case "wait":
        this.say({ wait: event });
        break;
      case "note":
        this.say({ notes: [...live.notes.filter((note) => note !== event.text), event.text] });
        if (this.finished) this.leaveWords(); // an answer that could not be saved may be saved after its end
        break;
      case "ask":
        this.say({ asks: [...live.asks.filter((ask) => ask.call !== event.call), event] });
        spoken.value = texts.chat.asks(event.tool, event.server);
        break;
      case "tool":
        this.say({
          tools: [...live.tools.filter((tool) => tool.call !== event.call), event],
          asks: live.asks.filter((ask) => ask.call !== event.call),
        });
        break;
      case "calls":
        this.draw(true, "whole", event.receipt, event.calls);
        break;
      case "result":
        this.say({ tools: live.tools.filter((tool) => tool.call !== event.call) });
        this.add(event.message, event.parent, { role: "tool", content: event.content, call: event.call });
        break;
      case "end":
        this.finish(event);
    }
  };

  private connection = (state: "open" | "waiting") => {
    if (state === "waiting") lost();
    else found();
    if (this.live.peek().away !== (state === "waiting")) this.say({ away: state === "waiting" });
  };

  private restart(): void {
    this.broken = true;
    this.over.abort();
  }

  /** A run of tools writes several answers, one after the other. */
  private next(answer: string, parent: string | null, model: string): void {
    this.forget();
    this.content = this.thinking = "";
    this.answer = answer;
    this.name(answer);
    this.say({ answer, phase: "waiting", tools: [], asks: [], notes: [] });
    this.add(answer, parent, { role: "assistant", model, state: "open" });
  }

  /** Add a message that the run has made, unless the chat was read with it. */
  private add(id: string, parent: string | null, given: Partial<Message>): void {
    if (this.chat.tree.peek().nodes.has(id)) return;
    const blank = { content: "", thinking: "", model: "", files: [], images: [], calls: [], call: "" };
    const made = { role: "tool", state: "whole", receipt: null, at: Date.now() / 1000 } as const;
    add(this.chat, { ...blank, ...made, ...given, id, parent });
  }

  private finish(event: Extract<RunEvent, { t: "end" }>): void {
    const states = { stop: "whole", tool_calls: "whole", again: "whole" } as Record<string, Message["state"]>;
    this.draw(true, states[event.finish] ?? (event.finish as Message["state"]), event.receipt);
    this.finished = event;
    this.leaveWords();
    spoken.value = event.error ? `${texts.chat.failed} ${event.error.message}` : this.content.slice(0, 5000);
  }

  private leaveWords(): void {
    const { notes } = this.live.peek();
    const error = this.finished?.error;
    if (!error && !notes.length) return;
    epilogues.value = new Map(epilogues.peek()).set(this.answer, { notes, ...(error && { error }) });
  }

  /** Show what has come, once a frame however many events come. */
  private draw(
    now = false,
    state: Message["state"] = "open",
    receipt: Message["receipt"] = null,
    calls: Message["calls"] = [],
  ): void {
    const write = () => {
      this.drawn = true;
      const held = messageOf(this.chat, this.answer).peek();
      if (!held || (held.state !== "open" && state === "open")) return;
      const kept = this.content.length || state !== "open" ? this.content : held.content;
      put(this.chat, { ...held, content: kept, thinking: this.thinking || held.thinking, state, receipt, calls }, true);
    };
    if (now) write();
    else if (this.drawn) {
      this.drawn = false;
      if (document.hidden) setTimeout(write, 500);
      else requestAnimationFrame(write);
    }
  }

  private say(change: Partial<Live>): void {
    this.live.value = { ...this.live.peek(), ...change };
  }

  private name(answer: string): void {
    if (answer) lives.value = new Map(lives.peek()).set(answer, this.live);
  }

  private forget(): void {
    const all = new Map(lives.peek());
    all.delete(this.answer);
    lives.value = all;
  }

  private async end(): Promise<void> {
    this.forget();
    this.unwatch();
    if (this.left) return;
    const held = messageOf(this.chat, this.answer);
    try {
      // The file is the truth: a receipt, the messages of tools, or an answer that its server's end cut off.
      if (held.peek()?.state === "open") held.value = { ...held.peek()!, state: "lost" };
      await refresh(this.chat);
    } catch {
      // the page says that the server is away; it reads the chat again when it is back
    }
  }
}

/** One message of a chat, read from the server. */
export async function reread(chat: Chat, id: string): Promise<void> {
  const path = `/console/api/chats/${chat.id}/messages?ids=${id}`;
  const { messages } = await reach(get<{ messages: Message[] }>(path));
  for (const message of messages) put(chat, message);
}
