// Work that may wait: done in slices between frames, so that no task is long. Knows nothing of what it runs.

const SLICE_MS = 12;
const queue: (() => void | Promise<void>)[] = [];
let running = false;

/** Run `work` soon, after what was asked for before it. One piece of work should stay below 20 ms. */
export function later(work: () => void | Promise<void>): void {
  queue.push(work);
  if (!running) void drain();
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
