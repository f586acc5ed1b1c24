// A hostile name as one string, for labels and titles: invisible characters are spelt. Where elements can be, <Plain>.
import { pieces } from "./invisible";

export function shown(text: string): string {
  return pieces(text)
    .map((piece) => (piece.hidden ? `[${[...piece.text].slice(0, 4).map(code).join(" ")}]` : piece.text))
    .join("");
}

function code(char: string): string {
  return "U+" + char.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0");
}
