// Character references of markdown (`&lt;`, `&#60;`) as the characters they stand for. Knows the common names only; another
// one stays as it was written, which loses nothing.
const NAMED: Record<string, string> = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…",
  mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", bull: "•", middot: "·",
  deg: "°", plusmn: "±", times: "×", divide: "÷", frac12: "½", frac14: "¼", sup2: "²", sup3: "³", micro: "µ", para: "¶",
  sect: "§", euro: "€", pound: "£", yen: "¥", cent: "¢", larr: "←", uarr: "↑", rarr: "→", darr: "↓", harr: "↔",
  rArr: "⇒", lArr: "⇐", hArr: "⇔", le: "≤", ge: "≥", ne: "≠", asymp: "≈", equiv: "≡", infin: "∞", sum: "∑", prod: "∏",
  radic: "√", int: "∫", part: "∂", nabla: "∇", isin: "∈", notin: "∉", cap: "∩", cup: "∪", sub: "⊂", sup: "⊃",
  forall: "∀", exist: "∃", empty: "∅", and: "∧", or: "∨", not: "¬", alpha: "α", beta: "β", gamma: "γ", delta: "δ",
  epsilon: "ε", theta: "θ", lambda: "λ", mu: "μ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", phi: "φ", psi: "ψ",
  omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω",
  check: "✓", cross: "✗", star: "☆", ensp: "\u2002", emsp: "\u2003", thinsp: "\u2009", shy: "\u00ad",
}; // prettier-ignore

/** The text with its references resolved. */
export function decoded(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(/&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([A-Za-z]\w{1,15}));/g, (whole, dec, hex, name) => {
    if (name) return Object.hasOwn(NAMED, name) ? NAMED[name]! : whole;
    const point = dec ? Number(dec) : Number.parseInt(hex, 16);
    const none = point === 0 || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff);
    return none ? "\ufffd" : String.fromCodePoint(point);
  });
}
