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

// What a text box would not show, and what turns the order of other characters.
const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u034F\u115F\u1160\u3164\uFE00-\uFE0F\uFFA0]/gu;

/** The same JSON with its invisible characters as escapes: for a text box, which marks nothing. */
export function escaped(json: string): string {
  const unit = (char: string) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0");
  return json.replace(UNSEEN, (run) => run.split("").map(unit).join(""));
}

export function isObject(text: string): boolean {
  try {
    const value = JSON.parse(text) as unknown;
    return typeof value === "object" && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}
