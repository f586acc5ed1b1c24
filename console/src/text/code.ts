// A box of code: its language, a button that copies it, its lines. Knows no markdown; colours come later, when idle.
import { texts } from "../texts";
import { copied } from "../parts/clipboard";
import { type Chunk, Chunks } from "./chunks";
import { button, el } from "./dom";
import type { Coloured } from "./highlight";
import { mark, pieces, revealed } from "./invisible";
import { later } from "./later";

const MOST = 60_000; // characters that are coloured; more stay plain
const LONGEST_LINE = 2000; // some grammars take time by the square of a line
const GROWTH = 1.3; // while it grows, code is coloured anew each time it is longer by this
const ALIAS: Record<string, string> = {
  sh: "bash", shell: "bash", zsh: "bash", console: "bash", py: "python", js: "javascript", mjs: "javascript",
  jsx: "javascript", ts: "typescript", tsx: "typescript", "c++": "cpp", cc: "cpp", hpp: "cpp", h: "cpp", "c#": "csharp",
  cs: "csharp", golang: "go", rs: "rust", rb: "ruby", kt: "kotlin", yml: "yaml", toml: "ini", html: "xml", svg: "xml",
  patch: "diff", docker: "dockerfile", jsonc: "json", json5: "json", jsonl: "json",
}; // prettier-ignore
const KNOWN = new Set(
  ("bash c cpp csharp css diff dockerfile go ini java javascript json kotlin php python ruby rust sql typescript xml " +
    "yaml").split(" "),
);

type Colour = (code: string, language: string) => Coloured[] | null;
let colour: Colour | null = null;

/** One box of code. `set` may be called as often as text arrives. */
export class CodeBox {
  readonly box: HTMLElement;
  private readonly lines: Chunks;
  private readonly language: string;
  private coloured = 0; // characters that have their colours
  private waiting = false;

  constructor(label: string, caption = texts.text.code) {
    const name = label.trim().split(/\s+/)[0]!.toLowerCase();
    this.language = ALIAS[name] ?? name;
    const press = button(texts.text.copyCode, "copy", () => void this.copy(press));
    const head = el("div", "head", el("span", "language", ...revealed(label)), press);
    const pre = el("pre");
    const code = el("code");
    pre.append(code);
    pre.tabIndex = 0;
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", label ? `${caption}, ${label.slice(0, 40)}` : caption);
    pre.dir = "ltr";
    this.box = el("div", "codebox", head, pre);
    this.lines = new Chunks(code);
  }

  set(text: string, open: boolean): void {
    this.lines.set(text);
    if (!KNOWN.has(this.language) || text.length > MOST || this.waiting) return;
    if (open && text.length < this.coloured * GROWTH) return;
    if (text.length === this.coloured) return;
    this.waiting = true;
    later(() => this.colour());
  }

  private async colour(): Promise<void> {
    colour ??= (await import("./highlight")).coloured;
    this.waiting = false;
    const text = this.lines.text;
    if (text.length > MOST || hasLongLine(text)) return;
    const found = colour(text, this.language);
    this.coloured = text.length;
    if (found) paint(this.lines.list, found);
  }

  private async copy(pressed: HTMLButtonElement): Promise<void> {
    const done = await copied(this.lines.text);
    pressed.textContent = done ? texts.text.copied : texts.text.notCopied;
    setTimeout(() => (pressed.textContent = texts.text.copyCode), 1500);
  }
}

function hasLongLine(text: string): boolean {
  return text.length > LONGEST_LINE && text.split("\n").some((line) => line.length > LONGEST_LINE);
}

/** Draw coloured pieces into the boxes that hold their text; a box that has these colours already is left alone. */
function paint(chunks: readonly Chunk[], found: readonly Coloured[]): void {
  let at = 0; // where the piece begins
  let n = 0;
  for (const chunk of chunks) {
    const inside: string[] = [];
    const nodes: (() => Node[])[] = [];
    while (n < found.length && at < chunk.to) {
      const [kind, text] = found[n]!;
      const end = at + text.length;
      const part = text.slice(Math.max(0, chunk.from - at), chunk.to - at);
      inside.push(kind, part);
      nodes.push(() => piece(kind, part));
      if (end > chunk.to) break;
      at = end;
      n++;
    }
    if (same(chunk.painted, inside)) continue;
    chunk.box.replaceChildren(...nodes.flatMap((make) => make()));
    chunk.painted = inside;
  }
}

function piece(kind: string, text: string): Node[] {
  const inside = pieces(text).map((part) => (part.hidden ? mark(part.text) : document.createTextNode(part.text)));
  return kind ? [el("span", "hl-" + kind, ...inside)] : inside;
}

function same(before: readonly unknown[] | null, now: readonly unknown[]): boolean {
  return before !== null && before.length === now.length && before.every((part, i) => part === now[i]);
}
