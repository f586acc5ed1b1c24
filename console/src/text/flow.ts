// Markdown that grows, drawn as it grows: blocks that are whole are never lexed again, and no task takes long.
// Knows offsets into the text and drawn views; which block is what, lexing.ts and views.ts know.
import { type AnyToken, Blocks, LINE } from "./lexing";
import { el } from "./dom";
import { breath, hurry } from "./later";
import { finished } from "./unfinished";
import { blockViews, codeView, type Part, plainView, type View } from "./views";

const WINDOW = 8000; // characters lexed at once
const MOST = 32_000; // a block longer than this is cut
const LINE_LEAST = 40; // characters that a line counts for at least: a line is an element or more
const LONG = 8000; // text from which blocks out of sight are left out of layout while more arrives
const PART = 24; // blocks that are laid out, or left out, together
const FEW = 24; // parts that are laid out in one frame once all text is there; each frame has a cost of its own
const SLICE_MS = 10;
// While text arrives, drawing takes a part of the time in 1 + SHARE at most, and happens 30 times a second at most. Text
// that comes faster than anyone reads is drawn less often the faster it comes, since a frame costs more than what is new
// in it: 100 tokens a second wait 40 ms, 2,000 wait 800.
const SHARE = 12;
const LEAST_MS = 33;
const MOST_MS = 500;
const PER_RATE = 100; // ms for a character a millisecond
const FASTEST_MS = 800;
const GROWTH = 3; // one quick burst does not make a stream

interface Shown {
  view: View;
  part: Part;
  kids: Shown[];
}

/** A fence or a line that is too long for markdown: text is appended until it ends, and nothing is lexed. */
interface Raw {
  from: number; // where its text begins
  scanned: number; // lines before this one do not end it
  lang: string | null; // null: a long line
  end: RegExp;
  indent: RegExp | null;
}

export class Flow {
  private given = ""; // the newest text; what of it is taken in, `text` is
  private text = "";
  private open = false;
  private at = 0; // text before it is drawn for good
  private tail: Shown[] = []; // what is drawn after that
  private raw: Raw | null = null;
  private drawn = ""; // the tail's text and state, as drawn
  private busy = false;
  private ended = false;
  private next = 0; // when it may be drawn again while it is open
  private last: [number, number] | null = null; // characters and time of the last drawing
  private timer = 0;

  private part = el("div", "part"); // the newest blocks

  constructor(private readonly root: HTMLElement) {
    root.append(this.part);
  }

  /** Show `text`; `open`: more may come. What fits a slice is drawn now, the rest in later tasks. */
  set(text: string, open: boolean): void {
    this.given = text;
    this.open = open;
    const wait = open ? this.next - performance.now() : 0;
    if (this.busy || (this.timer && wait > 0)) return;
    clearTimeout(this.timer);
    this.timer = wait > 0 ? setTimeout(() => this.run(), wait) : 0;
    if (wait <= 0) void this.run();
  }

  /** Draw nothing more. */
  stop(): void {
    this.ended = true;
    clearTimeout(this.timer);
  }

  /** Take the newest text in, once a drawing: a long text is compared with what it was. */
  private take(): void {
    const now = this.given.includes("\r") ? this.given.replace(/\r\n?/g, "\n") : this.given;
    if (!now.startsWith(this.text)) this.clear();
    this.text = now;
  }

  private clear(): void {
    this.root.replaceChildren((this.part = el("div", "part")));
    this.at = 0;
    this.tail = [];
    this.raw = null;
    this.drawn = "";
  }

  private async run(): Promise<void> {
    this.busy = true;
    this.timer = 0;
    let since = performance.now();
    this.take();
    while (!this.ended && this.step()) {
      if (performance.now() < since + SLICE_MS) continue;
      await breath();
      since = performance.now();
      this.take();
    }
    hurry(since + 2 * SLICE_MS);
    if (this.open && this.at > LONG) this.root.classList.add("growing");
    else if (!this.open) this.settle();
    this.next = since + this.pause(since);
    this.busy = false;
  }

