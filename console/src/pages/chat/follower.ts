// One run's events, taken into the answer that it writes. A run belongs to the server, so that losing the connection loses
// nothing: events continue after the last one seen. Knows what events say; knows no element and starts no run.
import { type Signal, signal } from "@preact/signals";
import { ApiError, hintOnce } from "../../api/client";
import { me, readMe } from "../../api/me";
import { type Connection, follow } from "../../api/events";
import type { RunEvent } from "../../api/run";
import type { Message } from "../../api/types";
import { texts } from "../../texts";
import { connected, onReturn } from "./link";
import { begun, epilogues, type Live, lives, spoken, thoughtSeconds } from "./lives";
import { add, type Chat, messageOf, put, refresh } from "./opened";

const FAST = 1.5; // characters a millisecond
const FAST_MS = 150;
const HIDDEN_MS = 500;
const TICK_S = 0.5; // between two changes of the seconds that thinking took

export class Follower {
  private live: Signal<Live>;
  private content = "";
  private thinking = "";
  private drawn = true;
  private last: [number, number] = [0, 0]; // characters and time of the last drawing
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
    this.live = signal(begun(id, answer));
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
      case "ready":
        this.say({ context: event.context });
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
        if (live.phase !== "thinking" || event.s - live.seconds >= TICK_S)
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
        this.add(event.message, event.parent, {
          role: "tool",
          content: event.content,
          images: event.images,
          call: event.call,
          outcome: event.outcome,
        });
        break;
      case "end":
        this.finish(event);
    }
  };

  private connection = (state: Connection) => {
    connected(state);
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
    this.say({ answer, phase: "waiting", context: null, tools: [], asks: [], notes: [] });
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
    spoken.value = event.error ? `${texts.chat.failed} ${hintOnce(event.error).message}` : this.content.slice(0, 5000);
  }

  private leaveWords(): void {
    const { notes } = this.live.peek();
    const error = this.finished?.error;
    if (!error && !notes.length) return;
    epilogues.value = new Map(epilogues.peek()).set(this.answer, { notes, ...(error && { error }) });
  }

  /** Show what has come, once a frame however many events come, and less often where text comes faster than is read. */
  private draw(
    now = false,
    state: Message["state"] = "open",
    receipt: Message["receipt"] = null,
    calls: Message["calls"] = [],
  ): void {
    const write = () => {
      this.drawn = true;
      this.last = [this.length, performance.now()];
      const held = messageOf(this.chat, this.answer).peek();
      if (!held || (held.state !== "open" && state === "open")) return;
      const kept = this.content.length || state !== "open" ? this.content : held.content;
      put(this.chat, { ...held, content: kept, thinking: this.thinking || held.thinking, state, receipt, calls }, true);
    };
    if (now || this.last[1] === 0) write(); // the first token waits for no frame
    else if (this.drawn) {
      this.drawn = false;
      const wait = document.hidden ? HIDDEN_MS : this.isFast() ? FAST_MS : 0;
      if (wait) setTimeout(write, wait);
      else requestAnimationFrame(write);
    }
  }

  private get length(): number {
    return this.content.length + this.thinking.length;
  }

  private isFast(): boolean {
    const [length, when] = this.last;
    return this.length - length > FAST * (performance.now() - when);
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
      if (!me.peek()?.has.includes("usage")) await readMe(); // the first answer of all: Usage has something
    } catch {
      // the page says that the server is away; it reads the chat again when it is back
    }
  }
}
