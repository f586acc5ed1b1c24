// What this browser keeps: drafts, presets, small choices. Each under the name of the key in use, so that two people at
// one browser do not read each other's. Text lies in localStorage, written at each key; files in IndexedDB.
import { me } from "../../api/me";
import type { AttachedFile } from "../../api/types";
import { type Picture, savedPicture } from "./picture";

const place = (name: string) => `freehold/${me.peek()?.key ?? ""}/${name}`;

export function kept<T>(name: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(place(name));
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise; // no storage in this browser, or a value of an older page
  }
}

export function keep(name: string, value: unknown): void {
  try {
    if (value === null || value === "") localStorage.removeItem(place(name));
    else localStorage.setItem(place(name), JSON.stringify(value));
  } catch {
    // storage is full or forbidden: the page works without it
  }
}

/** Whether a key sends what is written, as Settings says. Not the Enter that ends a word of an input method. */
export function sends(e: KeyboardEvent): boolean {
  if (e.key !== "Enter" || e.isComposing || e.keyCode === 229) return false;
  return kept("enter-sends", true) ? !e.shiftKey && !e.altKey : e.ctrlKey || e.metaKey;
}

let database: Promise<IDBDatabase> | null = null;

function opened(): Promise<IDBDatabase> {
  database ??= new Promise((done, failed) => {
    const asked = indexedDB.open("freehold", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("files");
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error);
  });
  return database;
}

async function files(mode: IDBTransactionMode): Promise<IDBObjectStore> {
  return (await opened()).transaction("files", mode).objectStore("files");
}

/** Attachments of a draft. */
export interface Attached {
  files: AttachedFile[];
  images: Picture[];
}

export async function keepFiles(name: string, value: Attached): Promise<void> {
  try {
    const store = await files("readwrite");
    if (value.files.length + value.images.length) store.put(value, place(name));
    else store.delete(place(name));
  } catch {
    // as above
  }
}

/** What an older page kept had data: URLs. */
function current({ files, images }: { files: AttachedFile[]; images: (Picture | string)[] }): Attached {
  return { files, images: images.map((each) => (typeof each === "string" ? savedPicture(each) : each)) };
}

export async function keptFiles(name: string): Promise<Attached> {
  const none = { files: [], images: [] };
  try {
    const asked = (await files("readonly")).get(place(name));
    return await new Promise((done) => {
      asked.onsuccess = () => done(asked.result ? current(asked.result as Attached) : none);
      asked.onerror = () => done(none);
    });
  } catch {
    return none;
  }
}
