// The models that can be asked: what is here, what is in memory, what each can do, and its own defaults for sampling.
import { signal } from "@preact/signals";
import { get, post } from "../../api/client";
import type { PictureTokens } from "../../api/types";
import { kept } from "./kept";
import { reach } from "./link";

export interface Model {
  id: string;
  bytes: number | null;
  loaded: boolean;
  context: number | null;
  capabilities: string[] | null; // null: known once it is loaded
}

interface Row {
  id: string;
  max_model_len?: number | null;
  freehold?: { bytes?: number | null; loaded?: boolean; capabilities?: string[] };
}

export const models = signal<Model[] | null>(null);
/** The models that turn speech into text; those in memory first. */
export const hearing = signal<string[]>([]);

/** Read the models; those that only embed or transcribe can not be asked and are left out. */
export async function readModels(): Promise<void> {
  const { data } = await reach(get<{ data: Row[] }>("/v1/models"));
  const tags = await abilities();
  const all = data
    .map((row) => ({
      id: row.id,
      bytes: row.freehold?.bytes ?? null,
      loaded: row.freehold?.loaded ?? false,
      context: row.max_model_len ?? null,
      capabilities: row.freehold?.capabilities ?? tags.get(row.id) ?? null,
    }))
    .sort((a, b) => Number(b.loaded) - Number(a.loaded) || a.id.localeCompare(b.id));
  hearing.value = all.filter((model) => model.capabilities?.includes("transcription")).map((model) => model.id);
  models.value = all.filter((model) => model.capabilities === null || model.capabilities.includes("completion"));
}

/** What each model on this disk can do; a server behind a gateway has no such list. */
async function abilities(): Promise<Map<string, string[]>> {
  try {
    const { models } = await get<{ models: { name: string; capabilities?: string[] }[] }>("/api/tags");
    return new Map(models.flatMap((each) => (each.capabilities ? [[each.name, each.capabilities]] : [])));
  } catch {
    return new Map();
  }
}

/** The model of a new chat: the one used last, else the first, which is one in memory if any is. */
export function preferred(): string {
  const last = kept("model", "");
  const all = models.value ?? [];
  return (all.find((model) => model.id === last) ?? all[0])?.id ?? "";
}

export const modelOf = (id: string) => models.value?.find((model) => model.id === id) ?? null;
const canSee = (model: Model) => model.capabilities?.some((each) => each === "vision" || each === "image") ?? null;
/** Whether a model sees pictures; null where that is not known before it is loaded. */
export const sees = (id: string): boolean | null => canSee(modelOf(id) ?? UNKNOWN);
/** The models here that do. */
export const seeing = () => (models.value ?? []).filter(canSee).map((model) => model.id);
const UNKNOWN: Model = { id: "", bytes: null, loaded: false, context: null, capabilities: null };

const NAMES: Record<string, string> = { repeat_penalty: "repetition_penalty", repeat_last_n: "penalty_window" };
const asked = new Map<string, Promise<Record<string, string>>>();

/** A model's own sampling: field -> value as text. Empty where it is not known. */
export function defaultsOf(model: string): Promise<Record<string, string>> {
  let held = asked.get(model);
  if (!held) asked.set(model, (held = readDefaults(model)));
  return held;
}

async function readDefaults(model: string): Promise<Record<string, string>> {
  try {
    const { parameters } = await post<{ parameters?: string }>("/api/show", { model });
    const lines = (parameters ?? "").split("\n").map((line) => line.trim().split(/\s+/));
    return Object.fromEntries(lines.filter((line) => line.length === 2).map(([name, value]) => [NAMES[name!] ?? name, value]));
  } catch {
    asked.delete(model);
    return {};
  }
}

/** How many tokens a picture adds to a prompt, by its size; null where the model cannot tell. Throws ApiError. */
export async function countPicture(model: string, width: number, height: number): Promise<number | null> {
  return (await post<PictureTokens>("/console/api/pictures/tokens", { model, width, height })).tokens;
}

/** How many tokens a text is for a model; null where that is not known now. */
export async function countTokens(model: string, text: string): Promise<number | null> {
  try {
    return (await post<{ count: number }>("/tokenize", { model, prompt: text, add_special_tokens: false })).count;
  } catch {
    return null;
  }
}
