// Pulls in progress. They belong to the page and not to a view of it: they continue while another page is open.
import { signal } from "@preact/signals";
import { ApiError, lines } from "../../api/client";

export interface Pull {
  state: "fetching" | "verifying" | "stopping";
  done: number; // bytes
  total: number; // 0: not known
  rate: number; // bytes a second, of the last seconds
  note: string; // what the server last said that is not about bytes
  cancel: () => void;
}

interface Line {
  status?: string;
  completed?: number;
  total?: number;
  error?: string;
}

const LOOK_BACK_S = 4; // a rate over less jumps with every packet

export const pulls = signal<Readonly<Record<string, Pull>>>({});

/** Pull a model; true once it is here, false where it was cancelled. What was fetched is kept, and a later pull continues. */
export async function pull(name: string, expected: number): Promise<boolean> {
  const stop = new AbortController();
  const files = new Map<string, Line>(); // by status, which names the file
  const marks: [s: number, bytes: number][] = [];
  const say = (now: Partial<Pull>) => {
    pulls.value = { ...pulls.value, [name]: { ...pulls.value[name]!, ...now } };
  };
  say({ state: "fetching", done: 0, total: expected, rate: 0, note: "", cancel: () => stop.abort() });
  try {
    for await (const line of lines<Line>("/api/pull", { model: name }, stop.signal)) {
      if (line.error) throw new ApiError(500, line.error);
      if (line.status?.startsWith("verifying")) say({ state: "verifying" });
      if (line.completed === undefined) say({ note: line.status ?? "" });
      else {
        files.set(line.status!, line);
        const all = [...files.values()];
        const done = sum(all, "completed");
        say({ done, total: Math.max(expected, sum(all, "total")), rate: rateOf(marks, done) });
      }
    }
    return true;
  } catch (e) {
    if (stop.signal.aborted) return false;
    throw e;
  } finally {
    const { [name]: _, ...others } = pulls.value;
    pulls.value = others;
  }
}

function sum(files: Line[], field: "completed" | "total"): number {
  return files.reduce((all, file) => all + (file[field] ?? 0), 0);
}

function rateOf(marks: [s: number, bytes: number][], done: number): number {
  const now = performance.now() / 1000;
  marks.push([now, done]);
  while (marks.length > 2 && now - marks[0]![0] > LOOK_BACK_S) marks.shift();
  const [since, before] = marks[0]!;
  return now > since ? (done - before) / (now - since) : 0;
}
