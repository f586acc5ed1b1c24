// The microphone: what it hears until it is ended, as a WAV file of one channel and 16 bits that is made here. No codec
// is asked for, so every browser gives the same form. One recording at a time; knows no element and no route.
import { batch, signal } from "@preact/signals";
import { texts } from "../../../texts";
import worklet from "./capture?worker&url";

const words = texts.chat.ears;
const RATE = 16_000; // as speech models hear
const HEADER = 44; // bytes
export const LIMIT_S = 600; // 19 MB

/** `asking`: the browser asks its user whether this page may listen. */
export const microphone = signal<"off" | "asking" | "on">("off");
/** How long the recording is. */
export const seconds = signal(0);
/** The loudest sample of the last block, 0 to 1. */
export const level = signal(0);

interface Open {
  stream: MediaStream;
  context: AudioContext;
  blocks: Int16Array<ArrayBuffer>[];
  done: (file: File, seconds: number, full: boolean) => void;
}

interface Block {
  samples: Int16Array<ArrayBuffer>;
  peak: number;
}

let open: Open | null = null;
let turns = 0; // an answer of the browser's user that comes after the end of its turn counts no more

/** Listen from now on. `done` gets the file once it is ended; `full`: by its limit. Throws Error with why not. */
export async function record(done: Open["done"]): Promise<void> {
  const turn = ++turns;
  batch(() => {
    microphone.value = "asking";
    seconds.value = level.value = 0;
  });
  let stream: MediaStream | null = null;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: { ideal: 1 } } });
    const now = { stream, blocks: [], done };
    const context = turn === turns ? await listen(now) : null;
    if (context && turn === turns) {
      open = { ...now, context };
      microphone.value = "on";
      return;
    }
    void context?.close();
  } catch {
    if (turn !== turns) return;
    microphone.value = "off";
    throw new Error(words.refused);
  } finally {
    if (open?.stream !== stream) stream?.getTracks().forEach((track) => track.stop());
  }
}

/** Have the audio thread send what a stream brings. A browser that resamples no microphone records at its own rate. */
async function listen(now: Omit<Open, "context">): Promise<AudioContext> {
  try {
    return await connected(now, { sampleRate: RATE });
  } catch {
    return connected(now, {});
  }
}

async function connected({ stream, blocks }: Omit<Open, "context">, options: AudioContextOptions): Promise<AudioContext> {
  const context = new AudioContext(options);
  try {
    await context.audioWorklet.addModule(worklet);
    const node = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }: MessageEvent<Block>) => take(blocks, data, context.sampleRate);
    // Its output is silence; a node that leads nowhere may not be run.
    context.createMediaStreamSource(stream).connect(node).connect(context.destination);
    stream.getAudioTracks()[0]!.onended = finish; // it was pulled out
    await context.resume();
    return context;
  } catch (e) {
    void context.close();
    throw e;
  }
}

function take(blocks: Open["blocks"], { samples, peak }: Block, rate: number): void {
  if (open && open.blocks !== blocks) return; // of one that was ended
  blocks.push(samples);
  batch(() => {
    seconds.value = (blocks.length * samples.length) / rate;
    level.value = peak;
  });
  if (seconds.peek() >= LIMIT_S) finish();
}

/** End the recording and hand it out. */
export function finish(): void {
  const now = close();
  if (!now) return;
  const file = new File([wav(now.blocks, now.context.sampleRate)], words.recorded, { type: "audio/wav" });
  now.done(file, seconds.peek(), seconds.peek() >= LIMIT_S);
}

/** End the recording and drop it. */
export function cancel(): void {
  turns++;
  close();
}

function close(): Open | null {
  const now = open;
  open = null;
  microphone.value = "off";
  now?.stream.getTracks().forEach((track) => track.stop());
  void now?.context.close();
  return now;
}

/** Samples as a WAV file: a header of 44 bytes, then the samples as they are. */
export function wav(blocks: Int16Array<ArrayBuffer>[], rate: number): Blob {
  const bytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const head = new DataView(new ArrayBuffer(HEADER));
  const text = (at: number, name: string) => [...name].forEach((char, i) => head.setUint8(at + i, char.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, HEADER - 8 + bytes, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); // bytes of what describes the samples
  head.setUint16(20, 1, true); // integers
  head.setUint16(22, 1, true); // channels
  head.setUint32(24, rate, true);
  head.setUint32(28, rate * 2, true); // bytes a second
  head.setUint16(32, 2, true); // bytes of a sample of all channels
  head.setUint16(34, 16, true); // bits
  text(36, "data");
  head.setUint32(40, bytes, true);
  return new Blob([head, ...blocks], { type: "audio/wav" });
}
