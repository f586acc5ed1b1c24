// Work that may wait: done in slices between frames, so that no task is long. Work for an element that text rushes past
// waits until the element stays near what is seen. Knows nothing of what it runs.

type Work = () => void | Promise<void>;
const SLICE_MS = 12;
const RUSH_MS = 1200; // longer than the time between two drawings of text that comes fast
const NEAR = "1000px 0px"; // above and below what is seen
const STAY_MS = 400; // 2,000 tokens a second move an element out of NEAR within that time
const queue: Work[] = [];
let running = false;
let rushes = 0; // until when text counts as coming faster than it is read
const held = new WeakMap<Element, Work>();
const timers = new WeakMap<Element, number>();
const near = new IntersectionObserver(stayed, { rootMargin: NEAR, scrollMargin: NEAR } as IntersectionObserverInit);

/** Run `work` soon, after what was asked for before it. One piece of work should stay below 20 ms. */
export function later(work: Work): void {
  queue.push(work);
  if (!running) void drain();
}

/** As `later`; of text that rushes by only for an element that stays near what is seen. The newest work counts. */
export function laterAt(node: Element, work: Work): void {
  if (performance.now() > rushes) return later(work);
  held.set(node, work);
  near.observe(node);
}

/** Say that text comes faster than it is read. */
export function rush(): void {
  rushes = performance.now() + RUSH_MS;
}

function stayed(entries: IntersectionObserverEntry[]): void {
  for (const { target, isIntersecting } of entries) {
    clearTimeout(timers.get(target));
    if (isIntersecting) timers.set(target, setTimeout(() => release(target), STAY_MS));
  }
}

function release(node: Element): void {
  near.unobserve(node);
  const work = held.get(node);
  held.delete(node);
  if (work) later(work);
}

/** Do what waits now, until a time: what is drawn together costs one frame, not one for each piece. */
export function hurry(until: number): void {
  while (queue.length > 0 && performance.now() < until) void queue.shift()!();
}

async function drain(): Promise<void> {
  running = true;
  await breath();
  let until = performance.now() + SLICE_MS;
  while (queue.length > 0) {
    const done = queue.shift()!();
    if (done) await done;
    if (performance.now() > until) {
      await breath();
      until = performance.now() + SLICE_MS;
    }
  }
  running = false;
}

/** A new task: input, frames and the network come first. */
export function breath(): Promise<void> {
  return new Promise((go) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      go();
    };
    port2.postMessage(0);
  });
}
