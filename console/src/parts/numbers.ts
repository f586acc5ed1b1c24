// Numbers as people read them. One rule for each kind, so that no two pages write the same amount differently.
import { texts } from "../texts";

const THIN = "\u202f"; // a space that does not break a line between a number and its unit

/** 1,234 */
export const whole = (n: number) => Math.round(n).toLocaleString("en-US");

/** Three significant digits, no more: 0.123, 1.23, 12.3, 123, 1,230. */
export function short(n: number): string {
  if (n === 0) return "0";
  const size = Math.abs(n);
  if (size >= 100) return whole(n);
  return n.toLocaleString("en-US", { maximumSignificantDigits: size < 10 ? 2 : 3 });
}

const BYTES = ["bytes", "kB", "MB", "GB", "TB"];

/** Bytes in powers of 1,000, as disks and the CLI count: 1.24 GB. */
export function bytes(n: number): string {
  let unit = 0;
  while (Math.abs(n) >= 999.5 && unit < BYTES.length - 1) {
    n /= 1000;
    unit++;
  }
  const digits = unit === 0 || n >= 100 ? 0 : n >= 10 ? 1 : 2;
  return `${n.toLocaleString("en-US", { maximumFractionDigits: digits })}${THIN}${BYTES[unit]}`;
}

/** 12.3 tok/s */
export const rate = (n: number) => `${short(n)}${THIN}tok/s`;

/** 480 ms, 2.4 s, 3 min 20 s, 2 h 5 min, 3 d 4 h */
export function duration(s: number): string {
  if (s < 0.9995) return `${short(s * 1000)}${THIN}ms`;
  if (s < 60) return `${short(s)}${THIN}s`;
  const steps: [number, string, number, string][] = [
    [60, "min", 1, "s"],
    [3600, "h", 60, "min"],
    [86_400, "d", 3600, "h"],
  ];
  const [big, bigName, small, smallName] = steps.findLast(([size]) => s >= size)!;
  const rounded = Math.round(s / small) * small;
  const rest = Math.round((rounded % big) / small);
  const first = `${Math.floor(rounded / big)}${THIN}${bigName}`;
  return rest ? `${first} ${rest}${THIN}${smallName}` : first;
}

/** US dollars; amounts below a cent keep two digits that say something. */
export function money(n: number): string {
  if (n === 0) return "$0";
  const size = Math.abs(n);
  const digits = size >= 100 ? 0 : size >= 0.01 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(size)));
  return `${n < 0 ? "−" : ""}$${size.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

/** "12 to 15 tok/s": both ends in one unit where they are written alike; one number where they are equal. */
export function range(low: number, high: number, say: (n: number) => string): string {
  const [from, until] = [say(low), say(high)];
  if (from === until) return from;
  const unit = until.match(/[\s\u202f][^\s\d]+$/)?.[0] ?? "";
  return unit && from.endsWith(unit) ? `${from.slice(0, -unit.length)} to ${until}` : `${from} to ${until}`;
}

/** 0.123 is 12 % */
export const percent = (share: number) => `${short(share * 100)}${THIN}%`;

/** "just now", "5 min ago", "3 h ago", then the day. `at` in seconds since 1970. */
export function ago(at: number, now = Date.now() / 1000): string {
  const s = Math.max(0, now - at);
  if (s < 45) return texts.parts.justNow;
  if (s < 3600) return texts.parts.minutesAgo(Math.max(1, Math.round(s / 60)));
  if (s < 86_400) return texts.parts.hoursAgo(Math.round(s / 3600));
  return day(at);
}

/** 3 March 2026 */
export function day(at: number): string {
  return new Date(at * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
}
