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
  named: boolean; // its title was set
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
  outcome?: ToolState | null; // of a tool's message: how its call ended; null: not known
  edited?: boolean; // of an answer: the user wrote it, in place of the model's
  error?: { message: string; code?: string; hint?: string } | null; // of a failed answer
}

export interface Receipt {
  model?: string;
  context: { limit: number; used: number; cached: number; dropped_messages: number };
  sampling: Record<string, unknown>;
  max_tokens: number;
  timings: Record<string, number>;
  tokens?: { prompt: number; answer: number; thought: number };
  first_s?: number;
  tok_s?: number;
  thinking_s?: number;
  continued?: boolean; // it continues an answer that was cut off, so that it cannot be made again
  bits?: { settings?: ChatSettings } | null; // null: the engine reports no token ids
  warnings: string[];
  [more: string]: unknown;
}

export interface ChatSettings {
  system?: string;
  think?: boolean;
  max_tokens?: number;
  sampling?: Record<string, unknown>;
  tools?: string[];
  overflow?: "drop-oldest" | "error"; // where the context is full; left out: the first
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
  skipped: number; // lines of its file that are damaged
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

/** Of two answers, a and b: equal, or the first token that differs. */
export interface Difference {
  equal: boolean;
  tokens: [number, number];
  first?: number; // index of the token in a
  was?: string; // that token in a; "": the answer had ended
  is?: string; // and in b
  at?: number; // where it begins: thinking before content
  tok_s: [number | null, number | null];
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
  | { t: "result"; message: string; parent: string; call: string; content: string; outcome: ToolState }
  | { t: "note"; text: string; code: string }
  | { t: "again"; equal: boolean; tokens: number; first?: number; was?: string; is?: string; changed?: string }
  | { t: "end"; finish: string; receipt: Receipt | null; error?: { message: string; code: string; hint?: string } };

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
  digest: string; // of the tool as this question describes it: the answer holds for no other
}

// --- facts: GET /console/api/live, models, choose, usage, training --------------------------------------------

/** An 80 % range. */
export interface Range {
  low: number;
  mid: number;
  high: number;
}

/** p50 and so on of everything since the server started, and of the last minute while someone looks; seconds. */
export interface Percentiles {
  count: number;
  p50: number | null;
  p90: number | null;
  p99: number | null;
}

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

export interface LiveModel {
  name: string;
  waiting: number;
  expected_wait_s: number;
  full: LiveEngine | null; // null for a client key
}

export interface LiveEngine {
  running: number;
  in_flight: number;
  tok_s: number | null; // generated a second, by the two latest looks
  prefill_tok_s: number | null;
  ttft: { all: Percentiles; recent: Percentiles | null };
  itl: { all: Percentiles; recent: Percentiles | null };
  cache: {
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
  };
  memory: Record<string, number>; // bytes by kind: weights, cache, states, adapters, draft; {} where the engine does not say
  memory_bytes: number;
  context: number;
  kv_tokens: number;
  quantization: string;
  threads: number;
  load_s: number;
  expires_at: number | null; // seconds since 1970, when it is unloaded if idle
  drafts: { drafted: number; accepted: number };
  preemptions: number;
  slow_readers: number;
  restarts: number;
  deaths: { at: number; cause: string }[]; // the latest ones; seconds since 1970
  process: { pid: number; rss: number; cpu_s: number } | null; // only for the owner
}

export interface LiveState {
  at: number; // seconds since 1970
  version: string;
  started_at: number;
  streams: LiveStream[]; // the caller's own; all of them for the owner
  models: LiveModel[];
  loading: { name: string; done: number; total: number }[];
  machine: { memory: number; free: number } | null; // null for a client key
  troubles: string[]; // of /health, such as a full disk
}

export interface Verdict {
  answer: "allowed" | "conditions" | "refused" | "unknown";
  licences: string[];
  reasons: { bearing: string; says: string; clause: string; source: string }[];
  questions: string[]; // what would decide it
}

export interface QualityRange extends Range {
  benchmark: string;
  basis: string;
  evidence: string; // what was published, and by whom
  tasks: string[];
}

/** How fast a speed is for who reads along. */
export type Pace = "fast" | "readable" | "slow" | "unusable";

/** A model to begin with, of GET /console/api/starters. */
export interface Starter {
  name: string;
  bytes: number; // of the download
  held: boolean;
  disk: number; // bytes, with its packed copy
  memory: number;
  speed: Range;
  pace: Pace;
  about: string;
}

export interface Starters {
  models: Starter[];
}

export interface ModelRow {
  name: string; // what to ask for, and to pull
  id: string; // the catalogue's; "" where it does not know the model
  held: boolean;
  state: string; // of the store: ready, incomplete, changed, vanished; "" where it is not held
  loaded: boolean;
  pull: string | null; // the name to pull; null: held, or no known source
  bytes: number; // of the file; 0: not known
  bytes_known: boolean; // false: computed from its parameters
  lab: string;
  country: string; // ISO 3166, of the lab
  family: string;
  released: string;
  params_b: number;
  active_b: number;
  role: string; // generator, embedder, reranker ...
  modalities: string[];
  context: number; // trained
  quant: string;
  runs: boolean; // Freehold's engine computes it,
  refused: string; // or why not
  fits: boolean | null; // here; null: not known
  reason: string; // why it does not fit
  memory: number | null; // bytes at `at_context` tokens
  needs: string; // the same as a sentence, which Engine, `fit` and `ps` say too; "": not known
  at_context: number | null;
  longest: number | null; // tokens that fit
  decode: Range | null; // tokens a second,
  pace: Pace | ""; // and in a word
  prefill: Range | null;
  basis: string; // what the speeds rest on
  licence: string;
  verdict: Verdict | null;
  quality: QualityRange[];
}

export interface ModelList {
  place: Record<string, unknown>; // the machine, as `fit --json` has it
  company: boolean; // config.toml has a [company]
  purpose: string; // of [company]; "": no purpose was given, so no verdict can be certain
  models: ModelRow[]; // held ones first
  newer: boolean; // a newer list is being computed: `newest=1` waits for it
}

/** Money in nano-dollars, as `freehold ledger --json`. */
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
}