  /** Lay out what was left out of layout while text came, a few parts a frame: all at once is one long task. */
  private settle(): void {
    if (this.ended || this.open || !this.root.classList.contains("growing")) return;
    const left = [...this.root.querySelectorAll(":scope > .part:not(.laid)")];
    for (const part of left.slice(-FEW)) part.classList.add("laid");
    if (left.length > FEW) requestAnimationFrame(() => this.settle());
    else this.root.classList.remove("growing");
  }

  /** How long to wait before the next drawing, by the time that this one took and by how fast text comes. */
  private pause(since: number): number {
    const [length, when] = this.last ?? [this.text.length, 0]; // what was there at first did not come fast
    this.last = [this.text.length, since];
    const passed = Math.max(1, since - when);
    const rate = (this.text.length - length) / passed;
    const spent = Math.min(MOST_MS, SHARE * (performance.now() - since));
    return Math.max(LEAST_MS, spent, Math.min(FASTEST_MS, PER_RATE * rate, GROWTH * passed));
  }

  /** Draw the next piece; false when everything is drawn. */
  private step(): boolean {
    if (this.raw) return this.grow(this.raw);
    const state = `${this.at} ${this.text.length} ${this.open}`;
    if (this.at >= this.text.length && this.tail.length === 0) return false;
    if (state === this.drawn) return false;
    for (let size = WINDOW; ; size *= 2) {
      const end = this.windowEnd(size);
      if (end === this.at) return this.enter({ from: this.at, scanned: this.at, lang: null, end: /\n/g, indent: null });
      const whole = end === this.text.length;
      if (this.lex(end, whole, size >= MOST || this.windowEnd(size * 2) === end)) {
        if (!whole || this.raw) return true;
        this.drawn = `${this.at} ${this.text.length} ${this.open}`;
        return false;
      }
    }
  }

  /** Where a window of some size ends: at a line's end, and before a line that is too long. */
  private windowEnd(size: number): number {
    const { text, at } = this;
    let end = at;
    for (let left = size; left > 0 && end < text.length; ) {
      const next = text.indexOf("\n", end);
      const stop = next < 0 ? text.length : next + 1;
      if (stop - end > LINE) return end;
      left -= Math.max(LINE_LEAST, stop - end);
      end = stop;
    }
    return end;
  }

  /** Lex and draw up to `end`; false when the window holds one block only and may be larger. */
  private lex(end: number, whole: boolean, largest: boolean, cut = false): boolean {
    const growing = this.open && whole;
    const source = this.text.slice(this.at, end);
    const lexer = new Blocks();
    const tokens = lexer.blocks(growing ? finished(source) : source, growing);
    const closed = growing || !whole ? wholeBlocks(tokens, source) : { count: tokens.length, length: source.length };
    if (!whole && closed.count === 0) {
      if (!largest) return false;
      const margin = cut ? source.length : lastMargin(source); // longer than MOST: cut where a line begins at the margin
      if (margin < source.length) return this.lex(this.at + margin, false, true, true);
      closed.count = tokens.length;
      closed.length = source.length;
    }
    const rest = source.slice(closed.length);
    const fence = whole && !growing ? null : openFence(tokens[closed.count], rest);
    const done = blockViews(lexer, tokens.slice(0, closed.count), false);
    const after = fence
      ? [codeView({ text: rest.slice(fence.from).replace(/\n$/, ""), lang: fence.lang ?? "" }, true)]
      : whole
        ? blockViews(lexer, tokens.slice(closed.count), growing)
        : [];
    this.tail = patch(this.part, this.tail, [...done, ...after]).slice(done.length);
    this.at += closed.length;
    this.turn();
    if (fence) this.enter({ ...fence, from: this.at + fence.from, scanned: this.at + fence.from });
    return true;
  }

  /** Begin a new part when this one is full; the blocks that may change go with it. */
  private turn(): void {
    if (this.tail.length === 0 || this.part.childElementCount - this.tail.length < PART) return;
    const next = el("div", "part", ...this.tail.map(({ part }) => part.node));
    this.root.append(next);
    this.part = next;
  }

  private enter(raw: Raw): boolean {
    this.raw = raw;
    return true;
  }

