// How much of something there is: one bar, a bar of several parts with its legend, or progress of unknown length.
export interface Part {
  label: string;
  value: number;
  tone?: "a" | "b" | "c" | "d" | "e" | "free"; // which colour of the charts
}

interface MeterProps {
  label: string;
  value: number;
  max: number;
  said?: string; // what a screen reader hears instead of the fraction
  tone?: "accent" | "warn";
}

export function Meter({ label, value, max, said, tone = "accent" }: MeterProps) {
  const share = max > 0 ? Math.min(1, Math.max(0, value / max)) : 0;
  return (
    <div
      class={`meter ${tone}`}
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={max || 1}
      aria-valuenow={Math.min(value, max || 1)}
      aria-valuetext={said ?? `${Math.round(share * 100)} %`}
    >
      <div style={{ width: `${share * 100}%` }} />
    </div>
  );
}

/** A task on its way; without `value` its length is unknown. */
export function Progress({ label, value, max, said }: { label: string; value?: number; max: number; said?: string }) {
  const share = value === undefined || max <= 0 ? undefined : Math.min(1, value / max);
  return (
    <div
      class={share === undefined ? "meter accent running" : "meter accent"}
      role="progressbar"
      aria-label={label}
      aria-valuenow={share === undefined ? undefined : Math.round(share * 100)}
      aria-valuetext={said}
    >
      <div style={{ width: `${(share ?? 0.3) * 100}%` }} />
    </div>
  );
}

/** Parts of a whole side by side, with a legend that has each one's words. `say` writes a part's amount. */
export function Stack({ label, parts, max, say }: { label: string; parts: Part[]; max: number; say: (n: number) => string }) {
  const whole = Math.max(max, parts.reduce((sum, part) => sum + part.value, 0), 1e-9);
  return (
    <figure class="stack" aria-label={label}>
      <div class="stack-bar" aria-hidden="true">
        {parts.map((part, i) => (
          <div key={part.label} class={`tone-${toneOf(part, i)}`} style={{ width: `${(part.value / whole) * 100}%` }} />
        ))}
      </div>
      <ul class="legend">
        {parts.map((part, i) => (
          <li key={part.label}>
            <span class={`swatch tone-${toneOf(part, i)}`} aria-hidden="true" />
            {part.label} <b>{say(part.value)}</b>
          </li>
        ))}
      </ul>
    </figure>
  );
}

const toneOf = (part: Part, i: number) => part.tone ?? "abcde"[i % 5]!;
