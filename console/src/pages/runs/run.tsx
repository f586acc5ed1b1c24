// One run: its curves, what was measured before and after, its receipt in full. All of it as the run wrote it.
import { useSignal } from "@preact/signals";
import type { TrainingReceipt } from "../../api/types";
import { Chart } from "../../parts/chart";
import { useLoaded } from "../../parts/loaded";
import { duration } from "../../parts/numbers";
import { Loaded, Page } from "../../parts/page";
import { to } from "../../parts/router";
import { Table, type Column } from "../../parts/table";
import { texts } from "../../texts";
import { type BeforeAfter, measured, parts, said, titled } from "./receipt";

const words = texts.runs;
const FIRST = ["loss", "test_loss", "reward", "score", "passed", "mismatch", "divergence", "margin", "accuracy", "kl"];
const MOST_ROWS = 40; // of a part; a quantised model's tensors are hundreds

export function Run({ id }: { id: string }) {
  const found = useLoaded<TrainingReceipt>(`/console/api/training/${encodeURIComponent(id)}`);
  const row = found.value?.row;
  return (
    <Page
      title={row?.name ?? texts.pages.runs}
      lead={
        <>
          <a href={to("runs")}>{words.all}</a>
          {row && ` · ${[row.verb, row.base, row.made_at.slice(0, 16).replace("T", " "), row.cpu_seconds && words.cpuTime(duration(row.cpu_seconds))].filter(Boolean).join(" · ")}`}
        </>
      }
    >
      <Loaded of={found}>{(value) => <Receipt of={value} />}</Loaded>
    </Page>
  );
}

function Receipt({ of }: { of: TrainingReceipt }) {
  const receipt = of.receipt ?? { inputs: of.inputs ?? {} };
  const { pairs, facts } = measured(receipt);
  return (
    <>
      {of.row.trouble && <p class="badge bad">{of.row.trouble}</p>}
      <Curves curves={of.curves} bad={of.bad_lines} />
      {(pairs.length > 0 || facts.length > 0) && (
        <section class="measured">
          <h2>{words.beforeAfter}</h2>
          {pairs.length > 0 && <Table caption={words.beforeAfter} columns={PAIRS} rows={pairs} rowKey={(row) => row.what} />}
          <Facts rows={facts} />
        </section>
      )}
      <div class="parts">
        {parts(receipt).map(([part, rows]) => (
          <section key={part} class="card">
            <h2>{part}</h2>
            <Facts rows={rows.slice(0, MOST_ROWS)} />
            {rows.length > MOST_ROWS && <p class="dim small">{words.moreRows(rows.length - MOST_ROWS)}</p>}
          </section>
        ))}
      </div>
      <Raw receipt={receipt} />
    </>
  );
}

const PAIRS: Column<BeforeAfter>[] = [
  { key: "what", title: words.measured, cell: (row) => <strong>{row.what}</strong> },
  { key: "before", title: words.before, end: true, cell: (row) => said(row.before) },
  { key: "after", title: words.after, end: true, cell: (row) => said(row.after) },
  {
    key: "change",
    title: words.change,
    end: true,
    cell: (row) => `${row.after >= row.before ? "+" : "−"}${said(Math.abs(row.after - row.before))}`,
  },
];

function Curves({ curves, bad }: { curves: TrainingReceipt["curves"]; bad: number }) {
  const all = useSignal(false);
  const names = Object.keys(curves).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const first = names.filter((name) => rank(name) < FIRST.length);
  const shown = all.value || first.length === 0 ? names : first;
  if (!names.length) return null;
  return (
    <section>
      <h2>{words.curves}</h2>
      <div class="curves">
        {shown.map((name) => (
          <Chart
            key={name}
            label={titled(name)}
            x={curves[name]!.map(([step]) => step)}
            values={[curves[name]!.map(([, value]) => value)]}
            series={[{ label: words.latest, tone: rank(name) % 2 ? "c" : "a" }]}
            say={(n) => said(Number(n.toPrecision(4)))}
            sayX={(step) => words.step(step)}
          />
        ))}
      </div>
      {shown.length < names.length && (
        <button type="button" class="button quiet" onClick={() => (all.value = true)}>
          {words.moreCurves(names.length - shown.length)}
        </button>
      )}
      {bad > 0 && <p class="dim small">{words.badLines(bad)}</p>}
    </section>
  );
}

/** loss before reward before mismatch; those with a suffix after the plain one. */
function rank(name: string): number {
  const exact = FIRST.indexOf(name);
  if (exact >= 0) return exact;
  const near = FIRST.findIndex((first) => name.startsWith(`${first}_`) || name.endsWith(`_${first}`));
  return near >= 0 ? near + 0.5 : FIRST.length;
}

function Facts({ rows }: { rows: [string, string][] }) {
  if (!rows.length) return null;
  return (
    <dl class="facts">
      {rows.map(([name, value], i) => (
        <>
          <dt key={`t${i}`}>{name}</dt>
          <dd key={`d${i}`}>{value}</dd>
        </>
      ))}
    </dl>
  );
}

function Raw({ receipt }: { receipt: Record<string, unknown> }) {
  const open = useSignal(false);
  return (
    <details class="raw" onToggle={(e) => (open.value = e.currentTarget.open)}>
      <summary>{words.raw}</summary>
      {open.value && <pre tabIndex={0}>{JSON.stringify(receipt, null, 2)}</pre>}
    </details>
  );
}
