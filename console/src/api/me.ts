// Who asks: the session or the key-less caller, and what it may do.
import { signal } from "@preact/signals";
import { get, post } from "./client";

export interface Me {
  version: string;
  key: string | null; // name of the key of the session
  owner: boolean;
  keyed: boolean; // the server wants a key
  can: string[]; // chat, pull, delete, load, tools, keys
}

/** null until the server has answered. */
export const me = signal<Me | null>(null);

export async function readMe(): Promise<void> {
  me.value = await get<Me>("/console/api/me");
}

export async function logIn(key: string): Promise<void> {
  me.value = await post<Me>("/console/login", { key });
}

export async function logOut(): Promise<void> {
  me.value = await post<Me>("/console/logout");
}
