// How far each route is from renting answers to owning the model that gives them: rented, teaching, measured, owned.
import type { OwnModel } from "../../api/types";
import { whole } from "../../parts/numbers";
import { shown } from "../../text/shown";
import { texts } from "../../texts";

const words = texts.usage.own;
const STAGES = ["rented", "teaching", "measured", "owned"] as const;

export function OwnModels({ rows }: { rows: OwnModel[] }) {
  if (!rows.length) return null;
  return (
    <section>
      <h2>{words.title}</h2>
      {rows.map((row) => (
        <Path key={row.route} row={row} />
      ))}
    </section>
  );
}

function Path({ row }: { row: OwnModel }) {
  const at = STAGES.indexOf(row.stage);
  return (
    <div class="own">
      <h3>{words.route(shown(row.route), shown(row.teacher), shown(row.student))}</h3>
      <ol class="stages">
        {STAGES.map((stage, n) => (
          <li key={stage} class={n < at ? "past" : ""} aria-current={n === at ? "step" : undefined}>
            {words.stages[stage]}
          </li>
        ))}
      </ol>
      <p class="dim small">{said(row)}</p>
    </div>
  );
}

/** What is to be known of a route where it is. */
function said(row: OwnModel): string {
  if (row.stage === "teaching") return row.running ? words.running : words.waiting;
  if (row.stage === "rented") return [words.texts(whole(row.texts), whole(row.at)), shown(row.message)].filter(Boolean).join(" ");
  const move = row.stage === "measured" && row.low !== null && row.low >= row.bar;
  return move ? `${shown(row.message)} ${words.move(row.route)}` : shown(row.message);
}
