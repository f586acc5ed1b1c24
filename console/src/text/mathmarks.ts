// Where math begins and ends in markdown: `$…$`, `$$…$$`, `\(…\)`, `\[…\]`. Knows no TeX: an amount of dollars is not math.

export interface MathToken {
  type: "math" | "formula";
  raw: string;
  text: string;
  display: boolean;
  pending: boolean; // its end has not arrived
}

// `$` opens before a character and closes after one, and no digit or letter follows: "$5 and $10" is money, "$HOME:$PATH" a
// shell's. Each pattern ends at a limit, so an unclosed one costs that much and no more.
const INLINE = [
  { find: /^\$(?![\s$])((?:\\[\s\S]|[^\\$\n]|\n(?!\s*\n)){1,1000}?)(?<![\s\\])\$(?![\w$])/, display: false },
  { find: /^\$\$((?:(?!\n\s*\n|\$\$)[\s\S]){1,4000})\$\$/, display: true },
  { find: /^\\\(((?:(?!\n\s*\n|\\[()])[\s\S]){1,1000})\\\)/, display: false },
  { find: /^\\\[((?:(?!\n\s*\n|\\[[\]])[\s\S]){1,4000})\\\]/, display: true },
];
const BLOCK = /^ {0,3}(?:(\$\$)|\\\[)/;
const LONGEST = 4000;

export function inlineMath(src: string): MathToken | undefined {
  const first = src.charCodeAt(0);
  if (first !== 36 && first !== 92) return undefined;
  for (const { find, display } of INLINE) {
    const hit = find.exec(src);
    if (hit) return { type: "formula", raw: hit[0], text: hit[1]!, display, pending: false };
  }
  return undefined;
}

export function nextInlineMath(src: string): number | undefined {
  const at = src.search(/(?<![\w\\$])\$|\\[([]/);
  return at < 0 ? undefined : at;
}

/** A block of math on lines of its own. Text after its end on the same line makes it a part of a paragraph. */
export function blockMath(this: { lexer: { open?: boolean } }, src: string): MathToken | undefined {
  const opening = BLOCK.exec(src);
  if (!opening) return undefined;
  const start = opening[0].length;
  const end = opening[1] ? "$$" : "\\]";
  const at = src.slice(start, start + LONGEST).indexOf(end);
  if (at > 0) {
    const after = /^[ \t]*(?:\n|$)/.exec(src.slice(start + at + 2, start + at + 200));
    if (!after) return undefined;
    const raw = src.slice(0, start + at + 2 + after[0].length);
    return { type: "math", raw, text: src.slice(start, start + at).trim(), display: true, pending: false };
  }
  if (at === 0 || !this.lexer.open || src.length > LONGEST) return undefined;
  return { type: "math", raw: src, text: src.slice(start), display: true, pending: true };
}

/** Where a block of math interrupts a paragraph. */
export function nextBlockMath(src: string): number | undefined {
  const hit = /\n(?: {0,3}(?:\$\$|\\\[)|[ \t]*\n)/.exec(src);
  return hit && /[$[]$/.test(hit[0]) ? hit.index : undefined;
}

/** The text with its math masked: a `*` or `_` in a formula is not emphasis. */
export function maskedMath(src: string): string {
  if (!src.includes("$")) return src;
  return src.replace(/(?<![\w\\$])\$(?![\s$])(?:\\[\s\S]|[^\\$\n]){1,1000}?(?<![\s\\])\$(?![\w$])/g, (math) => "a".repeat(math.length));
}
