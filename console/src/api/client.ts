// Requests to our own server: JSON in both directions, and one error class. Knows no page and no route.

import { texts } from "../texts";
import { request } from "./session";

/** What the server refused, in its own words. `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = "",
    readonly hint = "",
  ) {
    super(message);
  }
}

/** What an error says, once: the server repeats its hint at the end of the message, for clients that show that alone. */
export function hintOnce<T extends { message: string; hint?: string }>(error: T): T {
  const again = `; ${error.hint}`;
  return error.hint && error.message.endsWith(again) ? { ...error, message: error.message.slice(0, -again.length) } : error;
}

/** Send a request; return the JSON of its answer. Throws ApiError. */
export async function api<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (method !== "GET") headers["content-type"] = "application/json";
  let response: Response;
  try {
    const data = method === "GET" ? null : JSON.stringify(body ?? {});
    response = await request(path, { method, headers, body: data, ...(signal && { signal }) });
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new ApiError(0, texts.parts.unreachable, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  const text = await response.text();
  return (text ? parse<T>(text) : null) as T; // some routes of /api answer with nothing
}

/** JSON whose seeds keep all their digits: JavaScript has no number of 64 bits, so such a one becomes a string. */
export function parse<T>(json: string): T {
  return JSON.parse(json.replace(/"seed": ?(\d{16,})/g, '"seed":"$1"')) as T;
}

async function refusal(response: Response): Promise<ApiError> {
  try {
    const { error } = (await response.json()) as { error: string | { message: string; code?: string; hint?: string } };
    if (typeof error === "string") return new ApiError(response.status, error); // as routes of /api word it
    const { message, code = "", hint = "" } = hintOnce(error);
    return new ApiError(response.status, message, code, hint);
  } catch {
    return new ApiError(response.status, texts.parts.answered(response.status));
  }
}

/** Post a form with a file; the answer's body is still to be read. Throws ApiError. */
export async function upload(path: string, form: FormData, signal: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await request(path, { method: "POST", body: form, signal });
  } catch (e) {
    if (signal.aborted) throw e;
    throw new ApiError(0, texts.parts.unreachable, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Post, and read an answer of one JSON object a line, as they come. Throws ApiError. */
export async function* lines<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const headers = { "content-type": "application/json" };
  const response = await request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n");
    rest = whole.pop()!;
    for (const line of whole) if (line) yield JSON.parse(line) as T;
  }
}

export const get = <T>(path: string, signal?: AbortSignal) => api<T>("GET", path, undefined, signal);
export const post = <T>(path: string, body: unknown = {}) => api<T>("POST", path, body);
export const patch = <T>(path: string, body: unknown) => api<T>("PATCH", path, body);
export const del = <T>(path: string, body: unknown = {}) => api<T>("DELETE", path, body);
