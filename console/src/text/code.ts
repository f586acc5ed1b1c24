// A box of code: its language, a button that copies it, its lines. Knows no markdown; colours come later, when idle.
import { texts } from "../texts";
import { copied } from "../parts/clipboard";
import { type Chunk, Chunks } from "./chunks";
import { button, el } from "./dom";
import type { Coloured } from "./highlight";
import { revealed } from "./invisible";
import { later } from "./later";

const MOST = 200_000; // characters that are coloured; more stay plain
const LONGEST_LINE = 1000; // some grammars take time by the square of a line
const GROWTH = 1.2; // a box that grows is coloured anew when it is longer by this
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
    if (this.waiting || !KNOWN.has(this.language) || text.length > MOST || !this.pale(open)) return;
    this.waiting = true;
    later(() => this.colour(open));
  }

  /** The first box that wants colours: any of a whole text, and one that has grown enough of an open one. */
  private pale(open: boolean): Chunk | undefined {
    const { list } = this.lines;
    return list.find(({ from, to, coloured }, i) => {
      const growing = open && i === list.length - 1;
      return growing ? to - from > coloured * GROWTH : coloured < to - from;
    });
  }

  /** Colour one box a task, each as if its text began there: a box ends where a definition does, so that is rarely seen. */
  private async colour(open: boolean): Promise<void> {
    colour ??= (await import("./highlight")).coloured;
    this.waiting = false;
    const chunk = this.pale(open);
    if (!chunk) return;
    chunk.coloured = chunk.to - chunk.from;
    const text = this.lines.text.slice(chunk.from, chunk.to);
    const found = hasLongLine(text) ? null : colour(text, this.language);
    if (found) chunk.box.replaceChildren(...found.flatMap(([kind, part]) => piece(kind, part)));
    if (!this.pale(open)) return;
    this.waiting = true;
    later(() => this.colour(open));
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

function piece(kind: string, text: string): Node[] {
  return kind ? [el("span", "hl-" + kind, ...revealed(text))] : revealed(text);
}