export interface ChatSum {
  answers: number;
  prompt: number;
  completion: number;
  seconds: number;
}

export interface UsageFacts {
  days: number;
  /** null: there is no ledger. Otherwise what `freehold ledger --by model --json` (key, day) prints. */
  ledger: {
    since: number;
    until: number;
    total: LedgerSum;
    by_model: LedgerSum[];
    by_key: LedgerSum[];
    by_day: LedgerSum[];
  } | null;
  /** What the answers of the caller's chats took, from their receipts; null where there is a ledger. */
  chats: { total: ChatSum; by_model: (ChatSum & { model: string })[]; by_day: (ChatSum & { day: string })[] } | null;
  /** Tokens by key and day, from the keys' accounts; null: this server has no keys. */
  accounts: { day: string; key: string; tokens: number }[] | null;
  /** What `freehold cost --from-ledger --json` prints; null: no ledger, or a client key asks. */
  savings: Savings | null;
  savings_error: { message: string; hint: string } | null;
}

export interface DollarRange {
  low: number;
  mid: number;
  high: number;
}

export interface Savings {
  [part: string]: unknown;
  against: { name: string; what: string; requests: number; cost: DollarRange; saved: DollarRange }[];
}

export type TrainingVerb = "finetune" | "align" | "reinforce" | "distil" | "quantize";

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

export interface TrainingReceipt {
  row: TrainingRow;
  receipt: Record<string, unknown> | null; // receipt.json as it is; null before the end
  inputs: Record<string, unknown> | null; // of a run that is not finished
  /** A line a step; a name is a curve if most lines have a number for it: loss, reward, mismatch ... */
  curves: Record<string, [step: number, value: number][]>;
  bad_lines: number; // damaged lines of steps.jsonl, left out
}

export interface EvalRow {
  id: string;
  name: string;
  path: string | null;
  state: "done" | "damaged";
  trouble: string;
  model: string;
  at: string;
  tasks: { task: string; metric: string; value: number; items: number }[];
}

export interface TrainingList {
  runs: TrainingRow[]; // the newest first
  evals: EvalRow[];
}

/** What `freehold eval --compare ONE OTHER --json` prints. */
export interface EvalComparison {
  one: string;
  other: string;
  tasks: {
    task: string;
    metric: string;
    items: number;
    one: number;
    other: number;
    wins: number;
    losses: number;
    p: number | null;
    low: number;
    high: number;
    notes: string[];
  }[];
  notes: string[];
}
