// A run's events, from a position on, over any number of connections. Knows SSE's lines and a run's numbers.
import { texts } from "../texts";
import { ApiError, parse } from "./client";
import { request } from "./session";
import type { RunEvent } from "./run";

const RETRY_MS = [250, 500, 1000, 2000]; // the last one holds

/** Whether the connection stands, for a page that says so. */
export type Connection = "open" | "waiting";

/** Follow a run until its end. `seen` is called with each event once; returns when it ended or `signal` fired. */
export async function follow(
  run: string,
  after: number,
  seen: (event: RunEvent, n: number) => void,
  connection: (state: Connection) => void,
  signal: AbortSignal,
): Promise<void> {
  let tries = 0;
  while (!signal.aborted) {
    try {
      for await (const come of events(`/console/api/runs/${run}/events?after=${after}`, signal)) {
        connection("open");
        tries = 0;
        for (const { id, event, data } of come) {
          after = id;
          seen({ t: event, ...parse<object>(data) } as RunEvent, id);
          if (event === "end") return;
        }
      }
    } catch (e) {
      if (signal.aborted) return;
      if (e instanceof ApiError && e.status >= 400 && e.status < 500 && e.status !== 429) throw e;
    }
    connection("waiting");
    await pause(RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]!, signal);
  }
}

interface ServerEvent {
  id: number;
  event: string;
  data: string;
}

/** Read a stream of server-sent events, those that come together at once. Throws ApiError for an answer that is none. */
export async function* events(path: string, signal: AbortSignal): AsyncGenerator<ServerEvent[]> {
  const response = await request(path, { headers: { accept: "text/event-stream" }, signal });
  if (!response.ok || !response.body) throw new ApiError(response.status, texts.parts.answered(response.status));
  yield* sse(response.body);
}

/** Read the lines of server-sent events. */
export async function* sse(body: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<ServerEvent[]> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let open: ServerEvent = { id: 0, event: "message", data: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = value.split("\n"); // not of what came before: the line of a long answer comes in many pieces
    lines[0] = rest + lines[0];
    rest = lines.pop()!;
    const come: ServerEvent[] = [];
    for (const line of lines) {
      if (line === "") {
        if (open.data) come.push(open);
        open = { id: open.id, event: "message", data: "" };
      } else if (line.startsWith("data: ")) open.data += line.slice(6);
      else if (line.startsWith("event: ")) open.event = line.slice(7);
      else if (line.startsWith("id: ")) open.id = Number(line.slice(4));
    }
    if (come.length) yield come;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}
