// Which models a search and its filters leave, and how a row's facts read. Knows rows; draws nothing.
import type { ModelRow, Verdict } from "../../api/types";
import { texts } from "../../texts";

export interface Filters {
  words: string;
  fits: boolean; // only those that fit here
  licence: "any" | "usable" | "allowed"; // usable: allowed, or under conditions
  role: string; // "" any
  held: boolean | null; // null: both
}

export const NO_FILTERS: Filters = { words: "", fits: false, licence: "any", role: "", held: null };

export function matching(rows: ModelRow[], filters: Filters): ModelRow[] {
  const words = filters.words.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => {
    if (filters.held !== null && row.held !== filters.held) return false;
    if (filters.fits && !(row.fits && row.runs)) return false;
    if (filters.role && row.role !== filters.role) return false;
    if (!licenceMatches(row.verdict, filters.licence)) return false;
    const text = `${row.name} ${row.id} ${row.lab} ${row.country} ${row.family} ${row.licence} ${row.modalities.join(" ")}`;
    return words.every((word) => text.toLowerCase().includes(word));
  });
}

const PACES = ["fast", "readable", "slow", "unusable", ""]; // in the order in which a person takes them
const CHAT = "arena"; // the benchmark of answers in general

/** What a person here would take first: models that write, fit, can be had, are fast enough to read along, then the best. */
export function ordered(rows: ModelRow[]): ModelRow[] {
  const place = (row: ModelRow) => [
    row.runs && row.fits ? 0 : 1,
    row.role === "generator" ? 0 : 1,
    row.held || row.pull ? 0 : 1,
    row.pace === "fast" ? 0 : PACES.indexOf(row.pace) - 1, // what is fast and what can be read along are taken by quality
    -(quality(row) ?? 0),
    -row.params_b, // where no result was published, size is the best sign that is known of each
  ];
  const places = new Map(rows.map((row) => [row, place(row)]));
  return [...rows].sort((a, b) => {
    const [x, y] = [places.get(a)!, places.get(b)!];
    const at = x.findIndex((n, i) => n !== y[i]);
    return at < 0 ? b.released.localeCompare(a.released) : x[at]! - y[at]!;
  });
}

/** How well a model answers in general, on the scale of one benchmark; null where no result was published. */
export function quality(row: ModelRow): number | null {
  return row.quality.find((each) => each.benchmark === CHAT)?.mid ?? null;
}

function licenceMatches(verdict: Verdict | null, wanted: Filters["licence"]): boolean {
  if (wanted === "any") return true;
  if (wanted === "allowed") return verdict?.answer === "allowed";
  return verdict?.answer === "allowed" || verdict?.answer === "conditions";
}

export type Tone = "good" | "warn" | "bad" | "";

/** Whether it runs here, in a word or two. */
export function fit(row: ModelRow): { says: string; tone: Tone } {
  const words = texts.models.fit;
  if (!row.runs) return { says: words.refused, tone: "" };
  if (row.fits === null) return { says: words.unknown, tone: "" };
  if (!row.fits) return { says: words.no, tone: "" };
  return { says: words.yes, tone: row.pace === "slow" || row.pace === "unusable" ? "" : "good" };
}

export const VERDICT_TONES: Record<Verdict["answer"], Tone> = {
  allowed: "good",
  conditions: "",
  refused: "bad",
  unknown: "",
};

/** 0.5B, 30B of which 3B compute a token. */
export function size(row: ModelRow): string {
  if (!row.params_b) return "";
  const whole = `${params(row.params_b)}`;
  return row.active_b && row.active_b < row.params_b ? texts.models.active(whole, params(row.active_b)) : whole;
}

function params(billions: number): string {
  return billions < 1 ? `${Math.round(billions * 1000)}M` : `${Number(billions.toPrecision(3))}B`;
}
