// The server's live figures while someone looks: two a second, none for a hidden tab; asked for anew when they stop coming.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError } from "../../api/client";
import { events } from "../../api/events";
import type { LiveEngine, LiveState } from "../../api/types";

export const SPAN_S = 120; // that the charts show

/** What the charts of one model draw: a list a curve, all as long as `at`. */
export interface History {
  at: number[];
  decode: (number | null)[];
  itl50: (number | null)[];
  itl99: (number | null)[];
}

export interface Live {
  state: LiveState | null;
  connected: boolean;
  error: unknown; // why the server refuses them
  history: ReadonlyMap<string, History>;
}

const RETRY_MS = 1000;

export function useLive(): Live {
  const state = useSignal<LiveState | null>(null);
  const connected = useSignal(false);
  const error = useSignal<unknown>(null);
  const history = useRef(new Map<string, History>());
  useEffect(() => {
    const gone = new AbortController();
    let stop = new AbortController();
    const seen = (found: LiveState) => {
      remember(history.current, found);
      state.value = found;
      connected.value = true;
      error.value = null;
    };
    const watch = async () => {
      stop = new AbortController();
      const mine = stop;
      while (!mine.signal.aborted && !gone.signal.aborted) {
        try {
          for await (const come of events("/console/api/live", mine.signal)) {
            for (const { event, data } of come) if (event === "state") seen(JSON.parse(data) as LiveState);
          }
        } catch (e) {
          if (e instanceof ApiError && e.status >= 400 && e.status < 500) error.value = e;
        }
        if (mine.signal.aborted) return;
        connected.value = false;
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    };
    const turn = () => {
      stop.abort();
      if (!document.hidden) void watch();
    };
    turn();
    document.addEventListener("visibilitychange", turn);
    return () => {
      document.removeEventListener("visibilitychange", turn);
      gone.abort();
      stop.abort();
    };
  }, []);
  return { state: state.value, connected: connected.value, error: error.value, history: history.current };
}

function remember(histories: Map<string, History>, state: LiveState): void {
  for (const model of state.models) {
    if (model.full) histories.set(model.name, longer(histories.get(model.name), state.at, model.full));
  }
}

/** A new object each time, so that a chart sees that it changed. */
function longer(before: History | undefined, at: number, now: LiveEngine): History {
  const old = before ?? { at: [], decode: [], itl50: [], itl99: [] };
  const from = old.at.findIndex((t) => t > at - SPAN_S);
  const add = <T>(list: T[], value: T) => [...(from < 0 ? [] : list.slice(from)), value];
  return {
    at: add(old.at, at),
    decode: add(old.decode, now.tok_s),
    itl50: add(old.itl50, now.itl.recent?.p50 ?? null),
    itl99: add(old.itl99, now.itl.recent?.p99 ?? null),
  };
}
