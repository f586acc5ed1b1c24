// What a page asks the server for when it opens, asked again on demand. A newer answer replaces an older one in place.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../api/client";

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
