// Two evals on the same items: who won which, and whether the difference could be chance. The statistics are the server's.
import type { EvalComparison } from "../../api/types";
import { useLoaded } from "../../parts/loaded";
import { short, whole } from "../../parts/numbers";
import { Loaded } from "../../parts/page";
import { Table, type Column } from "../../parts/table";
import { texts } from "../../texts";

const words = texts.runs;
type Task = EvalComparison["tasks"][number];

export function Paired({ one, other }: { one: string; other: string }) {
  const query = new URLSearchParams({ one, other });
  const found = useLoaded<EvalComparison>(`/console/api/training/compare?${query}`);
  return (
    <section aria-live="polite">
      <h2>{words.paired}</h2>
      <Loaded of={found}>
        {(pair) => (
          <>
            <Table caption={words.paired} columns={columnsOf(pair)} rows={pair.tasks} rowKey={(t) => t.task + t.metric} />
            {pair.notes.map((note) => (
              <p key={note} class="dim small">
                {note}
              </p>
            ))}
          </>
        )}
      </Loaded>
    </section>
  );
}

function columnsOf(pair: EvalComparison): Column<Task>[] {
  return [
    { key: "task", title: words.task, cell: (t) => <strong>{`${t.task}, ${t.metric}`}</strong> },
    { key: "items", title: words.items, end: true, value: (t) => t.items, cell: (t) => whole(t.items) },
    { key: "one", title: pair.one, end: true, cell: (t) => short(t.one) },
    { key: "other", title: pair.other, end: true, cell: (t) => short(t.other) },
    { key: "wins", title: words.wins, end: true, cell: (t) => `${whole(t.wins)} : ${whole(t.losses)}` },
    { key: "difference", title: words.difference, end: true, cell: (t) => words.interval(short(t.low), short(t.high)) },
    { key: "p", title: "p", end: true, value: (t) => t.p, cell: (t) => (t.p === null ? "–" : t.p < 0.0001 ? "< 0.0001" : short(t.p)) },
  ];
}
