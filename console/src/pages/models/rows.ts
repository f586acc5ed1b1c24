// Which models a search and its filters leave, and how a row's facts read. Knows rows; draws nothing.
import type { ModelRow, Verdict } from "../../api/types";
import { range, rate } from "../../parts/numbers";
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

/** What is here by name, as the server lists it; of the catalogue what runs and fits here first, the newest before. */
export function ordered(rows: ModelRow[], held: boolean): ModelRow[] {
  if (held) return rows;
  const place = (row: ModelRow) => (row.runs && row.fits ? (row.role === "generator" ? 0 : 1) : 2);
  return [...rows].sort((a, b) => place(a) - place(b) || b.released.localeCompare(a.released));
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
  return { says: words.yes, tone: "good" };
}

export const VERDICT_TONES: Record<Verdict["answer"], Tone> = {
  allowed: "good",
  conditions: "warn",
  refused: "bad",
  unknown: "",
};

export function speed(row: ModelRow): { mid: string; bounds: string } | null {
  if (!row.decode) return null;
  return { mid: rate(row.decode.mid), bounds: range(row.decode.low, row.decode.high, rate) };
}

/** 0.5B, 30B of which 3B compute a token. */
export function size(row: ModelRow): string {
  if (!row.params_b) return "";
  const whole = `${params(row.params_b)}`;
  return row.active_b && row.active_b < row.params_b ? texts.models.active(whole, params(row.active_b)) : whole;
}

function params(billions: number): string {
  return billions < 1 ? `${Math.round(billions * 1000)}M` : `${Number(billions.toPrecision(3))}B`;
}
