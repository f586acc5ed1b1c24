// The JSON of /console/api, written by tools/console_types.py from the server's declarations.

import type { Receipt, Savings, TrainingVerb } from "./reports";

export type * from "./reports";

export type Role = "system" | "user" | "assistant" | "tool";
export type MessageState = "whole" | "open" | "stopped" | "length" | "failed" | "lost";
export type ToolState = "running" | "done" | "denied" | "failed";
export type Thumb = "" | "good" | "poor";
export type Leaf = [string, string | null, Role, number];

/** A chat as a list shows it. */
export interface Card {
  id: string;
  title: string; // as it was set, or the first line that the user wrote
  model: string;
  created: string; // ISO 8601
  updated: number; // seconds since 1970: its newest message, whatever was renamed since
  pinned: boolean;
  messages: number;
  running: boolean; // an answer is being written
  named: boolean; // its title was set
}

/** A text that came with a message. */
export interface AttachedFile {
  name: string;
  text: string;
}

/** A tool that an answer calls. `arguments`: JSON, as the model wrote it. */
export interface ToolCall {
  id: string;
  server: string;
  name: string;
  arguments: string;
}

/** One message of a chat's tree. */
export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  thinking: string;
  at: number; // seconds since 1970; 0: not known
  model: string;
  files: AttachedFile[];
  images: string[]; // references of its chat's pictures; data URLs in files of earlier versions
  calls: ToolCall[];
  call: string; // of a tool's message: the call that it answers,
  outcome?: ToolState | null; // and how that ended; null: not known
  state: MessageState;
  receipt: Receipt | null;
  error?: { message: string; code?: string; hint?: string } | null; // of a failed answer: message and hint
  edited?: boolean; // of an answer: the user wrote it, in place of the model's
  verdict?: Thumb; // of an answer: the user's thumb, up or down
}

/** What a chat's next answers are made with, beside its model. */
export interface ChatSettings {
  system?: string;
  think?: boolean;
  max_tokens?: number;
  sampling?: Record<string, unknown>; // fields of SamplingParams that were given
  tools?: string[]; // servers of `[mcp]`
  overflow?: "error" | "drop-oldest"; // where the context is full; "error": the answer fails
}

/** A chat as far as a page needs it at first: the shape of all, the text of the end. */
export interface OpenedChat {
  chat: Card;
  settings: ChatSettings;
  leaf: string | null;
  tree: Leaf[];
  messages: Message[];
  running: string[]; // runs of this chat
  skipped: number; // lines of its file that are damaged
}

/** A message that contains the text searched for; `excerpt` is the text around it. */
export interface Match {
  chat: Card;
  message: string;
  role: Role;
  excerpt: string;
}

/** What pictures a page may send. */
export interface PictureLimits {
  most: number; // of a message
  together: number; // bytes of all in a chat's branch
  bytes: number; // of one
  pixels: number;
  side: number; // pixels
}

/** A picture that a message may name. */
export interface StoredPicture {
  picture: string; // what it is named by
}

/** What a picture adds to a prompt. */
export interface PictureTokens {
  tokens: number | null; // null: the model does not see, or cannot tell
}

/** How many there were, and quantiles; seconds. */
export interface Percentiles {
  count: number;
  p50: number | null;
  p90: number | null;
  p99: number | null;
}

/** Of everything since the server started, and of the last minute while someone looks. */
export interface Latencies {
  all: Percentiles;
  recent: Percentiles | null;
}

/** A request that is answered. */
export interface LiveStream {
  id: string; // the request's id, as in x-request-id
  model: string;
  key: string; // "" without a key
  door: string; // console, openai, anthropic, ollama, batch, freehold
  state: "waiting" | "prefill" | "decode";
  prompt_tokens: number;
  answer_tokens: number; // its position is prompt_tokens + answer_tokens
  tok_s: number | null;
  age_s: number;
}

/** A model's cache, in blocks and tokens. */
export interface LiveCache {
  block_tokens: number;
  blocks: number;
  live: number; // held by running sequences,
  shared: number; // and of those by several
  evictable: number; // kept for prefixes of later prompts
  free: number;
  states: number; // of recurrent layers; 0: the model has none
  states_live: number;
  states_cached: number;
  hit_tokens: number; // of prompts, found in memory or on the disk,
  computed_tokens: number; // and all others
  disk_tokens: number;
}

/** Tokens that were drafted, and those of them that were accepted. */
export interface DraftCounts {
  drafted: number;
  accepted: number;
}

/** An end of an engine process. */
export interface LiveDeath {
  at: number; // seconds since 1970
  cause: string;
}

/** An engine process. */
export interface LiveProcess {
  pid: number;
  rss: number;
  cpu_s: number;
}

