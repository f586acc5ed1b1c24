// Files for a message: what is taken as text, what as a picture, and when pasted text becomes a file. Knows no element.
import type { AttachedFile } from "../../api/types";
import { notify } from "../../parts/notice";
import { bytes } from "../../parts/numbers";
import { texts } from "../../texts";
import { sees } from "./models";
import { opened } from "./opened";
import { box, other, setFiles } from "./sending";

const LONG_CHARS = 10_000;
const LONG_LINES = 200;
const MOST_BYTES = 8_000_000; // of one file: longer than any context that a machine of ours holds
const PICTURES = /^image\/(png|jpeg|gif|webp)$/;
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
    void attachFiles(files);
  } else if (isLong(text)) {
    e.preventDefault();
    attachText(text);
  }
}

export function takeDrop(e: DragEvent): void {
  if (!e.dataTransfer?.files.length) return;
  e.preventDefault();
  void attachFiles([...e.dataTransfer.files]);
}

/** Take in files from a button, a drop or a paste. */
export async function attachFiles(files: Iterable<File>): Promise<void> {
  for (const file of files) {
    if (file.size > MOST_BYTES) notify({ kind: "error", text: words.tooLarge(file.name, bytes(file.size), bytes(MOST_BYTES)) });
    else if (PICTURES.test(file.type)) await attachPicture(file);
    else {
      const text = await readText(file);
      if (text === null) notify({ kind: "error", text: words.notText(file.name) });
      else attach([{ name: file.name, text }]);
    }
  }
}

async function attachPicture(file: File): Promise<void> {
  const model = other.peek() ?? opened.peek().model.peek();
  if (!sees(model)) return void notify({ kind: "error", text: words.sightless(model) });
  const url = await new Promise<string>((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result as string);
    reader.readAsDataURL(file);
  });
  setFiles({ images: [...box.peek().images, url] });
}

async function readText(file: File): Promise<string | null> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
