// Runs in progress as the page shows them beside their answers, and what remains to be said of one that has ended.
// Written by followers; knows no route and no event.
import { type Signal, signal } from "@preact/signals";
import type { Ask, RunEvent } from "../../api/run";

export type Tool = Extract<RunEvent, { t: "tool" }>;
export type Wait = Extract<RunEvent, { t: "wait" }>;

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
  context: Extract<RunEvent, { t: "ready" }>["context"] | null; // null: the engine has not taken it yet
  away: boolean; // the connection is lost, and tried again
  stopping: boolean;
}

interface Epilogue {
  notes: string[];
  error?: { message: string; code?: string; hint?: string };
}

/** Runs in progress, by the answer they write. */
export const lives = signal<ReadonlyMap<string, Signal<Live>>>(new Map());
/** What remains to be said of an answer whose run has ended: its notes, or why it failed. */
export const epilogues = signal<ReadonlyMap<string, Epilogue>>(new Map());
export const thoughtSeconds = new Map<string, number>();
/** Said to screen readers, once each. */
export const spoken = signal("");

export const liveOf = (answer: string) => lives.value.get(answer)?.value ?? null;

export function begun(run: string, answer: string): Live {
  const nothing = { notes: [], asks: [], tools: [], wait: null, context: null, away: false, stopping: false };
  return { run, answer, began: Date.now(), phase: "waiting", seconds: 0, ...nothing };
}

/** Change what is shown of an answer's run, if it is in progress. */
export function change(answer: string, made: (live: Live) => Partial<Live>): void {
  const held = lives.peek().get(answer);
  if (held) held.value = { ...held.peek(), ...made(held.peek()) };
}
