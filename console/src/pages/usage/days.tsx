// A bar a day: tokens written, with the day's cost in its words. Drawn by widths alone.
import type { LedgerSum } from "../../api/types";
import { whole } from "../../parts/numbers";
import { texts } from "../../texts";

const words = texts.usage;

export function Days({ rows, say }: { rows: LedgerSum[]; say: (nano: number) => string }) {
  if (rows.length < 2) return null;
  const days = [...rows].sort((a, b) => (a.day ?? "").localeCompare(b.day ?? ""));
  const most = Math.max(...days.map((day) => day.prompt + day.completion), 1);
  return (
    <section>
      <h2>{words.byDay}</h2>
      <ul class="days" aria-label={words.byDay}>
        {days.map((day) => {
          const said = words.day(day.day ?? "", whole(day.prompt + day.completion), say(day.nano));
          return (
            <li key={day.day} title={said}>
              <div class="prompt" style={{ height: `${(day.prompt / most) * 100}%` }} />
              <div class="completion" style={{ height: `${(day.completion / most) * 100}%` }} />
              <span class="unseen">{said}</span>
            </li>
          );
        })}
      </ul>
      <p class="day-ends">
        <span>{days[0]!.day}</span>
        <span class="legend">
          <span>
            <span class="swatch tone-c" />
            {words.prompt}
          </span>
          <span>
            <span class="swatch tone-a" />
            {words.completion}
          </span>
        </span>
        <span>{days.at(-1)!.day}</span>
      </p>
    </section>
  );
}
