// Times of a transcript as people and players read them. Knows no route and no element.

/** A stretch of speech and what was said in it; seconds from the recording's begin. */
export interface TimedText {
  start: number;
  end: number;
  text: string;
}

const two = (n: number) => String(n).padStart(2, "0");

/** 0:07, 12:30, 1:02:03 */
export function clock(s: number): string {
  const whole = Math.floor(s);
  const [h, m] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return h ? `${h}:${two(m)}:${two(whole % 60)}` : `${m}:${two(whole % 60)}`;
}

/** SubRip's form. An arrow in a text would be read as one of times. */
export function srt(segments: readonly TimedText[]): string {
  return segments
    .map(({ start, end, text }, i) => `${i + 1}\n${stamp(start)} --> ${stamp(end)}\n${text.replaceAll("-->", "→")}\n`)
    .join("\n");
}

function stamp(s: number): string {
  const ms = Math.round(s * 1000);
  const parts = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60, Math.floor(ms / 1000) % 60].map(two);
  return `${parts.join(":")},${String(ms % 1000).padStart(3, "0")}`;
}

/** A line a segment, each with when it begins: what a model reads, and can point to. */
export const timed = (segments: readonly TimedText[]) =>
  segments.map(({ start, text }) => `[${clock(start)}] ${text}\n`).join("");

/** A line a segment. */
export const plain = (segments: readonly TimedText[]) => segments.map(({ text }) => `${text}\n`).join("");
