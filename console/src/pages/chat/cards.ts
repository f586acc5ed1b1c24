// The list of chats: pages of cards, a search on the server, and what can be done with one. Knows no message.
import { batch, signal } from "@preact/signals";
import { del, get, patch, post } from "../../api/client";
import type { Card, Match } from "../../api/types";
import { notify, notifyError } from "../../parts/notice";
import { go, place, to } from "../../parts/router";
import { texts } from "../../texts";
import { reach } from "./link";

const PAGE = 200;
const MOST_SOUGHT = 200; // characters; the route's limit
const LOOK_MS = 5000; // a server that takes longer counts as away
const NEWEST = 40; // cards that a look for changes reads

interface Page {
  chats: Card[];
  next: string | null;
}

export const cards = signal<Card[]>([]);
export const next = signal<string | null>(null);
export const listed = signal(false); // the first page has come
export const query = signal("");
export const matches = signal<Match[] | null>(null); // null: no search
let reading = false;
let searches = 0;

/** Read the list's first page. */
export async function readCards(): Promise<void> {
  const page = await reach(get<Page>(`/console/api/chats?limit=${PAGE}`));
  batch(() => {
    cards.value = page.chats;
    next.value = page.next;
    listed.value = true;
  });
}

/** Read the page after the last card. */
export async function readMore(): Promise<void> {
  if (reading || next.peek() === null) return;
  reading = true;
  try {
    const page = await reach(get<Page>(`/console/api/chats?limit=${PAGE}&after=${encodeURIComponent(next.peek()!)}`));
    const have = new Set(cards.peek().map((card) => card.id));
    batch(() => {
      cards.value = [...cards.peek(), ...page.chats.filter((card) => !have.has(card.id))];
      next.value = page.next;
    });
  } finally {
    reading = false;
  }
}

/** Look whether chats changed elsewhere; returns the newest cards. */
export async function look(): Promise<Card[]> {
  const before = cards.peek();
  const page = await reach(get<Page>(`/console/api/chats?limit=${NEWEST}`, AbortSignal.timeout(LOOK_MS)));
  const held = new Map(cards.peek().map((card) => [card.id, card]));
  const deleted = missing(before, page).filter((card) => held.get(card.id) === card);
  if (deleted.length || page.chats.some((card) => !same(held.get(card.id), card))) {
    for (const card of deleted) held.delete(card.id);
    for (const card of page.chats) held.set(card.id, card);
    cards.value = sorted([...held.values()]);
  }
  return page.chats;
}

/** Cards that would be on a first page and are not: another browser or a program deleted their chats. */
function missing(before: readonly Card[], { chats, next }: Page): Card[] {
  const there = new Set(chats.map((card) => card.id));
  const last = chats.at(-1);
  return before.filter((card) => !there.has(card.id) && (next === null || (last && order(card, last) < 0)));
}

const same = (a: Card | undefined, b: Card) =>
  a !== undefined &&
  a.updated === b.updated &&
  a.title === b.title &&
  a.pinned === b.pinned &&
  a.running === b.running &&
  a.model === b.model;

/** Pinned ones first, then the newest. */
function sorted(all: Card[]): Card[] {
  return all.sort(order);
}

const order = (a: Card, b: Card) => Number(b.pinned) - Number(a.pinned) || b.updated - a.updated;

/** Take a card that a route has answered with. */
export function changed(card: Card): void {
  const others = cards.peek().filter((each) => each.id !== card.id);
  if (others.length < cards.peek().length && cards.peek().some((each) => each.id === card.id && same(each, card))) return;
  cards.value = sorted([card, ...others]);
}

/** Search titles and messages; the newest search wins. */
export async function search(words: string): Promise<void> {
  const mine = ++searches;
  query.value = words;
  if (!words.trim()) return void (matches.value = null);
  try {
    const found = await reach(get<{ matches: Match[] }>(`/console/api/chats?limit=100&q=${encodeURIComponent(words.slice(0, MOST_SOUGHT))}`));
    if (mine === searches) matches.value = found.matches;
  } catch (e) {
    if (mine === searches) notifyError(e);
  }
}

export async function rename(card: Card, title: string): Promise<void> {
  changed(await reach(patch<Card>(`/console/api/chats/${card.id}`, { title })));
}

export async function pin(card: Card): Promise<void> {
  changed(await reach(patch<Card>(`/console/api/chats/${card.id}`, { pinned: !card.pinned })));
}

/** Delete a chat, and offer to take that back. */
export async function remove(card: Card): Promise<void> {
  const { undo_s } = await reach(del<{ undo_s: number }>(`/console/api/chats/${card.id}`));
  cards.value = cards.peek().filter((each) => each.id !== card.id);
  if (matches.peek()) matches.value = matches.peek()!.filter((each) => each.chat.id !== card.id);
  if (place.peek().rest[0] === card.id) go(to("chat"));
  const text = texts.chat.deleted(card.title || texts.chat.untitled);
  notify({ text, seconds: Math.min(undo_s, 20), action: { label: texts.chat.undo, run: () => void restore(card) } });
}

async function restore(card: Card): Promise<void> {
  try {
    changed(await reach(post<Card>(`/console/api/chats/${card.id}/restore`)));
    go(to("chat", card.id));
  } catch (e) {
    notifyError(e);
  }
}

/** Save a chat as a file. */
export function exportAs(card: Card, kind: "md" | "json"): void {
  const link = document.createElement("a");
  link.href = `/console/api/chats/${card.id}/export?as=${kind}`;
  link.download = "";
  link.click();
}
