// JSON of /console/api that the server passes on from `freehold VERB --json` or keeps as plain objects, written by hand.
// docs/design/console.md says what it means.

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
  asked_again?: boolean; // a call in it could not be read, and the model was asked again: it cannot be made again either
  bits?: { settings?: object } | null; // the ChatSettings it had; null: the engine reports no token ids
  warnings: string[];
  [more: string]: unknown;
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

/** An 80 % range. */
export interface Range {
  low: number;
  mid: number;
  high: number;
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
