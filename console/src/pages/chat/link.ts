// Whether the server answers. One look a second while it does not; pages wait for its return here.
import { computed, signal } from "@preact/signals";
import { api, ApiError } from "../../api/client";
import type { Connection } from "../../api/events";

const PROBE_MS = 1000;

/** When the server stopped answering, in ms since 1970; null while it answers. */
export const downSince = signal<number | null>(null);
export const isDown = computed(() => downSince.value !== null);
const waiting = new Set<() => void>();

/** Say that a request did not reach the server. */
export function lost(): void {
  if (downSince.peek() !== null) return;
  downSince.value = Date.now();
  setTimeout(probe, PROBE_MS);
}

/** Say that it answered. */
export function found(): void {
  if (downSince.peek() === null) return;
  downSince.value = null;
  for (const each of [...waiting]) each();
}

/** Note how a run's connection stands. */
export const connected = (state: Connection) => (state === "waiting" ? lost() : found());

/** Call `run` each time the server is back; returns what ends that. */
export function onReturn(run: () => void): () => void {
  waiting.add(run);
  return () => void waiting.delete(run);
}

async function probe(): Promise<void> {
  if (downSince.peek() === null) return;
  try {
    await api("GET", "/console/api/me", undefined, AbortSignal.timeout(5000));
    found();
  } catch (e) {
    if (e instanceof ApiError && e.status !== 0 && e.status < 502) found();
    else setTimeout(probe, PROBE_MS);
  }
}

addEventListener("offline", lost);
addEventListener("online", () => void probe());

/** Run a request, and note whether the server answered. */
export async function reach<T>(request: Promise<T>): Promise<T> {
  try {
    const answer = await request;
    found();
    return answer;
  } catch (e) {
    const late = e instanceof DOMException && e.name === "TimeoutError";
    if (late || (e instanceof ApiError && e.status === 0)) lost();
    else if (e instanceof ApiError) found();
    throw e;
  }
}