/** A model at work. */
export interface LiveEngine {
  running: number;
  in_flight: number;
  tok_s: number | null; // generated a second, by the two latest looks
  prefill_tok_s: number | null;
  ttft: Latencies;
  itl: Latencies;
  cache: LiveCache;
  memory: Record<string, number>; // bytes by kind: weights, cache, ...; {} where the engine does not say
  memory_bytes: number;
  context: number;
  kv_tokens: number;
  quantization: string;
  threads: number;
  load_s: number;
  expires_at: number | null; // seconds since 1970, when it is unloaded if idle
  drafts: DraftCounts;
  preemptions: number;
  slow_readers: number;
  restarts: number;
  deaths: LiveDeath[]; // the latest ones
  process: LiveProcess | null; // only for the owner
}

/** A model in memory, and its queue. */
export interface LiveModel {
  name: string;
  waiting: number;
  expected_wait_s: number;
  full: LiveEngine | null; // null for a client key
}

/** A model on its way into memory, in bytes. */
export interface LiveLoading {
  name: string;
  done: number;
  total: number;
}

/** Bytes of the machine's memory. */
export interface LiveMachine {
  memory: number;
  free: number;
}

/** One look, as a viewer sees it. */
export interface LiveState {
  at: number; // seconds since 1970
  version: string;
  started_at: number;
  streams: LiveStream[]; // the caller's own; all of them for the owner
  models: LiveModel[];
  loading: LiveLoading[];
  machine: LiveMachine | null; // null for a client key
  troubles: string[]; // of /health, such as a full disk
}

/** What `freehold ledger --json` sums, of a model, a key or a day; money in nano-dollars. */
export interface LedgerSum {
  model?: string;
  key?: string;
  day?: string;
  rows: number;
  whole: number;
  nano: number;
  estimated: number;
  prompt: number;
  cached: number;
  written: number;
  completion: number;
  thought: number;
  first_s: number;
  whole_s: number;
  sound_ms: number;
}

/** What `freehold ledger --by model --json` (key, day) prints. */
export interface LedgerSums {
  since: number;
  until: number;
  total: LedgerSum;
  by_model: LedgerSum[];
  by_key: LedgerSum[];
  by_day: LedgerSum[];
}

/** What answers of chats took. */
export interface ChatSum {
  answers: number;
  prompt: number;
  completion: number;
  seconds: number;
}

/** Of one model. */
export interface ModelChatSum {
  answers: number;
  prompt: number;
  completion: number;
  seconds: number;
  model: string;
}

/** Of one day. */
export interface DayChatSum {
  answers: number;
  prompt: number;
  completion: number;
  seconds: number;
  day: string;
}

/** What the answers of the caller's chats took, from their receipts. */
export interface ChatSums {
  total: ChatSum;
  by_model: ModelChatSum[];
  by_day: DayChatSum[];
}

/** Tokens of a key on a day, from the keys' accounts. */
export interface AccountDay {
  day: string;
  key: string;
  tokens: number;
}

/** Why there are no savings. */
export interface SavingsError {
  message: string;
  hint: string;
}

/** How far a route is from renting answers to owning the model that gives them (`freehold graduate`). */
export interface OwnModel {
  route: string;
  student: string;
  teacher: string;
  stage: "rented" | "teaching" | "measured" | "owned";
  running: boolean; // it is being taught now
  texts: number; // kept texts of the route
  at: number; // examples from which it is taught
  bar: number;
  low: number | null; // lower bound of the student's score; null: it was not measured
  message: string; // the proposal, or why it is where it is
}

/** What was used. */
export interface UsageFacts {
  days: number;
  ledger: LedgerSums | null; // null: there is no ledger
  chats: ChatSums | null; // null where there is a ledger
  accounts: AccountDay[] | null; // null: this server has no keys
  savings: Savings | null; // `cost --from-ledger --json`; null: no ledger, or a client key asks
  savings_error: SavingsError | null;
  own_models: OwnModel[]; // of routes with `graduate`; none for a client key
}

/** A training, finished or not. */
export interface TrainingRow {
  id: string;
  name: string; // of the folder
  path: string | null; // only for the owner
  verb: TrainingVerb | "";
  state: "done" | "running" | "stopped" | "damaged";
  trouble: string; // of a damaged one
  base: string;
  made_at: string; // ISO 8601; "" where it is not finished
  step: number; // of a run with steps, the latest
  steps: number;
  cpu_seconds: number;
}

/** One training with its receipt and its curves. */
export interface TrainingReceipt {
  row: TrainingRow;
  receipt: Record<string, unknown> | null; // receipt.json as it is; null before the end
  inputs: Record<string, unknown> | null; // of a run that is not finished
  curves: Record<string, [number, number][]>; // (step, value) by name: loss, reward, mismatch, ...
  bad_lines: number; // damaged lines of steps.jsonl, left out
}

/** A task's metric. */
export interface EvalFigure {
  task: string;
  metric: string;
  value: number;
  items: number;
}

/** An evaluation. */
export interface EvalRow {
  id: string;
  name: string;
  path: string | null;
  state: "done" | "damaged";
  trouble: string;
  model: string;
  at: string;
  tasks: EvalFigure[];
}

/** Trainings and evaluations, the newest first. */
export interface TrainingList {
  runs: TrainingRow[];
  evals: EvalRow[];
}
