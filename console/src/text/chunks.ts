// Long text without markup: boxes of some lines each, so that text which grows costs its last box, and a megabyte is laid
// out piece by piece. Knows no markdown and no colours.
import { el } from "./dom";
import { revealed } from "./invisible";

const LINES = 64;
const CHARS = 6000;
const MANY = 8; // boxes from which those out of sight are not laid out

export interface Chunk {
  from: number;
  to: number;
  box: HTMLElement;
  painted: readonly unknown[] | null; // what colours drew, kept by whoever paints
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
      this.list.push({ from: to, to, box: this.box(), painted: null });
    }
  }

  private draw(last: Chunk | undefined, from: number, to: number): void {
    const chunk = last ?? { from, to, box: this.box(), painted: null };
    if (!last) this.list.push(chunk);
    const grown = this.text.slice(chunk.to, to);
    const tail = chunk.box.lastChild;
    if (last && tail?.nodeType === Node.TEXT_NODE && !odd(grown)) (tail as Text).appendData(grown);
    else chunk.box.replaceChildren(...revealed(this.text.slice(from, to), this.prose));
    chunk.to = to;
    chunk.painted = null;
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

/** The end of a box that begins at `from`: after LINES lines or CHARS characters, and never inside a character. */
function cut(text: string, from: number): number {
  let end = from;
  for (let n = 0; n < LINES; n++) {
    const next = text.indexOf("\n", end);
    if (next < 0) return limited(text, from, text.length);
    if (next + 1 - from > CHARS) return n > 0 ? end : limited(text, from, next + 1);
    end = next + 1;
  }
  return end;
}

function limited(text: string, from: number, end: number): number {
  if (end - from <= CHARS) return end;
  const at = from + CHARS;
  const half = text.charCodeAt(at - 1) >= 0xd800 && text.charCodeAt(at - 1) < 0xdc00;
  return half ? at - 1 : at;
}
