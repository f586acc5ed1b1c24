// What a token looks like: a view makes its element when asked, and one that is equal to a drawn one is not drawn again.
// Knows tokens and elements; no token gives an element a name, a class or an attribute of its own.
import type { Token, Tokens } from "marked";
import { texts } from "../texts";
import { CodeBox } from "./code";
import { el } from "./dom";
import { decoded } from "./entities";
import { pieces, mark, revealed } from "./invisible";
import type { AnyToken, Blocks, PlainToken } from "./lexing";
import { Chunks } from "./chunks";
import { anchor, names, safeUrl } from "./links";
import type { MathToken } from "./mathmarks";
import { MathBox } from "./mathbox";

/** An element that is drawn, the place inside it for what it holds, and how to show a newer view of the same kind. */
export interface Part {
  node: ChildNode;
  inside?: Element;
  set?: (view: View) => void;
}

export interface View {
  kind: string; // a part of one kind can become any other view of that kind
  key: string; // views of one kind and key look the same
  text: string;
  open: boolean;
  make: () => Part;
  kids?: (() => View[]) | undefined;
}

const HEADINGS = ["h3", "h4", "h5", "h6", "h6", "h6"] as const; // h1 and h2 belong to the page

const DIRECTED = new Set<string>(["p", "li", "h3", "h4", "h5", "h6", "td", "th", "blockquote", "ul", "ol"]);

/** Views of blocks. `open`: the text may still grow, so its last block is not final. */
export function blockViews(lexer: Blocks, tokens: readonly AnyToken[], open: boolean): View[] {
  const last = tokens.length - 1;
  return tokens.flatMap((token, i) => blockView(lexer, token, open && i === last) ?? []);
}

function blockView(lexer: Blocks, token: AnyToken, open: boolean): View[] | null {
  const inline = (tokens: Token[] | undefined) => () => inlineViews(lexer, tokens ? lexer.inside(tokens) : []);
  const t = token as Tokens.Generic;
  switch (token.type) {
    case "space":
      return null;
    case "code":
      return [codeView(t as Tokens.Code, open)];
    case "hr":
      return [box("hr", "hr", t.raw)];
    case "math":
      return [mathView(t as MathToken, "div")];
    case "heading":
      return [box(HEADINGS[t.depth - 1] ?? "h6", "heading" + t.depth, t.raw, inline(t.tokens))];
    case "paragraph":
      return [box("p", "p", t.raw, inline(t.tokens))];
    case "text":
      return inline(t.tokens ?? [t as Token])();
    case "checkbox":
      return [checkbox(t as Tokens.Checkbox)];
    case "blockquote":
      return [box("blockquote", "quote", t.raw, () => blockViews(lexer, t.tokens ?? [], open), open)];
    case "list":
      return [listView(lexer, t as Tokens.List, open)];
    case "table":
      return [tableView(lexer, t as Tokens.Table)];
    default:
      return [plainView((t as unknown as PlainToken).raw)];
  }
}

function listView(lexer: Blocks, list: Tokens.List, open: boolean): View {
  const start = list.ordered && Number.isSafeInteger(list.start) ? Number(list.start) : 1;
  const last = list.items.length - 1;
  const kids = () =>
    list.items.map((item, i) => {
      const more = open && i === last;
      const inside = () => blockViews(lexer, item.tokens, more);
      return box("li", item.task ? "task" : "li", `${list.loose} ${item.raw}`, inside, more, item.task ? "task" : "");
    });
  const view = box(list.ordered ? "ol" : "ul", `list${list.ordered}${start}${list.loose}`, list.raw, kids, open);
  const { make } = view;
  view.make = () => {
    const part = make();
    if (start !== 1) (part.node as HTMLOListElement).start = start;
    return part;
  };
  return view;
}

function tableView(lexer: Blocks, table: Tokens.Table): View {
  const cell = (c: Tokens.TableCell): View => {
    const side = c.align === "right" || c.align === "center" ? c.align : "";
    return box(c.header ? "th" : "td", `cell${c.header}${side}`, c.text, () => inlineViews(lexer, lexer.inside(c.tokens)), false, side);
  };
  const row = (cells: Tokens.TableCell[]) => box("tr", "tr", cells.map((c) => c.text).join("\n"), () => cells.map(cell));
  const head = box("thead", "thead", table.header.map((c) => c.text).join("\n"), () => [row(table.header)]);
  const body = box("tbody", "tbody", table.raw, () => table.rows.map(row));
  return {
    ...view("table" + table.align.join(), table.raw),
    make: () => {
      const inside = el("table");
      const scroll = el("div", "tablebox", inside);
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", texts.text.table);
      return { node: scroll, inside };
    },
    kids: () => (table.rows.length > 0 ? [head, body] : [head]),
  };
}

