// The list that an @ in the box opens: models whose name has what was typed. The box keeps the focus.
import { useSignal } from "@preact/signals";
import type { RefObject } from "preact";
import { useEffect } from "preact/hooks";
import { texts } from "../../texts";
import { models } from "./models";
import { Plain } from "../../text";

interface Props {
  typed: string;
  area: RefObject<HTMLTextAreaElement | null>;
  choose: (model: string) => void;
  close: () => void;
}

export function Mention({ typed, area, choose, close }: Props) {
  const found = (models.value ?? []).filter((model) => model.id.toLowerCase().includes(typed.toLowerCase())).slice(0, 8);
  const at = useSignal(0);
  useEffect(() => void (at.value = 0), [typed]);
  useEffect(() => {
    const node = area.current!;
    const key = (e: KeyboardEvent) => {
      if (e.isComposing || !found.length) return;
      const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
      if (step) at.value = (at.value + step + found.length) % found.length;
      else if (e.key === "Enter" || e.key === "Tab") choose(found[Math.min(at.value, found.length - 1)]!.id);
      else if (e.key === "Escape") close();
      else return;
      e.preventDefault();
      e.stopPropagation();
    };
    node.addEventListener("keydown", key);
    node.setAttribute("aria-controls", "mention");
    node.setAttribute("aria-activedescendant", `mention-${at.value}`);
    return () => {
      node.removeEventListener("keydown", key);
      node.removeAttribute("aria-controls");
      node.removeAttribute("aria-activedescendant");
    };
  });
  if (!found.length) return null;
  return (
    <ul class="mention" id="mention" role="listbox" aria-label={texts.chat.model}>
      {found.map((model, i) => (
        <li
          key={model.id}
          id={`mention-${i}`}
          role="option"
          aria-selected={i === at.value}
          onPointerDown={(e) => (e.preventDefault(), choose(model.id))}
        >
          <span><Plain text={model.id} /></span>
          {model.loaded && <small>{texts.chat.inMemory}</small>}
        </li>
      ))}
    </ul>
  );
}
