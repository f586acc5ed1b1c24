// Addresses within the page: the part after `#`, so that no address of ours is a route of the server.
import { signal } from "@preact/signals";

/** `#/chat/ID?x=1` is {page: "chat", rest: ["ID"], query}. */
export interface Place {
  page: string;
  rest: string[];
  query: URLSearchParams;
}

function read(): Place {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", ...rest] = path.split("/").map(decodePart);
  return { page: page || "chat", rest, query: new URLSearchParams(query) };
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray % in an address that someone typed
  }
}

export const place = signal(read());
addEventListener("hashchange", () => (place.value = read()));

/** Whether an address may name a chat so: an id becomes a part of routes, and `..` in it would lead to others. */
export const isId = (text: string) => /^[A-Za-z0-9][\w.-]{0,79}$/.test(text);

/** The address of a page, for links. */
export function to(page: string, ...rest: string[]): string {
  return "#/" + [page, ...rest].map(encodeURIComponent).join("/");
}

/** Go to a page; `replace`: without a step in the browser's history. */
export function go(address: string, replace = false): void {
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  place.value = read();
}
addEventListener("popstate", () => (place.value = read()));