/** A block of code, from markdown or from a fence that is still open. */
export function codeView({ text, lang = "" }: { text: string; lang?: string | undefined }, open: boolean): View {
  return {
    ...view("code" + lang, text, open),
    make: () => {
      const code = new CodeBox(decoded(lang));
      code.set(text, open);
      return { node: code.box, set: (now) => code.set(now.text, now.open) };
    },
  };
}

/** Text that holds no markdown, or too much of it. */
export function plainView(text: string): View {
  return {
    ...view("plain", text),
    make: () => {
      const node = el("div", "plain");
      node.dir = "auto";
      const chunks = new Chunks(node, true);
      chunks.set(text);
      return { node, set: (now) => chunks.set(now.text) };
    },
  };
}

/** `prose` false: within a link, whose words may not hide anything. */
function inlineViews(lexer: Blocks, tokens: readonly AnyToken[], prose = true): View[] {
  return tokens.flatMap((token) => inlineView(lexer, token, prose));
}

function inlineView(lexer: Blocks, token: AnyToken, prose: boolean): View[] {
  const t = token as Tokens.Generic;
  const kids = () => inlineViews(lexer, t.tokens ?? [], prose);
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return [box(token.type, token.type, t.raw, kids)];
    case "codespan":
      return [{ ...view("codespan", t.text), make: () => ({ node: el("code", "", ...revealed(t.text)) }) }];
    case "br":
      return [box("br", "br", "")];
    case "escape":
      return textViews(t.text, prose);
    case "formula":
      return [mathView(t as MathToken, "span")];
    case "checkbox":
      return [checkbox(t as Tokens.Checkbox)];
    case "link":
      return linkViews(t as Tokens.Link, () => inlineViews(lexer, t.tokens ?? [], false));
    case "image":
      return [imageView(t as Tokens.Image)];
    case "html":
      return textViews(t.raw, prose);
    default:
      return t.tokens?.length ? kids() : textViews(decoded(t.raw), prose);
  }
}

function textViews(text: string, prose: boolean): View[] {
  return pieces(text, prose).map((piece) =>
    piece.hidden
      ? { ...view("mark", piece.text), make: () => ({ node: mark(piece.text) }) }
      : {
          ...view("text", piece.text),
          make: () => {
            const node = document.createTextNode(piece.text);
            return { node, set: (now: View) => (node.data = now.text) };
          },
        },
  );
}

/** A link, and its host beside it unless its words are its whole address with that host. What may not be one is text. */
function linkViews(link: Tokens.Link, kids: () => View[]): View[] {
  const address = link.autolink ? link.href : decoded(link.href);
  const url = safeUrl(address);
  if (!url) return link.autolink ? textViews(link.raw, false) : [...kids(), note(` (${[address, link.title].filter(Boolean).join(" ")})`)];
  const whole = link.text === address || (link.autolink && link.text === link.href);
  const bare = whole && names(address, url);
  const shown: View = {
    ...view("link" + url.href, link.raw),
    make: () => {
      const node = anchor(url);
      node.append(...(bare ? revealed(link.text) : []));
      return { node, inside: node };
    },
    kids: bare ? undefined : kids,
  };
  const beside = link.title ? `${url.host}: ${decoded(link.title)}` : url.host;
  return bare ? [shown] : [shown, note(` (${beside})`)];
}

/** An image of a text is never loaded: its words and its address are shown. */
function imageView(image: Tokens.Image): View {
  const make = () => {
    const words = image.text ? `${decoded(image.text)}: ` : "";
    const address = el("code", "", ...revealed(decoded(image.href)));
    const title = image.title ? [` ${decoded(image.title)}`] : [];
    const node = el("span", "image", `${texts.text.image} `, ...revealed(words, true), address, ...title);
    node.title = texts.text.imageNotLoaded;
    return { node };
  };
  return { ...view("image", image.raw), make };
}

function note(text: string): View {
  return { ...view("note", text), make: () => ({ node: el("span", "host", ...revealed(text)) }) };
}

function checkbox(token: Tokens.Checkbox): View {
  const make = () => {
    const node = el("span", token.checked ? "check done" : "check");
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", token.checked ? texts.text.done : texts.text.notDone);
    return { node };
  };
  return { ...view("checkbox", String(token.checked)), make };
}

function mathView(token: MathToken, tag: "div" | "span"): View {
  const make = () => {
    const math = new MathBox(token, tag);
    return { node: math.box, set: (now: View) => math.set(now.text, now.open) };
  };
  return { ...view("math" + tag + token.display, token.raw, token.pending), text: token.raw, make };
}

function view(kind: string, text: string, open = false): Omit<View, "make"> {
  return { kind, key: open ? "open " + text : text, text, open };
}

function box<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  kind: string,
  key: string,
  kids?: () => View[],
  open = false,
  name = "",
): View {
  const make = () => {
    const node = el(tag, name);
    if (DIRECTED.has(tag)) node.dir = "auto";
    return { node, inside: node };
  };
  return { ...view(kind, key, open), make, kids };
}
