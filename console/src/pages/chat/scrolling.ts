// What of a conversation is drawn and where the reader is: at its end, which is followed, or at a message, which stays in
// its place while heights above it settle. Knows two elements and positions; knows no text.
import { type ReadonlySignal, signal } from "@preact/signals";
import type { RefObject } from "preact";
import { Heights, type Item } from "./window";

const NEAR = 48; // pixels from the end that still count as the end

type Box = RefObject<HTMLDivElement | null>;

export class Scrolling {
  readonly heights = new Heights();
  readonly range = signal<[number, number]>([0, 0]);
  readonly atEnd = signal(true);
  private last = 0; // where it was scrolled to
  private place: { id: string; at: number } | null = null; // the first message seen, and where in the whole

  /** `outer` scrolls; `inner` has the drawn messages as children, and room for the others as its padding. */
  constructor(
    private readonly outer: Box,
    private readonly inner: Box,
    private readonly items: ReadonlySignal<readonly Item[]>,
  ) {}

  /** Lay the messages out anew; at the end, draw those there. */
  layout(): void {
    this.heights.layout(this.items.value);
    if (this.atEnd.peek()) this.draw(this.endRange());
  }

  /** Note where the reader is, and draw what is near. */
  readonly scrolled = (): void => {
    const box = this.outer.current;
    if (!box) return; // an observer's last word, after the log has gone
    // Text that came since the scroll moves the end away; only the reader, who goes up, leaves it.
    const up = box.scrollTop < this.last;
    this.last = box.scrollTop;
    this.atEnd.value = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR || (this.atEnd.peek() && !up);
    this.remember();
    this.draw(this.heights.drawn(box.scrollTop, box.clientHeight));
  };

  /** Measure what is drawn; put the reader back where they were. */
  readonly settle = (): void => {
    const box = this.outer.current;
    if (!box || !this.inner.current) return;
    if (this.measure()) {
      this.heights.layout(this.items.peek());
      this.pad();
    }
    if (this.atEnd.peek()) this.follow(box);
    else this.stay(box);
    // What shrinks above (a question that was answered) brings messages into view without any scroll.
    if (!this.atEnd.peek()) this.draw(this.heights.drawn(box.scrollTop, box.clientHeight));
  };

  /** Give the messages that are not drawn their room. */
  pad(): void {
    const [first, last] = this.range.peek();
    const { heights } = this;
    this.inner.current!.style.paddingTop = `${heights.top(first)}px`;
    this.inner.current!.style.paddingBottom = `${heights.total - heights.top(last)}px`;
  }

  /** Settle whenever a message or the window changes its size; returns what ends that. */
  watch(): () => void {
    const [box, inner] = [this.outer.current!, this.inner.current!];
    const sizes = new ResizeObserver(this.settle);
    const children = new MutationObserver((seen) => {
      for (const { addedNodes, removedNodes } of seen) {
        for (const each of addedNodes) if (each instanceof Element) sizes.observe(each);
        for (const each of removedNodes) if (each instanceof Element) sizes.unobserve(each);
      }
    });
    for (const each of inner.children) sizes.observe(each);
    children.observe(inner, { childList: true });
    let width = box.clientWidth;
    const frame = new ResizeObserver(() => {
      if (this.outer.current !== box) return;
      if (box.clientWidth !== width) {
        width = box.clientWidth;
        this.heights.clear(Math.min(736, width - 32) / 8.2);
      }
      if (this.atEnd.peek()) this.follow(box);
      this.scrolled();
    });
    frame.observe(box);
    return () => (sizes.disconnect(), children.disconnect(), frame.disconnect());
  }

  toEnd(): void {
    this.atEnd.value = true;
    this.draw(this.endRange());
    requestAnimationFrame(() => this.outer.current?.scrollTo(0, this.outer.current.scrollHeight));
  }

  toMessage(id: string): void {
    const index = this.items.peek().findIndex((item) => item.id === id);
    if (index < 0) return;
    this.atEnd.value = false;
    this.place = null;
    this.outer.current!.scrollTop = Math.max(0, this.heights.top(index) - 80);
    this.scrolled();
    requestAnimationFrame(() => {
      this.drawn(id)?.scrollIntoView({ block: "start" });
      this.scrolled();
    });
  }

  /** Scroll to the end, and note it: text that turned out less high than it was estimated is not a reader who goes up. */
  private follow(box: HTMLElement): void {
    box.scrollTop = box.scrollHeight;
    this.last = box.scrollTop;
  }

  private draw(now: [number, number]): void {
    const before = this.range.peek();
    if (now[0] !== before[0] || now[1] !== before[1]) this.range.value = now;
  }

  private endRange(): [number, number] {
    const seen = this.outer.current?.clientHeight ?? innerHeight;
    return this.heights.drawn(this.heights.total - seen, seen);
  }

  private remember(): void {
    const top = this.outer.current!.getBoundingClientRect().top;
    const from = this.inner.current!.getBoundingClientRect().top;
    for (const each of this.inner.current!.children) {
      const at = each.getBoundingClientRect();
      if (at.bottom > top) return void (this.place = { id: (each as HTMLElement).dataset["id"] ?? "", at: at.top - from });
    }
  }

  /** Note the heights of what is drawn; whether one was news. */
  private measure(): boolean {
    let news = false;
    for (const each of this.inner.current!.children as Iterable<HTMLElement> & HTMLCollection) {
      const id = (each as HTMLElement).dataset["id"];
      if (id) news = this.heights.measure(id, (each as HTMLElement).getBoundingClientRect().height) || news;
    }
    return news;
  }

  /** Scroll by how much the message moved within the whole: what the reader scrolled meanwhile is not taken back. */
  private stay(box: HTMLElement): void {
    const held = this.place && this.drawn(this.place.id);
    if (!held) return;
    const at = held.getBoundingClientRect().top - this.inner.current!.getBoundingClientRect().top;
    if (Math.abs(at - this.place!.at) >= 1) box.scrollTop += at - this.place!.at;
    this.place!.at = at;
  }

  private drawn(id: string): Element | null {
    return this.inner.current?.querySelector(`[data-id="${CSS.escape(id)}"]`) ?? null;
  }
}
