// The conversation: draws the messages near what is seen, keeps the reader's place while heights settle, and follows
// the answer as long as the reader is at its end. Knows positions; a message draws itself.
import { useComputed, useSignal } from "@preact/signals";
import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { IconButton } from "../../parts/button";
import { texts } from "../../texts";
import { Article, PendingArticle } from "./article";
import { type Chat, load } from "./opened";
import { pending } from "./sending";
import { Heights } from "./window";

const NEAR = 48; // pixels from the end that still count as the end
const AHEAD = 60; // messages loaded before and after those drawn

/** What other parts of the page may ask of the log. */
export interface Scroller {
  toEnd: () => void;
  toMessage: (id: string) => void;
  element: HTMLElement;
}
export const scroller: { now: Scroller | null } = { now: null };

export function Log({ chat }: { chat: Chat }) {
  const outer = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const heights = useMemo(() => new Heights(), [chat]);
  const range = useSignal<[number, number]>([0, 0]);
  const atEnd = useSignal(true);
  const place = useRef<{ id: string; at: number } | null>(null); // the first message seen, and where in the whole
  const nodes = useMemo(() => new Map<string, VNode>(), [chat]);
  const items = useComputed(() => {
    const tree = chat.tree.value.nodes;
    return chat.branch.value.map((id) => ({ id, chars: tree.get(id)?.chars ?? 0 }));
  });
  const ids = items.value;
  heights.layout(ids);
  if (atEnd.peek()) draw(endRange());
  const [first, last] = range.value;

  function draw(now: [number, number]) {
    const before = range.peek();
    if (now[0] !== before[0] || now[1] !== before[1]) range.value = now;
  }

  function endRange(): [number, number] {
    const seen = outer.current?.clientHeight ?? innerHeight;
    return heights.drawn(heights.total - seen, seen);
  }

  /** Note where the reader is, and draw what is near. */
  function scrolled() {
    const box = outer.current;
    if (!box) return; // an observer's last word, after the log has gone
    atEnd.value = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    remember();
    draw(heights.drawn(box.scrollTop, box.clientHeight));
  }

  function remember() {
    const top = outer.current!.getBoundingClientRect().top;
    const from = inner.current!.getBoundingClientRect().top;
    for (const each of inner.current!.children) {
      const at = each.getBoundingClientRect();
      if (at.bottom > top) return void (place.current = { id: (each as HTMLElement).dataset["id"] ?? "", at: at.top - from });
    }
  }

  /** Measure what is drawn; put the reader back where they were. */
  function settle() {
    const box = outer.current;
    if (!box || !inner.current) return;
    let news = false;
    for (const each of inner.current!.children as Iterable<HTMLElement> & HTMLCollection) {
      const id = (each as HTMLElement).dataset["id"];
      if (id) news = heights.measure(id, (each as HTMLElement).getBoundingClientRect().height) || news;
    }
    if (news) {
      heights.layout(items.peek());
      pad();
    }
    if (atEnd.peek()) box.scrollTop = box.scrollHeight;
    else if (place.current) {
      // By how much the message moved within the whole: what the reader scrolled meanwhile is not taken back.
      const held = inner.current.querySelector(`[data-id="${CSS.escape(place.current.id)}"]`);
      if (held) {
        const at = held.getBoundingClientRect().top - inner.current.getBoundingClientRect().top;
        if (Math.abs(at - place.current.at) >= 1) box.scrollTop += at - place.current.at;
        place.current.at = at;
      }
    }
    // What shrinks above (a question that was answered) brings messages into view without any scroll.
    if (!atEnd.peek()) draw(heights.drawn(box.scrollTop, box.clientHeight));
  }

  function pad() {
    const [a, b] = range.peek();
    inner.current!.style.paddingTop = `${heights.top(a)}px`;
    inner.current!.style.paddingBottom = `${heights.total - heights.top(b)}px`;
  }

  useLayoutEffect(() => {
    pad();
    settle();
    const near = ids.slice(Math.max(0, first - AHEAD), last + AHEAD).map((item) => item.id);
    void load(chat, near).catch(() => {}); // the page says that the server is away, and the next scroll asks again
  });

  useEffect(() => {
    const sizes = new ResizeObserver(settle);
    const watch = new MutationObserver((seen) => {
      for (const { addedNodes, removedNodes } of seen) {
        for (const each of addedNodes) if (each instanceof Element) sizes.observe(each);
        for (const each of removedNodes) if (each instanceof Element) sizes.unobserve(each);
      }
    });
    for (const each of inner.current!.children) sizes.observe(each);
    watch.observe(inner.current!, { childList: true });
    let width = outer.current!.clientWidth;
    const frame = new ResizeObserver(() => {
      const box = outer.current;
      if (!box) return;
      if (box.clientWidth !== width) {
        width = box.clientWidth;
        heights.clear(Math.min(736, width - 32) / 8.2);
      }
      if (atEnd.peek()) box.scrollTop = box.scrollHeight;
      scrolled();
    });
    frame.observe(outer.current!);
    return () => (sizes.disconnect(), watch.disconnect(), frame.disconnect());
  }, [chat]);

  useEffect(() => {
    scroller.now = {
      element: outer.current!,
      toEnd() {
        atEnd.value = true;
        draw(endRange());
        requestAnimationFrame(() => (outer.current!.scrollTop = outer.current!.scrollHeight));
      },
      toMessage(id) {
        const index = items.peek().findIndex((item) => item.id === id);
        if (index < 0) return;
        atEnd.value = false;
        place.current = null;
        outer.current!.scrollTop = Math.max(0, heights.top(index) - 80);
        scrolled();
        requestAnimationFrame(() => {
          const drawn = inner.current?.querySelector(`[data-id="${CSS.escape(id)}"]`);
          drawn?.scrollIntoView({ block: "start" });
          scrolled();
        });
      },
    };
    return () => void (scroller.now = null);
  }, [chat]);

  const drawn = ids.slice(first, last).map(({ id }) => {
    let node = nodes.get(id);
    if (!node) nodes.set(id, (node = <Article key={id} chat={chat} id={id} />));
    return node;
  });
  const waits = pending.value?.chat === chat ? pending.value : null;

  return (
    <div class="log-frame">
      <div class="log" ref={outer} onScroll={scrolled} tabIndex={0} role="log" aria-label={texts.chat.conversation} aria-live="off">
        <div class="log-inner" ref={inner}>
          {drawn}
          {waits && <PendingArticle pending={waits} />}
        </div>
      </div>
      {!atEnd.value && (
        <div class="to-end">
          <IconButton icon="down" label={texts.chat.toEnd} onClick={() => scroller.now?.toEnd()} />
        </div>
      )}
    </div>
  );
}
