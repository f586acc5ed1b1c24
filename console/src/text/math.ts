// TeX to MathML nodes. KaTeX parses; its tree is walked here, and only elements and attributes of this file's lists come
// out of it: no style, class, colour, size or address. Loaded with the first formula.
import katex from "katex";

const NS = "http://www.w3.org/1998/Math/MathML";
const ELEMENTS = new Set(
  ("math semantics annotation mtext mn mo mi mspace mover munder munderover msup msub msubsup mfrac mroot msqrt mtable " +
    "mtr mtd mlabeledtr mrow menclose mstyle mpadded mphantom").split(" "),
);
const WORDS = new Set(
  ("mathvariant fence separator stretchy largeop symmetric accent accentunder linebreak displaystyle scriptlevel notation " +
    "columnalign rowlines columnlines form movablelimits encoding").split(" "),
);
const LENGTHS = new Set("width height depth lspace rspace voffset linethickness minsize maxsize rowspacing columnspacing".split(" "));
const ROWS = new Set("mrow mstyle mpadded mphantom mtd msqrt menclose".split(" ")); // children stand side by side
const SCRIPTS = new Set("msub msup msubsup munder mover munderover".split(" "));
const LONGEST = 4000; // characters of TeX
const NODES = 4000; // a formula of a page has some hundred
const DEPTH = 60; // levels of elements: layout takes time by the levels too
const EMS = 20; // the longest space or rule
const OWN_MACROS = /\\(?:[gex]?def|let|futurelet|(?:re)?newcommand|providecommand|newenvironment|global|long)(?![a-zA-Z])/;

interface Tree {
  type?: string;
  attributes?: Record<string, string>;
  children?: Tree[];
  text?: string; // of a text
  width?: number; // of a space, in em
  character?: string | null; // of a space that is a character
  toText?: () => string;
}

// KaTeX exports the tree that its `render` turns into elements; its types leave it out.
const treeOf = (katex as unknown as { __renderToDomTree: (tex: string, options: object) => Tree }).__renderToDomTree;

// What `trust: false` refuses is drawn as its bare name: the source says more.
const REFUSED = /\\(?:href|url|includegraphics|html[A-Z])/;

/** The formula, or null when it is none that may be shown: then its source is. */
export function formula(tex: string, display: boolean): Element | null {
  const own = OWN_MACROS.test(tex); // one expansion may then bring the whole text again
  if (tex.length > (own ? 500 : LONGEST) || REFUSED.test(tex)) return null;
  const settings = { displayMode: display, output: "mathml", trust: false, strict: false, throwOnError: true } as const;
  try {
    const limits = { maxExpand: own ? 100 : 1000, maxSize: EMS, macros: {}, globalGroup: false };
    const span = treeOf(tex, { ...settings, ...limits });
    const math = span.children?.[0];
    if (!math) return null;
    return node(math, { nodes: NODES }, DEPTH) as Element;
  } catch {
    return null; // an error of TeX, a limit, or a stack that ended
  }
}

function node(tree: Tree, left: { nodes: number }, depth: number): Node {
  if (depth === 0 || --left.nodes === 0) throw new RangeError("a formula of too many parts");
  if (!tree.children) return text(tree);
  if (tree.type === undefined) return several(tree.children, left, depth);
  if (!ELEMENTS.has(tree.type)) return document.createTextNode(tree.toText?.() ?? "");
  const made = document.createElementNS(NS, tree.type);
  for (const [name, value] of Object.entries(tree.attributes ?? {})) {
    if (WORDS.has(name) && /^[\w ./-]{1,40}$/.test(value)) made.setAttribute(name, value);
    else if (LENGTHS.has(name) && bounded(value)) made.setAttribute(name, value);
    else if (name === "display" && value === "block") made.setAttribute(name, value);
  }
  const row = ROWS.has(tree.type) ? tree.children : [];
  tree.children.forEach((child, i) => {
    if (i > 0 && row.length && apart(row[i - 1]!, child)) made.append(thin());
    made.append(node(child, left, depth - 1));
  });
  return made;
}

/** Whether TeX puts a thin space between two neighbours, one of which is a function's name: MathML has none for it. */
function apart(a: Tree, b: Tree): boolean {
  if (a.width !== undefined || b.width !== undefined) return false; // a space is there already
  const opens = b.type === "mo";
  const operates = a.type === "mo" && !/^[)\]}|!]$/.test(a.toText?.() ?? "");
  return isName(a) ? !opens : isName(b) && !operates;
}

/** `log` with the application after it, also with an index or a power. */
function isName({ type, children = [] }: Tree): boolean {
  if (type === undefined || type === "mrow") return children.length === 2 && children[1]!.toText?.() === "\u2061";
  return SCRIPTS.has(type) && children.length > 0 && isName(children[0]!);
}

function thin(): Element {
  const made = document.createElementNS(NS, "mspace");
  made.setAttribute("width", "0.1667em");
  return made;
}

/** Nodes without an element around them, such as `log` and the application after it. Bare text would not be drawn. */
function several(children: Tree[], left: { nodes: number }, depth: number): Node {
  const all = document.createDocumentFragment();
  for (const child of children) all.append(node(child, left, depth - 1));
  return all;
}

function text(tree: Tree): Node {
  if (tree.width === undefined) return document.createTextNode(tree.text ?? tree.toText?.() ?? "");
  const space = document.createElementNS(NS, tree.character ? "mtext" : "mspace");
  if (tree.character) space.textContent = tree.character;
  else space.setAttribute("width", `${Math.max(-1, Math.min(EMS, tree.width))}em`);
  return space;
}

function bounded(value: string): boolean {
  return value.split(" ").every((part) => {
    const found = /^([+-]?\d*\.?\d+)(em|ex|px|pt|%|mu)?$/.exec(part);
    return found !== null && Math.abs(Number(found[1])) <= (found[2] === "px" || found[2] === "%" ? 200 : EMS);
  });
}