  /** Append to a fence or a long line until it ends. */
  private grow(raw: Raw): boolean {
    const { text } = this;
    raw.end.lastIndex = raw.scanned;
    const ended = raw.end.exec(text);
    const done = ended !== null || !this.open;
    const last = ended ? ended.index : done ? text.length : raw.lang === null ? text.length : text.lastIndexOf("\n") + 1;
    const inside = text.slice(raw.from, Math.max(raw.from, maybeEnd(text, last, raw)));
    const shown = (raw.indent ? inside.replace(raw.indent, "") : inside).replace(/\n$/, ""); // its last line's end is the fence's
    const view = raw.lang === null ? plainView(shown) : codeView({ text: shown, lang: raw.lang }, !done);
    this.tail = patch(this.part, this.tail, [view]);
    raw.scanned = Math.max(raw.from, text.lastIndexOf("\n") + 1);
    if (!done) return false;
    this.at = ended ? ended.index + ended[0].length : text.length;
    this.tail = [];
    this.raw = null;
    return this.at < text.length;
  }
}

/** Where the last line begins that is not indented, if that is in the second half. */
function lastMargin(source: string): number {
  const line = /\n(?=\S)(?![\s\S]*\n\S)/.exec(source);
  return line && line.index > source.length / 2 ? line.index + 1 : source.length;
}

/** The end of what a fence surely holds: its last line may be the beginning of its end. */
function maybeEnd(text: string, last: number, raw: Raw): number {
  if (raw.lang === null || last === text.length) return last;
  const line = text.slice(last, last + 200);
  return line.includes("\n") || /^ {0,3}[`~]/.test(line) || line === "" ? last : text.length;
}

/** How many blocks no later text can change: all before the last one that begins on a whole line. */
function wholeBlocks(tokens: readonly AnyToken[], source: string): { count: number; length: number } {
  let at = 0;
  let closed = { count: 0, length: 0 };
  for (let i = 0; i < tokens.length; i++) {
    const { type, raw } = tokens[i]!;
    if (type !== "space" && source.indexOf("\n", at) >= 0) closed = { count: i, length: at };
    if (!source.startsWith(raw, at)) return closed; // text that `finished` completed
    at += raw.length;
  }
  return closed;
}

/** The fence that a text ends inside of. */
function openFence(token: AnyToken | undefined, rest: string): Raw | null {
  if (token?.type !== "code") return null;
  const opening = /^( {0,3})(`{3,}|~{3,})([^\n]*)\n/.exec(rest);
  if (!opening) return null;
  const [all, space, fence, info] = opening as unknown as [string, string, string, string];
  const end = new RegExp(`^ {0,3}${fence[0] === "`" ? "`" : "~"}{${fence.length},}[ \\t]*(?:\\n|$)`, "gm");
  end.lastIndex = all.length;
  if (end.test(rest)) return null;
  const indent = space ? new RegExp(`^ {1,${space.length}}`, "gm") : null;
  return { from: all.length, scanned: all.length, lang: info.trim(), end, indent };
}

/** Make what is drawn equal to `views`: an equal beginning stays, one part is changed, the rest is drawn. */
function patch(holder: Element, old: Shown[], views: readonly View[]): Shown[] {
  let i = 0;
  while (i < old.length && i < views.length && old[i]!.view.kind === views[i]!.kind && old[i]!.view.key === views[i]!.key) i++;
  const kept = old.slice(0, i);
  const changed = old[i];
  const next = views[i];
  if (changed && next && changed.view.kind === next.kind && (changed.part.set || (changed.view.kids && next.kids))) {
    changed.part.set?.(next);
    if (next.kids) changed.kids = patch(changed.part.inside!, changed.kids, next.kids());
    changed.view = next;
    kept.push(changed);
    i++;
  }
  for (const gone of old.slice(i)) gone.part.node.remove();
  for (const view of views.slice(i)) {
    const shown = draw(view);
    holder.append(shown.part.node);
    kept.push(shown);
  }
  return kept;
}

function draw(view: View): Shown {
  const part = view.make();
  const kids = view.kids?.() ?? [];
  return { view, part, kids: patch(part.inside!, [], kids) };
}
