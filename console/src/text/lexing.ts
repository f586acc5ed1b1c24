// Markdown to tokens, by marked's lexer with limits: hostile text may be long and deep, and lexing must stay short.
// Knows no element. HTML and link definitions are text here, so that nothing of a text is ever taken out of sight.
import { Lexer, Marked, type Token, Tokenizer, type Tokens, type TokensList } from "marked";
import { blockMath, type MathToken, maskedMath, inlineMath, nextBlockMath, nextInlineMath } from "./mathmarks";

export const LINE = 10_000; // characters of a line that may hold markdown; prose has some thousand
const DEPTH = 10; // levels of quotes and lists; each level lexes its inside again
const INLINE_DEPTH = 12; // levels of emphasis and links
const HEADING = 1000; // characters of a heading that a line of `=` or `-` makes
const COLUMNS = 200; // cells of a row; more of them are left out of a head that has fewer
const SPECIAL = /[*_~`[\]<!\\$&@]/g;
// marked looks for the end of each `*`, `[` or backtick through the rest of a paragraph: special characters times length
// is the work it may do. 2e6 is a paragraph of 4,000 characters with 500 of them, and below 50 ms at the worst.
const WORK = 2e6;
// Work of one lexer in all: characters that blocks were made of on each level, and special characters times length.
const BUDGET = 2e7;

export interface PlainToken {
  type: "plain";
  raw: string;
}
export type AnyToken = Token | PlainToken | MathToken;

class Rules extends Tokenizer {
  override html(): undefined {
    return undefined;
  }

  override def(): undefined {
    return undefined;
  }

  /** marked looks for the line below a heading through the whole rest, from each line anew. */
  override lheading(src: string): Tokens.Heading | undefined {
    const end = src.lastIndexOf("\n", HEADING);
    return end > 0 ? super.lheading(src.length > HEADING ? src.slice(0, end + 1) : src) : undefined;
  }

  override tag(src: string): Tokens.Tag | undefined {
    if (src.charCodeAt(0) !== 60) return undefined;
    const hit = this.rules.inline.tag.exec(src);
    if (!hit) return undefined;
    return { type: "html", raw: hit[0], text: hit[0], block: false, inLink: false, inRawBlock: false };
  }

  /** marked drops cells beyond those of the head; here the head grows instead. */
  override table(src: string): Tokens.Table | undefined {
    const [head = "", line = ""] = src.split("\n", 2);
    const columns = cells(head); // looked at first: marked reads all rows before it finds that there is no table
    if (!/[|:]/.test(line) || !/^[\s|:-]*$/.test(line) || cells(line) !== columns) return undefined;
    const rows = this.rules.block.table.exec(src)?.[0].replace(/\n+$/, "").split("\n").slice(2) ?? [];
    const most = Math.min(COLUMNS, rows.reduce((most, row) => Math.max(most, cells(row)), 0));
    if (most <= columns) return super.table(src);
    const closed = (row: string) => (/(?<!\\)\|\s*$/.test(row) ? row : row + "|");
    const grown = [closed(head) + " |".repeat(most - columns), closed(line) + "-|".repeat(most - columns)];
    const token = super.table([...grown, ...rows].join("\n"));
    if (token) token.raw = [head, line, ...rows].join("\n");
    return token;
  }
}

function cells(row: string): number {
  const inner = row.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).length;
}

const marked = new Marked({ gfm: true, breaks: true, hooks: { emStrongMask: maskedMath } as never });
marked.use({
  extensions: [
    { name: "math", level: "block", start: nextBlockMath, tokenizer: blockMath as never },
    { name: "formula", level: "inline", start: nextInlineMath, tokenizer: inlineMath as never },
  ],
});

/** Blocks at once, and what is inside a paragraph when it is asked for: what is drawn already is not lexed again. */
export class Blocks extends Lexer {
  open = false; // the text may still grow: math without its end is shown as pending, not as text
  private depth = 0;
  private nested = 0;
  private spent = 0;
  private readonly sources = new Map<Token[], string>();

  constructor() {
    super({ ...marked.defaults, tokenizer: new Rules() });
  }

  blocks(text: string, open: boolean): AnyToken[] {
    this.open = open;
    try {
      this.blockTokens(text, this.tokens);
    } catch {
      return [{ type: "plain", raw: text }]; // marked found no way on, or the stack ended
    }
    for (const { src, tokens } of this.inlineQueue) this.sources.set(tokens, src);
    this.inlineQueue = [];
    return this.tokens;
  }

  /** What is inside a block: its `tokens`, lexed on first use. */
  inside(tokens: Token[]): AnyToken[] {
    const source = this.sources.get(tokens);
    if (source !== undefined) {
      this.sources.delete(tokens);
      try {
        this.inlineTokens(source, tokens);
      } catch {
        tokens.splice(0, tokens.length, textToken(source));
      }
    }
    return tokens;
  }

  override blockTokens(src: string, tokens: Token[] = [], lastParagraphClipped = false): TokensList {
    if (this.depth >= DEPTH || !this.pay(src.length * 10)) {
      if (src) tokens.push({ type: "plain", raw: src } as never);
      this.state.top = true; // as marked leaves it
      return tokens as TokensList;
    }
    this.depth++;
    try {
      return super.blockTokens(src, tokens, lastParagraphClipped) as TokensList;
    } finally {
      this.depth--;
    }
  }

  override inlineTokens(src: string, tokens: Token[] = []): Token[] {
    if (this.nested >= INLINE_DEPTH || !this.pay(work(src))) {
      tokens.push(textToken(src));
      return tokens;
    }
    this.nested++;
    try {
      return super.inlineTokens(src, tokens);
    } finally {
      this.nested--;
    }
  }

  /** Whether there is budget left for some work, which is then taken from it. */
  private pay(work: number): boolean {
    if (work > WORK || this.spent + work > BUDGET) return false;
    this.spent += work;
    return true;
  }
}

function textToken(raw: string): Tokens.Text {
  return { type: "text", raw, text: raw };
}

function work(text: string): number {
  if (text.length < 200) return 0;
  return (text.match(SPECIAL)?.length ?? 0) * text.length;
}
