// What can be done to a model: each asks the server, says what came of it, and then has the list asked again.
import { del, get, post } from "../../api/client";
import { signal } from "@preact/signals";
import { ask } from "../../parts/dialog";
import { notify, notifyError } from "../../parts/notice";
import { bytes } from "../../parts/numbers";
import { texts } from "../../texts";
import type { ModelRow } from "../../api/types";
import { pull } from "./pulls";
import type { Why } from "./why";

/** Models that are being loaded, unloaded or deleted. */
export const busy = signal<ReadonlySet<string>>(new Set());
/** Counts what was done, so that the list is asked again. */
export const changes = signal(0);

async function doing(name: string, work: () => Promise<string>): Promise<void> {
  busy.value = new Set([...busy.value, name]);
  try {
    const said = await work();
    if (said) notify({ text: said });
  } catch (e) {
    notifyError(e);
  } finally {
    busy.value = new Set([...busy.value].filter((other) => other !== name));
    changes.value++;
  }
}

export async function fetchModel(row: ModelRow): Promise<void> {
  try {
    if (await pull(row.pull!, row.bytes)) notify({ text: texts.models.pulled(row.name) });
    else notify({ text: texts.models.cancelled(row.name) });
  } catch (e) {
    notifyError(e);
  }
  changes.value++;
}

export function load(row: ModelRow): Promise<void> {
  return doing(row.name, async () => {
    await post("/admin/load", { model: row.name });
    return texts.models.nowLoaded(row.name);
  });
}

export function unload(row: ModelRow): Promise<void> {
  return doing(row.name, async () => {
    await post("/admin/unload", { model: row.name });
    return texts.models.nowUnloaded(row.name);
  });
}

/** Delete a model's files after asking, with the bytes that this frees; another program's files stay. */
export async function remove(row: ModelRow): Promise<void> {
  let model: Why["model"];
  try {
    model = (await get<Why>(`/console/api/choose?verb=why&model=${encodeURIComponent(row.name)}`)).model;
  } catch (e) {
    return notifyError(e);
  }
  const ours = model.owner === "freehold";
  const freed = bytes((ours ? (model.held ?? 0) : 0) + (model.pack_bytes ?? 0));
  const words = texts.models;
  const sure = await ask({
    title: ours ? words.deleteTitle(row.name) : words.forgetTitle(row.name),
    text: ours ? words.deleteText(freed) : words.forgetText(model.owner ?? "", freed),
    action: ours ? words.deleteDo : words.forgetDo,
    danger: true,
  });
  if (!sure) return;
  await doing(row.name, async () => {
    await del("/api/delete", { model: row.name });
    return words.deleted(row.name, freed);
  });
}
