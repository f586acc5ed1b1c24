// JSON with its lines broken and everything else as it was written: a number keeps its digits, a key that stands twice
// stands twice, since what is shown is what a person agrees to. Knows text; knows no tool.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const DEEPEST = 64; // beyond, indents would grow with the square of the text

/** JSON over several lines; a text that is none stays as it is. */
export function pretty(json: string): string {
  try {
    JSON.parse(json);
  } catch {
    return json;
  }
  let out = "";
  let depth = 0;
  let before = "";
  for (const [token] of json.matchAll(TOKEN)) {
    const closes = token === "}" || token === "]";
    if (closes) depth--;
    const empty = closes && (before === "{" || before === "[");
    if (before === "," || (!empty && (closes || before === "{" || before === "["))) out += "\n" + "  ".repeat(depth);
    else if (before === ":") out += " ";
    // An escape is shown as the character that it is: what is invisible gets its mark.
    out += token[0] === '"' ? JSON.stringify(JSON.parse(token)) : token;
    if (token === "{" || token === "[") depth++;
    if (depth > DEEPEST) return json;
    before = token;
  }
  return out;
}

export function isObject(text: string): boolean {
  try {
    const value = JSON.parse(text) as unknown;
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}
