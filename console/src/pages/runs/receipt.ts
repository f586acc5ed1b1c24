// A receipt's parts as rows: what was measured before and after, and all else flattened. Knows shapes, no verb's meaning.
type Plain = Record<string, unknown>;

export interface BeforeAfter {
  what: string;
  before: number;
  after: number;
}

const MEASURED = ["before_after", "control", "text_loss"]; // parts that every verb states alike

/** Pairs `x_before`, `x_after` and `before`, `after` of the measured parts, and their other numbers as facts. */
export function measured(receipt: Plain): { pairs: BeforeAfter[]; facts: [string, string][] } {
  const pairs: BeforeAfter[] = [];
  const facts: [string, string][] = [];
  for (const part of MEASURED) {
    const found = receipt[part];
    if (!isPlain(found)) continue;
    for (const [key, value] of Object.entries(found)) {
      if (key === "after" || key.endsWith("_after")) continue;
      const after = found[key.replace(/before$/, "after")];
      const paired = /(^|_)before$/.test(key) && typeof value === "number" && typeof after === "number";
      const name = key.replace(/_?before$/, "").replaceAll("_", " ");
      if (paired) pairs.push({ what: named(part, name), before: value, after });
      else facts.push(...flat(value, named(part, key.replaceAll("_", " "))));
    }
  }
  return { pairs, facts };
}

/** "Control, lost"; what stands in `before_after` itself needs no such prefix. */
function named(part: string, name: string): string {
  if (part === "before_after") return name.length === 1 ? name : titled(name || "score"); // p stays p
  return [titled(part), name].filter(Boolean).join(", ");
}

const LEFT_OUT = ["schema", "verb", "freehold", "made_at", "system", "licence", "before_after", "control", "text_loss"];

/** Every other part with its values, a row a value. */
export function parts(receipt: Plain): [part: string, rows: [string, string][]][] {
  const found = Object.entries(receipt).filter(([key]) => !LEFT_OUT.includes(key));
  const nested = found.filter(([, value]) => isPlain(value) || Array.isArray(value));
  return nested.map(([key, value]) => [titled(key), flat(value, "")] as [string, [string, string][]]).filter(([, rows]) => rows.length);
}

export const titled = (key: string) => key.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

function flat(value: unknown, name: string): [string, string][] {
  if (value === null || value === "") return [];
  if (Array.isArray(value)) {
    if (value.every((one) => typeof one !== "object")) return value.length ? [[name, value.join(", ")]] : [];
    return value.flatMap((one, i) => flat(one, `${name} ${i + 1}`.trim()));
  }
  if (isPlain(value)) {
    return Object.entries(value).flatMap(([key, inner]) => flat(inner, [name, key.replaceAll("_", " ")].filter(Boolean).join(" · ")));
  }
  return [[name, typeof value === "number" ? said(value) : String(value)]];
}

/** A number as its receipt has it, to six digits. */
export function said(n: number): string {
  const plain = Number.isInteger(n) ? n.toLocaleString("en-US") : decimal(n);
  return plain.replace(/^-/, "−");
}

function decimal(n: number): string {
  return Math.abs(n) < 1e-4 ? n.toExponential(2) : String(Number(n.toPrecision(6)));
}

function isPlain(value: unknown): value is Plain {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
