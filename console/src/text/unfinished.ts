// Text that is still arriving, with its open ends closed for one drawing: half a `**bold` looks bold already, half a link
// shows its words, and a head of a table is a table before its second line has come. Changes the last block only.

const MARKER_ALONE = /(?:^|\n)[ \t>]*(?:[-+*=_]{1,3}|#{1,6}|\d{1,9}[.)]?|`{1,2}|~{1,2}|\$\$?|\\\[?|[-+*] \[[ xX]?|\|)[ \t]*$/;
const LONGEST = 4000; // characters of a last block that is looked at

/** The text as it may be drawn now. */
export function finished(text: string): string {
  const alone = MARKER_ALONE.exec(text);
  if (alone) text = text.slice(0, alone.index); // the next character decides what this line is
  const start = Math.max(lastBlank(text), text.length - LONGEST);
  const block = text.slice(start);
  if (/(?:^|\n) {0,3}(?:`{3}|~{3})/.test(block) || /^ {0,3}(?:\$\$|\\\[)/.test(block)) return text;
  const table = withHead(block);
  if (table !== null) return text.slice(0, start) + table;
  const line = Math.max(0, lastItem(block));
  return text.slice(0, start + line) + closedInline(block.slice(line));
}

function lastBlank(text: string): number {
  const at = text.lastIndexOf("\n\n");
  return at < 0 ? 0 : at + 2;
}

/** Where the last line begins that starts a list item, a quote, a heading or a row: emphasis does not reach over it. */
function lastItem(block: string): number {
  let found = 0;
  for (const hit of block.matchAll(/(?:^|\n)[ \t]*(?:[-+*>]|\d{1,9}[.)]|#{1,6}|\|)(?=[ \t|])/g)) found = hit.index;
  return found;
}

/** A table of which the head is there and its second line is not, or not whole. */
function withHead(block: string): string | null {
  const [head = "", second, ...more] = block.split("\n");
  if (more.length > 0 || !/^ {0,3}\|.*[^|\s].*/.test(head)) return null;
  if (second !== undefined && !/^[\s|:-]*$/.test(second)) return null;
  const columns = head.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).length;
  return `${head}\n|${"---|".repeat(columns)}`;
}

/** Close code, emphasis and links that a piece of prose ends inside of. */
function closedInline(text: string): string {
  text = text.replace(/(?<![*_~\\])[*_~]{1,2}$/, ""); // half a marker: it would open, close or be none
  const open: string[] = [];
  let i = 0;
  while (i < text.length) {
    const char = text[i]!;
    if (char === "\\") i += 2;
    else if (char === "`") {
      const run = /^`+/.exec(text.slice(i))![0];
      const end = text.indexOf(run, i + run.length);
      if (end < 0) return i + run.length < text.length ? text + run + closers(open) : text.slice(0, i) + closers(open);
      i = end + run.length;
    } else if (char === "[" || (char === "!" && text[i + 1] === "[")) {
      const half = /^!?\[([^\][]{0,300})\]\([^()\s]*(?:\s+"[^"]*"?)?$/.exec(text.slice(i));
      if (half) return text.slice(0, i) + half[1] + closers(open);
      i++;
    } else if (char === "*" || char === "_" || char === "~") {
      const run = new RegExp(`^\\${char}{1,3}`).exec(text.slice(i))![0];
      turn(open, run, text[i - 1], text[i + run.length]);
      i += run.length;
    } else i++;
  }
  return text.trimEnd() + closers(open);
}

/** A run of `*`, `_` or `~` opens before a character, and closes after one what is open. */
function turn(open: string[], run: string, before: string | undefined, after: string | undefined): void {
  const spaceBefore = before === undefined || /\s/.test(before);
  const spaceAfter = after === undefined || /\s/.test(after);
  if (!spaceBefore && open[open.length - 1] === run) open.pop();
  else if (!spaceAfter && (run[0] !== "_" || spaceBefore || /\W/.test(before!)) && (run[0] !== "~" || run.length === 2)) {
    if (open.length < 8) open.push(run);
  }
}

function closers(open: readonly string[]): string {
  return open.slice().reverse().join("");
}
