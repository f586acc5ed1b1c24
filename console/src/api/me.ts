// Who asks: the session or the key-less caller, and what it may do. Logging in changes it.
import { signal } from "@preact/signals";
import { get, post } from "./client";
import type { PictureLimits } from "./types";
import { settle } from "./session";

export interface Me {
  version: string;
  key: string | null; // name of the key of the session
  owner: boolean;
  keyed: boolean; // the server wants a key
  can: string[]; // chat, pull, delete, load, tools, keys
  has: string[]; // of usage, runs, deployments and keys: those with something in them
  pictures: PictureLimits;
  refused: string; // why this browser may do nothing, where that is not for want of a key
}

/** null until the server has answered. */
export const me = signal<Me | null>(null);

/** Whether this server wants a key and has none of this browser. */
export const stranger = (who: Me) => who.keyed && who.key === null && !who.owner;

let asked = 0; // an answer to an earlier question says who asked before a login

export async function readMe(): Promise<void> {
  const mine = ++asked;
  const now = await get<Me>("/console/api/me");
  if (mine === asked) me.value = now;
}

/** Change a key for a session. Throws ApiError; false: the browser does not send the session's cookie back as it must. */
export async function logIn(key: string): Promise<boolean> {
  const before = me.value;
  asked++;
  await post<Me>("/console/login", { key });
  const now = await get<Me>("/console/api/me");
  if (stranger(now)) return false;
  // Another key has other chats: nothing of the former one's may stay in this page.
  if (before && !stranger(before) && (before.key !== now.key || before.owner !== now.owner)) location.reload();
  else {
    me.value = now;
    settle(true);
  }
  return true;
}

export async function logOut(): Promise<void> {
  await post<Me>("/console/logout");
  location.replace("/"); // and with the page all that it held
}

/** Change the code that `freehold open` put into the address for a session of the owner; the address forgets it first. */
export async function becomeOwner(code: string): Promise<void> {
  asked++;
  me.value = await post<Me>("/console/owner", { code });
}

addEventListener("pageshow", (e) => {
  if (e.persisted) location.reload(); // out of the browser's memory of a page, perhaps of one that has logged out
});
