// Long text without markup: boxes of some lines each, so that text which grows costs its last box, and a megabyte is laid
// out piece by piece. Knows no markdown and no colours.
import { el } from "./dom";
import { revealed } from "./invisible";

const LINES = 120;
const CHARS = 8000;
const PIECE = 2000; // of a line longer than a box: a word is broken anew at each of its characters, which takes a square of time
const LEAST = 2000; // a box ends at a blank line before text at the margin, if one comes after so many characters
const MANY = 8; // boxes from which those out of sight are not laid out

export interface Chunk {
  from: number;
  to: number;
  box: HTMLElement;
  coloured: number; // characters that have colours, kept by what colours them
}

/** Text that is appended to, shown inside `host`. */
export class Chunks {
  text = "";
  readonly list: Chunk[] = [];

  constructor(
    readonly host: HTMLElement,
    readonly prose = false,
  ) {}

  /** Show `text`. When it begins with what is shown already, only the rest is drawn. */
  set(text: string): void {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) {
      this.host.replaceChildren();
      this.list.length = 0;
    }
    this.text = text;
    for (;;) {
      const last = this.list[this.list.length - 1];
      const from = last ? last.from : 0;
      const to = cut(text, from);
      if (!last || last.to !== to) this.draw(last, from, to);
      if (to === text.length) break;
      this.list.push({ from: to, to, box: this.box(), coloured: 0 });
    }
  }

  private draw(last: Chunk | undefined, from: number, to: number): void {
    const chunk = last ?? { from, to, box: this.box(), coloured: 0 };
    if (!last) this.list.push(chunk);
    const grown = this.text.slice(chunk.to, to);
    const tail = chunk.box.lastChild;
    if (last && to > chunk.to && tail?.nodeType === Node.TEXT_NODE && !odd(grown)) (tail as Text).appendData(grown);
    else chunk.box.replaceChildren(...revealed(this.text.slice(from, to), this.prose));
    chunk.to = to;
    chunk.coloured = 0;
  }

  private box(): HTMLElement {
    const made = el("span", this.list.length >= MANY ? "chunk far" : "chunk");
    this.host.append(made);
    return made;
  }
}

function odd(text: string): boolean {
  return /[^\t\n\x20-\x7e]/.test(text);
}

/** The end of a box that begins at `from`. Text that is longer than a box ends it at a place that more text can not move. */
function cut(text: string, from: number): number {
  let end = from;
  for (let n = 0; n < LINES && end - from <= CHARS; n++) {
    const next = text.indexOf("\n", end);
    if (next < 0) {
      end = text.length;
      break;
    }
    end = next + 1;
  }
  if (end === text.length && end - from <= CHARS) return end;
  const seams = [...text.slice(from + LEAST, Math.min(end, from + CHARS)).matchAll(/\n[ \t]*\n(?=[^\s)}\]])/g)];
  const seam = seams[seams.length - 1];
  if (seam) return from + LEAST + seam.index + seam[0].length;
  if (end - from <= CHARS) return end;
  const line = text.slice(from, from + CHARS).lastIndexOf("\n") + 1;
  if (line > 0) return from + line;
  const space = text.slice(from, from + PIECE).lastIndexOf(" ") + 1; // one line is longer than a box
  const half = (text.charCodeAt(from + PIECE - 1) & 0xfc00) === 0xd800;
  return from + (space || PIECE - (half ? 1 : 0));
}
