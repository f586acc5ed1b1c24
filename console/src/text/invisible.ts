// Finds characters that show nothing or turn the order of others, and shows them. Knows Unicode, and no markdown.
import { el } from "./dom";

// Bidi controls (061C, 200E/F, 202A-E, 2066-9), zero width and filling characters, invisible operators, controls but for
// tab and newline, tag characters and variation selectors (which can carry a hidden message), and what Unicode asks to
// draw as nothing besides. Those that make an emoji (a selector behind a picture or below a keycap, a joiner between two
// pictures) are seen already.
const HIDDEN =
  /(?:[\0-\x08\x0B-\x1F\x7F-\x9F\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B\u200C\u200E\u200F\u2028-\u202E\u2060-\u206F\u3164\uFE00-\uFE0D\uFEFF\uFFA0\uFFF0-\uFFFB\u{13430}-\u{1343F}\u{1BCA0}-\u{1BCA3}\u{1D173}-\u{1D17A}\u{E0000}-\u{E0FFF}]|(?<!\p{Extended_Pictographic})[\uFE0E\uFE0F](?!\u20E3)|(?<![\p{Extended_Pictographic}\uFE0F\u{1F3FB}-\u{1F3FF}])\u200D|\u200D(?!\p{Extended_Pictographic}))+/gu;
// In prose, joiners and marks of direction belong to Persian, Hindi and Hebrew; what overrides or smuggles does not.
const IN_PROSE = /[\0-\x08\x0B-\x1F\x7F-\x9F\u202A-\u202E\u2060-\u206F\uFFF0-\uFFFB\u{E0000}-\u{E0FFF}]+/gu;
const MARKS = 50; // elements for one text; a flood of marks is spelt inside the text instead

const NAMES: Record<number, string> = {
  0x00: "null",
  0x1b: "escape",
  0xad: "soft hyphen",
  0x61c: "Arabic letter mark",
  0x200b: "zero width space",
  0x200c: "zero width non-joiner",
  0x200d: "zero width joiner",
  0x200e: "left-to-right mark",
  0x200f: "right-to-left mark",
  0x202a: "left-to-right embedding",
  0x202b: "right-to-left embedding",
  0x202c: "pop directional formatting",
  0x202d: "left-to-right override",
  0x202e: "right-to-left override",
  0x2060: "word joiner",
  0x2066: "left-to-right isolate",
  0x2067: "right-to-left isolate",
  0x2068: "first strong isolate",
  0x2069: "pop directional isolate",
  0xfeff: "zero width no-break space",
};

/** One piece of a text: as it is, or `hidden` characters that want a mark. */
export interface Piece {
  text: string;
  hidden: boolean;
}

/** Cut a text at its hidden characters. `prose`: leave those that scripts of the world need. */
export function pieces(text: string, prose = false): Piece[] {
  const found = prose ? IN_PROSE : HIDDEN;
  found.lastIndex = 0;
  const out: Piece[] = [];
  let at = 0;
  for (let n = 0, hit = found.exec(text); hit; hit = found.exec(text), n++) {
    if (n === MARKS) {
      out.push({ text: allSpelt(text.slice(at), found), hidden: false });
      return out;
    }
    if (hit.index > at) out.push({ text: text.slice(at, hit.index), hidden: false });
    out.push({ text: hit[0], hidden: true });
    at = hit.index + hit[0].length;
  }
  if (at < text.length || out.length === 0) out.push({ text: text.slice(at), hidden: false });
  return out;
}

/** Spell every run of a flood inside the text; each kind of run once, since there may be 300,000. */
function allSpelt(text: string, found: RegExp): string {
  const known = new Map<string, string>();
  return text.replace(found, (run) => {
    let said = known.get(run);
    if (said === undefined) known.set(run, (said = `[${spelt(run)}]`));
    return said;
  });
}

/** The text as nodes, each run of hidden characters inside a mark that says which they are. */
export function revealed(text: string, prose = false): Node[] {
  return pieces(text, prose).map((piece) => (piece.hidden ? mark(piece.text) : document.createTextNode(piece.text)));
}

/** A small mark for a run of hidden characters. They stay inside it, isolated, so that copied text is the same text. */
export function mark(run: string): HTMLElement {
  const made = el("span", "revealed", run);
  made.dataset.code = spelt(run);
  made.title = [...run].slice(0, 8).map(named).join(", ");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", made.title);
  return made;
}

function code(char: string): string {
  return "U+" + char.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0");
}

function named(char: string): string {
  const name = NAMES[char.codePointAt(0)!];
  return name ? `${code(char)} ${name}` : code(char);
}

/** `U+202E`, `U+200B ×40`, `U+200B U+202E …`. */
function spelt(run: string): string {
  const chars = [...run.slice(0, 64)];
  if (run.length === 1 || chars.every((char) => char === chars[0])) {
    const count = run.length / chars[0]!.length;
    return code(chars[0]!) + (count > 1 ? ` ×${count}` : "");
  }
  return chars.slice(0, 3).map(code).join(" ") + (chars.length > 3 ? " …" : "");
}
