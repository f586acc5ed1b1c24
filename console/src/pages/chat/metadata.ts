// What a picture's file holds beside its pixels: when, where and by what it was taken. Found and left out, byte for byte,
// so that no pixel is made anew. Knows bytes; knows no element and no picture.

/** A picture's file. */
export interface Looked {
  type: string; // by its first bytes; "" for another than these four, and for one that cannot be followed to its end
  orientation: number; // 1 to 8, as EXIF counts: 1 is upright
  bytes: Uint8Array<ArrayBuffer>; // without metadata; the same array where there was none
}

type Bytes = Uint8Array<ArrayBuffer>;
interface Kept {
  orientation: number;
  parts: Bytes[];
}

/** Find out what a file is, and leave its metadata out. */
export function look(bytes: Bytes): Looked {
  const type = typeOf(bytes);
  const reader = READERS[type];
  if (!reader) return { type, orientation: 1, bytes };
  const read = reader(bytes);
  if (!read) return { type: "", orientation: 1, bytes };
  const size = read.parts.reduce((sum, part) => sum + part.length, 0);
  if (size === bytes.length) return { type, orientation: 1, bytes };
  const kept = new Uint8Array(size);
  let at = 0;
  for (const part of read.parts) {
    kept.set(part, at);
    at += part.length;
  }
  if (type === "image/webp") new DataView(kept.buffer).setUint32(4, size - 8, true);
  return { type, orientation: read.orientation, bytes: kept };
}

const BEGINS: [string, string, number][] = [
  ["\x89PNG\r\n\x1a\n", "image/png", 0],
  ["\xff\xd8\xff", "image/jpeg", 0],
  ["GIF8", "image/gif", 0],
  ["WEBP", "image/webp", 8],
];

function typeOf(bytes: Bytes): string {
  return BEGINS.find(([begin, , at]) => text(bytes, at, begin.length) === begin)?.[1] ?? "";
}

// GIF has no EXIF. Each of the others returns null for a file that it cannot follow to its end.
const READERS: Record<string, (bytes: Bytes) => Kept | null> = {
  "image/jpeg": jpeg,
  "image/png": png,
  "image/webp": webp,
};

const text = (bytes: Bytes, at: number, length: number) => String.fromCharCode(...bytes.subarray(at, at + length));
const view = (bytes: Bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/**
 * Segments up to the end of the picture: what phones put behind it is left out too (a film, further pictures). Of the
 * application's own segments those stay that change how pixels look: JFIF, an ICC profile, Adobe's.
 */
function jpeg(bytes: Bytes): Kept | null {
  const data = view(bytes);
  const parts = [bytes.subarray(0, 2)];
  let orientation = 1;
  let at = 2;
  while (at + 4 <= bytes.length) {
    if (bytes[at] !== 0xff) return null;
    const marker = bytes[at + 1]!;
    if (marker === 0xff) {
      at++; // a byte that fills up
      continue;
    }
    if (marker === 0xd9) break;
    const end = at + 2 + data.getUint16(at + 2);
    if (end > bytes.length) return null;
    if (marker === 0xe1 && text(bytes, at + 4, 4) === "Exif") orientation = turned(bytes.subarray(at + 10, end));
    const own = (marker >= 0xe0 && marker <= 0xef) || marker === 0xfe;
    const colour = marker === 0xe0 || marker === 0xee || (marker === 0xe2 && text(bytes, at + 4, 11) === "ICC_PROFILE");
    const next = marker === 0xda ? afterScan(bytes, end) : end;
    if (!own || colour) parts.push(bytes.subarray(at, next));
    at = next;
  }
  if (bytes[at] !== 0xff || bytes[at + 1] !== 0xd9) return null;
  parts.push(bytes.subarray(at, at + 2));
  return { orientation, parts };
}

/** Where the next marker begins after a scan's compressed pixels, in which 0xff is followed by 0 or by a restart's number. */
function afterScan(bytes: Bytes, from: number): number {
  let at = bytes.indexOf(0xff, from);
  while (at >= 0 && at + 1 < bytes.length) {
    const next = bytes[at + 1]!;
    if (next !== 0 && next !== 0xff && (next < 0xd0 || next > 0xd7)) return at;
    at = bytes.indexOf(0xff, at + 1);
  }
  return bytes.length;
}

const SAYING = ["tEXt", "zTXt", "iTXt", "tIME", "eXIf"]; // of a PNG: words, times, EXIF

function png(bytes: Bytes): Kept | null {
  const data = view(bytes);
  const parts = [bytes.subarray(0, 8)];
  let orientation = 1;
  for (let at = 8; at + 12 <= bytes.length; ) {
    const name = text(bytes, at + 4, 4);
    const end = at + 12 + data.getUint32(at);
    if (end > bytes.length) return null;
    if (name === "eXIf") orientation = turned(bytes.subarray(at + 8, end - 4));
    if (!SAYING.includes(name)) parts.push(bytes.subarray(at, end));
    if (name === "IEND") return { orientation, parts };
    at = end;
  }
  return null;
}

const HAS_EXIF = 0x08;
const HAS_XMP = 0x04;

function webp(bytes: Bytes): Kept | null {
  const data = view(bytes);
  const parts = [bytes.subarray(0, 12)];
  const whole = Math.min(bytes.length, 8 + data.getUint32(4, true));
  let orientation = 1;
  let at = 12;
  while (at + 8 <= whole) {
    const name = text(bytes, at, 4);
    const size = data.getUint32(at + 4, true);
    const end = at + 8 + size + (size % 2);
    if (end > bytes.length) return null;
    if (name === "EXIF") {
      const head = text(bytes, at + 8, 4) === "Exif" ? 14 : 8; // some writers put JPEG's name before it
      orientation = turned(bytes.subarray(at + head, end));
    } else if (name === "VP8X") {
      const flags = bytes.slice(at, end);
      flags[8]! &= ~(HAS_EXIF | HAS_XMP);
      parts.push(flags);
    } else if (name !== "XMP ") parts.push(bytes.subarray(at, end));
    at = end;
  }
  return { orientation, parts };
}

const ORIENTATION = 0x0112;

/** Which way up EXIF says that a picture is; 1 where it does not say. */
function turned(exif: Bytes): number {
  if (exif.length < 14) return 1;
  const data = view(exif);
  const little = text(exif, 0, 2) === "II";
  const first = data.getUint32(4, little);
  if (first + 2 > exif.length) return 1;
  const count = data.getUint16(first, little);
  for (let at = first + 2; at + 12 <= Math.min(exif.length, first + 2 + 12 * count); at += 12) {
    if (data.getUint16(at, little) !== ORIENTATION) continue;
    const value = data.getUint16(at + 8, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}
