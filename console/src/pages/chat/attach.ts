// Files for a message: what is taken as text, as a picture or as a recording, and when pasted text becomes a file. Knows no element.
import { signal } from "@preact/signals";
import { me } from "../../api/me";
import type { AttachedFile } from "../../api/types";
import { notify, notifyError } from "../../parts/notice";
import { bytes } from "../../parts/numbers";
import { texts } from "../../texts";
import { hear, isRecording } from "./ears/hearing";
import { spoken } from "./lives";
import { opened } from "./opened";
import { isPicture, sizeOf, takePicture } from "./picture";
import { box, setFiles } from "./sending";

const LONG_CHARS = 10_000;
const LONG_LINES = 200;
const MOST_BYTES = 8_000_000; // of one file: longer than any context that a machine of ours holds
const words = texts.chat;

/** Whether pasted text is too long for the box. Counts lines only until there are enough. */
function isLong(text: string): boolean {
  if (text.length > LONG_CHARS) return true;
  let lines = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) if (++lines >= LONG_LINES) return true;
  return false;
}

function attachText(text: string): void {
  const names = new Set(box.peek().files.map((file) => file.name));
  let n = 1;
  while (names.has(words.pasted(n))) n++;
  attach([{ name: words.pasted(n), text }]);
}

function attach(files: AttachedFile[]): void {
  setFiles({ files: [...box.peek().files, ...files] });
}

/** Take files of the clipboard, and text that is too long for the box. */
export function takePaste(e: ClipboardEvent): void {
  const files = [...(e.clipboardData?.files ?? [])];
  const text = e.clipboardData?.getData("text/plain") ?? "";
  if (files.length && !text) {
    e.preventDefault();
    attachFiles(files);
  } else if (isLong(text)) {
    e.preventDefault();
    attachText(text);
  }
}

/** Whether files are being dragged over the conversation. */
export const dropping = signal(false);

export function dragOver(e: DragEvent): void {
  if (!e.dataTransfer?.types.includes("Files")) return;
  e.preventDefault();
  dropping.value = true;
}

export function dragLeave(e: DragEvent): void {
  if (!(e.currentTarget as Element).contains(e.relatedTarget as Node | null)) dropping.value = false;
}

export function takeDrop(e: DragEvent): void {
  dropping.value = false;
  if (!e.dataTransfer?.files.length) return;
  e.preventDefault();
  attachFiles([...e.dataTransfer.files]);
}

let taking = Promise.resolve();

/** Take in files from a button, a drop or a paste, after those that came before: a large picture takes a while. */
export function attachFiles(files: Iterable<File>): void {
  taking = taking.then(() => takeFiles(files)).catch(notifyError);
}

async function takeFiles(files: Iterable<File>): Promise<void> {
  for (const file of files) {
    if (isPicture(file)) await attachPicture(file);
    else if (isRecording(file)) hear(file);
    else if (file.size > MOST_BYTES) notify({ kind: "error", text: words.tooLarge(file.name, bytes(file.size), bytes(MOST_BYTES)) });
    else {
      const text = await readText(file);
      if (text === null) notify({ kind: "error", text: words.notText(file.name) });
      else attach([{ name: file.name, text }]);
    }
  }
}

async function attachPicture(file: File): Promise<void> {
  const chat = opened.peek();
  const limits = me.peek()!.pictures;
  try {
    if (box.peek().images.length >= limits.most) throw new Error(words.pictures.tooMany(limits.most));
    const picture = await takePicture(file, limits);
    if (opened.peek() !== chat) return; // another chat was opened meanwhile
    const images = [...box.peek().images, picture];
    const together = images.reduce((sum, each) => sum + (each.blob?.size ?? 0), 0);
    if (together > limits.together) throw new Error(words.pictures.tooMuch(bytes(limits.together)));
    setFiles({ images });
    spoken.value = words.pictures.added(images.length, sizeOf(picture.width, picture.height));
  } catch (e) {
    notifyError(e);
  }
}

async function readText(file: File): Promise<string | null> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
