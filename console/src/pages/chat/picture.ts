// Pictures for a message: taken in without what a camera wrote beside them, upright, and within the server's limits. A file
// whose pixels need no change is sent as it is. Knows files and a canvas; knows no chat and no model.
import type { PictureLimits } from "../../api/types";
import { bytes, whole } from "../../parts/numbers";
import { texts } from "../../texts";
import { look } from "./metadata";

const words = texts.chat.pictures;

/** A picture of a draft. */
export interface Picture {
  name: string;
  blob: Blob | null; // null: a message of the chat has it
  saved: string; // as that message has it
  width: number; // in pixels; 0: not known yet
  height: number;
  note: string; // what was changed of it
}

/** What a file could not be taken in for, in words for the user. */
export class Unreadable extends Error {}

const QUALITY = 0.92; // of a JPEG that is made here
const LOSSLESS = /^image\/(png|gif|bmp|x-ms-bmp|x-icon|vnd\.microsoft\.icon|tiff)$/;
const TRIES = 8; // each smaller than the one before, until its bytes are within the limit
const DRAWING = "image/svg+xml"; // is a text, and is attached as one

/** Whether a file is taken in as a picture, if this browser can open it. */
export const isPicture = (file: Blob) => file.type.startsWith("image/") && file.type !== DRAWING;

/** A picture that a message has, for another version of that message. */
export const savedPicture = (saved: string): Picture => ({ name: "", blob: null, saved, width: 0, height: 0, note: "" });

/** Take a file in. Throws Unreadable. */
export async function takePicture(file: File, limits: PictureLimits): Promise<Picture> {
  const { type, orientation, bytes: kept } = look(new Uint8Array(await file.arrayBuffer()));
  const clean = new Blob([kept], { type: type || file.type });
  const bitmap = await decoded(clean, file.name);
  const [width, height] = orientation > 4 ? [bitmap.height, bitmap.width] : [bitmap.width, bitmap.height];
  const notes: string[] = kept.length < file.size ? [words.cleaned] : [];
  const scale = within(width, height, limits);
  if (type && orientation === 1 && scale === 1 && clean.size <= limits.bytes) {
    bitmap.close();
    return { name: file.name, blob: clean, saved: "", width, height, note: notes.join(" ") };
  }
  const made = await drawnWithin(bitmap, orientation, scale, file, limits);
  bitmap.close();
  if (made.width !== width)
    notes.push(words.smaller(sizeOf(width, height), bytes(file.size), sizeOf(made.width, made.height), bytes(made.blob.size)));
  else if (made.blob.type !== clean.type) notes.push(words.converted(made.blob.type === "image/png" ? "PNG" : "JPEG"));
  return { ...made, name: file.name, saved: "", note: notes.join(" ") };
}

export const sizeOf = (width: number, height: number) => `${whole(width)}\u202f×\u202f${whole(height)}`;

/** By how much a picture's sides must shrink, at most 1. */
function within(width: number, height: number, { pixels, side }: PictureLimits): number {
  return Math.min(1, side / Math.max(width, height), Math.sqrt(pixels / (width * height)));
}

async function decoded(blob: Blob, name: string): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Unreadable(words.unreadable(name));
  }
}

interface Drawn {
  blob: Blob;
  width: number;
  height: number;
}

/** Draw a picture upright, and smaller until its file is within the limits; what was lossless stays so. */
async function drawnWithin(bitmap: ImageBitmap, orientation: number, scale: number, file: File, limits: PictureLimits): Promise<Drawn> {
  const type = LOSSLESS.test(file.type) ? "image/png" : "image/jpeg";
  for (let n = 0; n < TRIES; n++) {
    const made = await drawn(bitmap, orientation, scale, type);
    if (!made) break;
    if (made.blob.size <= limits.bytes) return made;
    scale *= Math.min(0.9, Math.sqrt(limits.bytes / made.blob.size));
  }
  throw new Unreadable(words.tooLarge(file.name, bytes(file.size), bytes(limits.bytes)));
}

/** The eight ways up that EXIF knows, as the rows of a matrix: where x and y of the file go, from the middle. */
const TURNS: Record<number, [number, number, number, number]> = {
  1: [1, 0, 0, 1],
  2: [-1, 0, 0, 1],
  3: [-1, 0, 0, -1],
  4: [1, 0, 0, -1],
  5: [0, 1, 1, 0],
  6: [0, 1, -1, 0],
  7: [0, -1, -1, 0],
  8: [0, -1, 1, 0],
};

async function drawn(bitmap: ImageBitmap, orientation: number, scale: number, type: string): Promise<Drawn | null> {
  const [across, down] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale))) as [number, number];
  const [width, height] = orientation > 4 ? [down, across] : [across, down];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  if (!pen) return null; // larger than a canvas of this browser
  if (type === "image/jpeg") {
    pen.fillStyle = "#fff"; // which the server puts below what is transparent
    pen.fillRect(0, 0, width, height);
  }
  pen.imageSmoothingQuality = "high";
  pen.setTransform(...TURNS[orientation]!, width / 2, height / 2);
  pen.drawImage(bitmap, -across / 2, -down / 2, across, down);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, type, QUALITY));
  return blob && { blob, width, height };
}

/** A picture's bytes as a data: URL. */
export function asUrl(blob: Blob): Promise<string> {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result as string);
    reader.onerror = () => failed(reader.error ?? new Error("unreadable"));
    reader.readAsDataURL(blob);
  });
}

const DIGEST = /^sha256:([0-9a-f]{64})$/;

const DATA = /^data:image\/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/;

/** Where a message's picture is loaded from; "" for what is none, such as an address in a chat that was imported. */
export function addressOf(chat: string | null, saved: string): string {
  const digest = DIGEST.exec(saved)?.[1];
  if (digest && chat !== null) return `/console/api/chats/${chat}/pictures/${digest}`;
  return DATA.test(saved) ? saved : "";
}
