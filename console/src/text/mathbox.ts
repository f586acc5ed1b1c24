// A formula: its source at once, its MathML when KaTeX has come. Knows when to typeset, not how.
import { el } from "./dom";
import { revealed } from "./invisible";
import { later } from "./later";
import type { MathToken } from "./mathmarks";

type Typeset = (tex: string, display: boolean) => Element | null;
let typeset: Typeset | null = null;

export class MathBox {
  readonly box: HTMLElement;
  private raw = "";

  constructor(
    private token: MathToken,
    tag: "div" | "span",
  ) {
    this.box = el(tag, token.display ? "math block" : "math");
    this.show(token.raw, token.pending);
  }

  /** Show a newer state: more of its source, or the whole of it. */
  set(raw: string, open: boolean): void {
    this.show(raw, open);
  }

  private show(raw: string, open: boolean): void {
    this.raw = raw;
    this.box.replaceChildren(el("code", "tex", ...revealed(raw.trim())));
    if (!open) later(() => this.draw(raw));
  }

  private async draw(raw: string): Promise<void> {
    typeset ??= (await import("./math")).formula;
    if (raw !== this.raw) return;
    const made = typeset(source(raw), this.token.display);
    if (!made) return this.box.classList.add("failed");
    this.box.classList.remove("failed");
    this.box.replaceChildren(made);
  }
}

/** What stands between the marks of math. */
function source(raw: string): string {
  return raw.trim().replace(/^(?:\$\$?|\\[([])([\s\S]*?)(?:\$\$?|\\[)\]])$/, "$1").trim();
}
