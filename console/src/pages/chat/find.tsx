// Find in the whole chat: Ctrl-F opens this bar, because the browser's own search sees only the messages that are drawn.
// A second Ctrl-F gives the browser's. Hits are painted with the browser's highlights, which add no element.
import { type ReadonlySignal, type Signal, useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { IconButton } from "../../parts/button";
import { texts } from "../../texts";
import { scroller } from "./log";
import { type Chat, load, messageOf } from "./opened";

const words = texts.chat;
const PAINT_MS = 60;

export const finding = { focus: () => {} };

export function Find({ chat, close, first = "" }: { chat: Chat; close: () => void; first?: string }) {
  const query = useSignal(first);
  const at = useSignal(-1);
  const input = useRef<HTMLInputElement>(null);
  const loaded = useWhole(chat);
  const found = useHits(chat, query, loaded);
  usePaint(query.value.toLowerCase(), found, at);
  finding.focus = () => input.current?.select();
  useEffect(() => finding.focus(), [chat]);

  function step(by: number) {
    const all = found.peek();
    if (!all.length) return;
    const from = at.peek() < 0 ? (by > 0 ? 0 : all.length - 1) : (at.peek() + by + all.length) % all.length;
    at.value = from;
    scroller.now?.toMessage(all[from]!);
  }

  function key(e: KeyboardEvent) {
    if (e.isComposing) return;
    if (e.key === "Enter") step(e.shiftKey ? 1 : -1);
    else if (e.key === "Escape") close();
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  const count = found.value.length;
  const said = !query.value ? "" : !loaded.value ? words.searching : count ? words.hit(at.value + 1, count) : words.noneFound;
  return (
    <div class="find" role="search" aria-label={words.find}>
      <input
        ref={input}
        aria-label={words.find}
        placeholder={words.find}
        value={query.value}
        onInput={(e) => {
          query.value = e.currentTarget.value;
          at.value = -1;
        }}
        onKeyDown={key}
      />
      <span role="status">{said}</span>
      <IconButton icon="up" label={words.earlierHit} disabled={!count} onClick={() => step(-1)} />
      <IconButton icon="down" label={words.laterHit} disabled={!count} onClick={() => step(1)} />
      <IconButton icon="close" label={words.closeFind} onClick={close} />
    </div>
  );
}

/** Load all messages of the branch; whether they are here. */
function useWhole(chat: Chat): Signal<boolean> {
  const loaded = useSignal(false);
  useEffect(() => {
    void load(chat, chat.branch.peek()).then(() => (loaded.value = true)).catch(() => {});
  }, [chat]);
  return loaded;
}

/** The messages that hold what is sought, from the oldest on. */
function useHits(chat: Chat, query: Signal<string>, loaded: Signal<boolean>): ReadonlySignal<string[]> {
  return useComputed(() => {
    const sought = query.value.toLowerCase();
    if (!sought || !loaded.value) return [];
    return chat.branch.value.filter((id) => {
      const message = messageOf(chat, id).value;
      return message !== null && textOf(message).toLowerCase().includes(sought);
    });
  });
}

/** Paint the hits, and again when other messages are drawn. */
function usePaint(sought: string, found: ReadonlySignal<string[]>, at: Signal<number>): void {
  useEffect(() => {
    const watch = new MutationObserver(() => later());
    let timer = 0;
    const later = () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => paint(sought, found.peek()[at.peek()] ?? null), PAINT_MS);
    };
    later();
    if (scroller.now) watch.observe(scroller.now.element, { childList: true, subtree: true, characterData: true });
    return () => (clearTimeout(timer), watch.disconnect());
  }, [sought, at.value, found.value]);
  useEffect(() => unpaint, []);
}

function textOf(message: { content: string; thinking: string; files?: { name: string; text: string }[] }): string {
  return [message.content, ...(message.files ?? []).map((file) => file.name)].join("\n");
}

/** Highlight what is sought in the messages that are drawn; the hit at hand stands out. */
function paint(sought: string, now: string | null): void {
  if (!("highlights" in CSS)) return;
  unpaint();
  if (!sought || !scroller.now) return;
  const [all, at] = [new Highlight(), new Highlight()];
  const walk = document.createTreeWalker(scroller.now.element, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const text = node.nodeValue!.toLowerCase();
    for (let from = text.indexOf(sought); from >= 0; from = text.indexOf(sought, from + sought.length)) {
      if (from + sought.length > node.nodeValue!.length) break; // lower case may be longer
      const range = new Range();
      range.setStart(node, from);
      range.setEnd(node, from + sought.length);
      const article = node.parentElement?.closest<HTMLElement>("[data-id]");
      (article?.dataset["id"] === now ? at : all).add(range);
    }
  }
  CSS.highlights.set("found", all);
  CSS.highlights.set("found-now", at);
}

function unpaint(): void {
  if (!("highlights" in CSS)) return;
  CSS.highlights.delete("found");
  CSS.highlights.delete("found-now");
}
