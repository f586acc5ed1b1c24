// Markdown to tokens, by marked's lexer with limits: hostile text may be long and deep, and lexing must stay short.
// Knows no element. HTML and link definitions are text here, so that nothing of a text is ever taken out of sight.
import { Lexer, Marked, type Token, Tokenizer, type Tokens, type TokensList } from "marked";
import { blockMath, type MathToken, maskedMath, inlineMath, nextBlockMath, nextInlineMath } from "./mathmarks";

export const LINE = 10_000; // characters of a line that may hold markdown; prose has some thousand
const DEPTH = 10; // levels of quotes and lists; each level lexes its inside again
const INLINE_DEPTH = 12; // levels of emphasis and links
const SPECIAL = /[*_~`[\]<!\\$&@]/g;
// marked looks for the end of each `*`, `[` or backtick through the rest of a paragraph: special characters times length
// is the work it may do. 2e6 is a paragraph of 4,000 characters with 500 of them, and below 50 ms at the worst.
const WORK = 2e6;
const FUSE_MS = 150; // a lexer that took so long makes plain text of what remains: the last resort

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

  override tag(src: string): Tokens.Tag | undefined {
    if (src.charCodeAt(0) !== 60) return undefined;
    const hit = this.rules.inline.tag.exec(src);
    if (!hit) return undefined;
    return { type: "html", raw: hit[0], text: hit[0], block: false, inLink: false, inRawBlock: false };
  }

  /** marked drops cells beyond those of the head; here the head grows instead. */
  override table(src: string): Tokens.Table | undefined {
    const lines = this.rules.block.table.exec(src)?.[0].split("\n");
    if (!lines || lines.length < 3) return super.table(src);
    const columns = cells(lines[0]!);
    const most = Math.min(200, Math.max(...lines.slice(2).map(cells)));
    if (most <= columns || cells(lines[1]!) !== columns) return super.table(src);
    const more = most - columns;
    const closed = (line: string) => (/(?<!\\)\|\s*$/.test(line) ? line : line + "|");
    const grown = [closed(lines[0]!) + " |".repeat(more), closed(lines[1]!) + "-|".repeat(more), ...lines.slice(2)];
    const token = super.table(grown.join("\n"));
    if (token) token.raw = lines.join("\n").replace(/\n+$/, "");
    return token;
  }
}

function cells(line: string): number {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
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
  private readonly since = performance.now();
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
    if (this.depth >= DEPTH || this.burnt()) {
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
    if (this.nested >= INLINE_DEPTH || work(src) > WORK || this.burnt()) {
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

  private burnt(): boolean {
    return performance.now() - this.since > FUSE_MS;
  }
}

function textToken(raw: string): Tokens.Text {
  return { type: "text", raw, text: raw };
}

function work(text: string): number {
  if (text.length < 200) return 0;
  return (text.match(SPECIAL)?.length ?? 0) * text.length;
}
