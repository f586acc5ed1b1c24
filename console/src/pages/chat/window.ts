// Which messages of a long chat are drawn. Heights are measured where a message was drawn and estimated elsewhere, from
// its length. Knows numbers; knows no element.
const OVERSCAN = 900; // pixels drawn above and below what is seen
const LINE = 25.6; // of the text, in pixels
const FRAME = 72; // a message's padding and its row of buttons

export interface Item {
  id: string;
  chars: number;
}

export class Heights {
  private measured = new Map<string, number>();
  private tops: number[] = [0]; // tops[i]: where item i begins; the last: the whole height
  private items: readonly Item[] = [];

  constructor(public perLine = 90) {}

  of(item: Item): number {
    return this.measured.get(item.id) ?? FRAME + LINE * Math.max(1, Math.ceil(item.chars / this.perLine));
  }

  layout(items: readonly Item[]): void {
    this.items = items;
    const tops = new Array<number>(items.length + 1);
    tops[0] = 0;
    for (let i = 0; i < items.length; i++) tops[i + 1] = tops[i]! + this.of(items[i]!);
    this.tops = tops;
  }

  /** Note a measured height; whether it was news. */
  measure(id: string, height: number): boolean {
    const before = this.measured.get(id);
    if (before !== undefined && Math.abs(before - height) < 0.5) return false;
    this.measured.set(id, height);
    return true;
  }

  /** Forget all: the width has changed. */
  clear(perLine: number): void {
    this.perLine = perLine;
    this.measured.clear();
    this.layout(this.items);
  }

  top(index: number): number {
    return this.tops[Math.min(index, this.tops.length - 1)]!;
  }

  get total(): number {
    return this.tops.at(-1)!;
  }

  /** The item at a position. */
  at(y: number): number {
    let low = 0;
    let high = this.items.length - 1;
    while (low < high) {
      const mid = (low + high + 1) >> 1;
      if (this.tops[mid]! <= y) low = mid;
      else high = mid - 1;
    }
    return Math.max(0, low);
  }

  /** First and one past the last item to draw for what is seen. */
  drawn(scrolled: number, seen: number): [number, number] {
    return [this.at(scrolled - OVERSCAN), Math.min(this.items.length, this.at(scrolled + seen + OVERSCAN) + 1)];
  }
}
