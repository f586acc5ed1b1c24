// The conversation: the messages near what is seen, and a way to its end. Positions are scrolling.ts's; a message draws
// itself.
import { useComputed } from "@preact/signals";
import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { IconButton } from "../../parts/button";
import { texts } from "../../texts";
import { Article, PendingArticle } from "./article";
import { type Chat, load } from "./opened";
import { Scrolling } from "./scrolling";
import { pending } from "./sending";

const AHEAD = 60; // messages loaded before and after those drawn

/** What other parts of the page may ask of the log. */
export interface Scroller {
  toEnd: () => void;
  toMessage: (id: string) => void;
  element: HTMLElement;
}
export const scroller: { now: Scroller | null } = { now: null };

/** Keyed by its chat. */
export function Log({ chat }: { chat: Chat }) {
  const outer = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const nodes = useMemo(() => new Map<string, VNode>(), []);
  const items = useComputed(() => {
    const tree = chat.tree.value.nodes;
    return chat.branch.value.map((id) => ({ id, chars: tree.get(id)?.chars ?? 0 }));
  });
  const scrolling = useMemo(() => new Scrolling(outer, inner, items), []);
  scrolling.layout();
  const [first, last] = scrolling.range.value;

  useLayoutEffect(() => {
    scrolling.pad();
    scrolling.settle();
    const near = items.value.slice(Math.max(0, first - AHEAD), last + AHEAD).map((item) => item.id);
    void load(chat, near).catch(() => {}); // the page says that the server is away, and the next scroll asks again
  });
  useEffect(() => scrolling.watch(), []);
  useEffect(() => {
    scroller.now = {
      element: outer.current!,
      toEnd: () => scrolling.toEnd(),
      toMessage: (id) => scrolling.toMessage(id),
    };
    return () => void (scroller.now = null);
  }, []);

  const drawn = items.value.slice(first, last).map(({ id }) => {
    let node = nodes.get(id);
    if (!node) nodes.set(id, (node = <Article key={id} chat={chat} id={id} />));
    return node;
  });
  const waits = pending.value?.chat === chat ? pending.value : null;
  useEffect(() => {
    if (waits) scrolling.toEnd(); // what was just sent is seen
  }, [waits?.draft]);

  return (
    <div class="log-frame">
      <div
        class="log"
        ref={outer}
        onScroll={scrolling.scrolled}
        tabIndex={0}
        role="log"
        aria-label={texts.chat.conversation}
        aria-live="off"
      >
        <div class="log-inner" ref={inner}>
          {drawn}
          {waits && <PendingArticle pending={waits} />}
        </div>
      </div>
      {!scrolling.atEnd.value && (
        <div class="to-end">
          <IconButton icon="down" label={texts.chat.toEnd} onClick={() => scrolling.toEnd()} />
        </div>
      )}
    </div>
  );
}
