// A run as the server starts and tells it, written by hand. docs/design/console.md says what each event means.

import type { Message, Receipt, ToolCall, ToolState } from "./types";

export interface StartedRun {
  run: string;
  user: Message | null;
  answer: Message;
}

export type RunEvent =
  | { t: "begin"; run: string; chat: string; answer: string; parent: string | null; model: string }
  | { t: "ready"; model: string; context: Partial<Receipt["context"]>; sampling: object; max_tokens: number }
  | { t: "text"; at: number; text: string }
  | { t: "thinking"; at: number; text: string; s: number }
  | { t: "wait"; why: "queue" | "load" | "prompt" | "engine" | "tools"; expected_s?: number; done?: number; of?: number }
  | Ask
  | { t: "tool"; call: string; server: string; tool: string; arguments: string; state: ToolState; result?: string }
  | { t: "calls"; answer: string; calls: ToolCall[]; receipt: Receipt | null }
  | { t: "result"; message: string; parent: string; call: string; content: string; images: string[]; outcome: ToolState }
  | { t: "note"; text: string; code: string }
  | { t: "again"; equal: boolean; tokens: number; first?: number; was?: string; is?: string; changed?: string }
  | { t: "end"; finish: string; receipt: Receipt | null; error?: { message: string; code: string; hint?: string } };

/** A tool wants approval. `claims`: what the tool says of itself. */
export interface Ask {
  t: "ask";
  call: string;
  server: string;
  tool: string;
  arguments: string;
  claims: { description: string; annotations: Record<string, unknown> };
  changed?: { before: string; after: string };
  until: number;
  digest: string; // of the tool as this question describes it: the answer holds for no other
}
