// Makes elements from names of ours and text of anyone. No caller passes a name, a class or an attribute out of a text.

/** An element with a class of ours; strings become text nodes. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  name = "",
  ...inside: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside);
  return made;
}

/** A button that does something here: it is in no form, so it sends nothing. */
export function button(words: string, name: string, press: () => void): HTMLButtonElement {
  const made = el("button", name, words);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}
