// Keys of the page that is open, and the list of them that `?` shows. A page names its keys; nothing is bound twice.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { texts } from "../texts";
import { Dialog } from "./dialog";

export interface Key {
  keys: string; // as people write it: "Ctrl F", "Alt ArrowUp", "?"
  says: string;
  run?: (e: KeyboardEvent) => boolean | void; // false: the browser's own meaning stands. Absent: bound elsewhere
}

const groups = signal<Key[][]>([]);
const shown = signal(false);

/** Bind keys while a component is mounted. */
export function useKeys(keys: Key[]): void {
  useEffect(() => {
    groups.value = [...groups.peek(), keys];
    return () => void (groups.value = groups.peek().filter((each) => each !== keys));
  }, []);
}

const writes = (e: Event) => (e.target as HTMLElement).closest?.("input, textarea, select, [contenteditable]") !== null;

function matches(keys: string, e: KeyboardEvent): boolean {
  const parts = keys.split(" ");
  const key = parts.pop()!;
  const want = (name: string) => parts.includes(name);
  const command = e.ctrlKey || e.metaKey;
  if (want("Ctrl") !== command || want("Alt") !== e.altKey) return false;
  if (key.length > 1 || command) return want("Shift") === e.shiftKey && e.key.toLowerCase() === key.toLowerCase();
  return e.key === key && !writes(e); // a bare letter counts only outside of fields
}

addEventListener("keydown", (e) => {
  if (e.isComposing || e.defaultPrevented) return;
  if (matches("?", e) || matches("Ctrl /", e)) {
    shown.value = !shown.value;
    return e.preventDefault();
  }
  if (document.querySelector("dialog[open], :popover-open")) return;
  for (const key of groups.value.flat().reverse())
    if (key.run && matches(key.keys, e) && key.run(e) !== false) return e.preventDefault();
});

const NAMES: Record<string, string> = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };

export function KeyList() {
  if (!shown.value) return null;
  return (
    <Dialog title={texts.parts.keys} onClose={() => (shown.value = false)}>
      <dl class="key-list">
        {[...groups.value.flat(), { keys: "?", says: texts.parts.thisList }].map(({ keys, says }) => (
          <div key={keys + says}>
            <dt>
              {keys.split(" ").map((each) => (
                <kbd key={each}>{NAMES[each] ?? each.toUpperCase()}</kbd>
              ))}
            </dt>
            <dd>{says}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
