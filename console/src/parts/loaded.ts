// What a page asks the server for when it opens, asked again on demand. A newer answer replaces an older one in place.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../api/client";
import { me } from "../api/me";

export interface Loading<T> {
  value: T | null; // the newest answer
  error: unknown; // why there is none; null while it is asked for
  again: () => void;
}

/** Ask for `path` now, and again when it or `version` changes; null asks nothing. */
export function useLoaded<T>(path: string | null, version = 0): Loading<T> {
  const value = useSignal<T | null>(null);
  const error = useSignal<unknown>(null);
  const turn = useSignal(0);
  useEffect(() => {
    if (path === null) return;
    const stop = new AbortController();
    error.value = null;
    get<T>(path, stop.signal).then(
      (answer) => (value.value = answer),
      (e) => stop.signal.aborted || (error.value = e),
    );
    return () => stop.abort();
  }, [path, version, turn.value]);
  return { value: value.value, error: error.value, again: () => turn.value++ };
}

const answers = new Map<string, unknown>(); // by who asked and what

/**
 * As `useLoaded`, for what is long in coming: a page that is opened again shows the last answer until the new one is
 * there, and a page that is left does not take its question back, so that the work done for it is of use.
 */
export function useKept<T>(path: string, version = 0): Loading<T> {
  const name = `${me.peek()?.key ?? ""} ${path}`;
  const value = useSignal<T | null>((answers.get(name) as T) ?? null);
  const error = useSignal<unknown>(null);
  const turn = useSignal(0);
  useEffect(() => {
    let newest = true;
    error.value = null;
    get<T>(path).then(
      (answer) => {
        if (!newest) return void (answers.has(name) || answers.set(name, answer));
        answers.set(name, (value.value = answer));
      },
      (e) => newest && (error.value = e),
    );
    return () => void (newest = false);
  }, [path, version, turn.value]);
  return { value: value.value, error: error.value, again: () => turn.value++ };
}
