// The JSON of /console/api, as docs/design/console.md says it.

export type Role = "system" | "user" | "assistant" | "tool";
export type MessageState = "whole" | "open" | "stopped" | "length" | "failed" | "lost";

export interface Card {
  id: string;
  title: string;
  model: string;
  created: string; // ISO 8601
  updated: number; // seconds since 1970
  pinned: boolean;
  messages: number;
  running: boolean;
}

export interface AttachedFile {
  name: string;
  text: string;
}

export interface ToolCall {
  id: string;
  server: string;
  name: string;
  arguments: string; // JSON
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  thinking: string;
  at: number;
  model: string;
  files: AttachedFile[];
  images: string[]; // data URLs
  calls: ToolCall[];
  call: string; // of a tool's message: the call it answers
  state: MessageState;
  receipt: Receipt | null;
}

export interface Receipt {
  model?: string;
  context: { limit: number; used: number; cached: number; dropped_messages: number };
  sampling: Record<string, unknown>;
  max_tokens: number;
  timings: Record<string, number>;
  warnings: string[];
  [more: string]: unknown;
}

export interface ChatSettings {
  system?: string;
  think?: boolean;
  max_tokens?: number;
  sampling?: Record<string, unknown>;
  tools?: string[];
}

/** One message of the tree without its text: id, parent, role, characters. */
export type Leaf = [id: string, parent: string | null, role: Role, chars: number];

export interface OpenedChat {
  chat: Card;
  settings: ChatSettings;
  leaf: string | null;
  tree: Leaf[];
  messages: Message[];
  running: string[];
}

export interface Match {
  chat: Card;
  message: string;
  role: Role;
  excerpt: string;
}

export interface StartedRun {
  run: string;
  user: Message | null;
  answer: Message;
}

export type RunEvent =
  | { t: "begin"; run: string; chat: string; answer: string; model: string; context: object; sampling: object }
  | { t: "text"; at: number; text: string }
  | { t: "thinking"; at: number; text: string; s: number }
  | { t: "wait"; position: number; expected_s: number }
  | Ask
  | { t: "tool"; call: string; server: string; tool: string; arguments: string; state: ToolState; result?: string }
  | { t: "note"; text: string }
  | { t: "again"; equal: boolean; tokens: number; first?: number; was?: string; is?: string; changed?: string }
  | { t: "end"; finish: string; receipt: Receipt | null; error?: { message: string; hint: string } };

export type ToolState = "running" | "done" | "denied" | "failed";

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
}
