// The microphone's half in the browser's audio thread: float samples become 16-bit ones, a block at a time, and the
// loudest sample of a block says how loud it is. Knows no page.

// What this thread has; the types of a page's thread do not name them.
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

const BLOCK = 1280; // samples: 80 ms at 16 kHz, so twelve looks a second at the level
const MOST = 32_767;

class Capture extends AudioWorkletProcessor {
  block = new Int16Array(BLOCK);
  filled = 0;
  peak = 0;

  process(inputs: Float32Array[][]): boolean {
    for (const sample of inputs[0]?.[0] ?? []) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.block[this.filled++] = Math.max(-1, Math.min(1, sample)) * MOST;
      if (this.filled === BLOCK) this.send();
    }
    return true;
  }

  send(): void {
    this.port.postMessage({ samples: this.block, peak: this.peak }, [this.block.buffer]);
    this.block = new Int16Array(BLOCK);
    this.filled = this.peak = 0;
  }
}

registerProcessor("capture", Capture);
