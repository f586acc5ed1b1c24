// Runs of adapt and results of eval, newest first; one of them when the address names it.
import { useSignal } from "@preact/signals";
import type { EvalRow, TrainingList, TrainingRow } from "../../api/types";
import { Button } from "../../parts/button";
import { useLoaded } from "../../parts/loaded";
import { Progress } from "../../parts/meter";
import { duration, short, whole } from "../../parts/numbers";
import { Empty, Loaded, Page } from "../../parts/page";
import { place, to } from "../../parts/router";
import { Table, type Column } from "../../parts/table";
import { Tabs } from "../../parts/tabs";
import { texts } from "../../texts";
import { Paired } from "./paired";
import { Run } from "./run";
import "./runs.css";

const words = texts.runs;
const TONES = { done: "good", running: "", stopped: "warn", damaged: "bad" } as const;

export default function Runs() {
  const id = place.value.rest[0];
  return id ? <Run key={id} id={id} /> : <List />;
}

function List() {
  const list = useLoaded<TrainingList>("/console/api/training");
  const tab = useSignal("runs");
  return (
    <Page
      title={texts.pages.runs}
      lead={words.lead}
      actions={
        <Button icon="again" onClick={list.again}>
          {words.refresh}
        </Button>
      }
    >
      <Loaded of={list}>
        {(found) => (
          <Tabs
            label={texts.pages.runs}
            open={tab.value}
            onOpen={(key) => (tab.value = key)}
            tabs={[
              { key: "runs", title: words.training, count: found.runs.length },
              { key: "evals", title: words.evals, count: found.evals.length },
            ]}
          >
            {tab.value === "runs" ? <Training rows={found.runs} /> : <Evals rows={found.evals} />}
          </Tabs>
        )}
      </Loaded>
    </Page>
  );
}

const RUNS: Column<TrainingRow>[] = [
  {
    key: "name",
    title: words.run,
    value: (row) => row.name,
    cell: (row) => (
      <div class="run-name">
        <a href={to("runs", row.id)}>{row.name}</a>
        {row.path && <small>{row.path}</small>}
      </div>
    ),
  },
  { key: "verb", title: words.verb, value: (row) => row.verb, cell: (row) => row.verb },
  { key: "base", title: words.base, value: (row) => row.base, cell: (row) => row.base },
  {
    key: "state",
    title: words.state,
    value: (row) => row.state,
    cell: (row) => (
      <span class={`badge ${TONES[row.state]}`} title={row.trouble || undefined}>
        {words.states[row.state]}
      </span>
    ),
  },
  { key: "steps", title: words.steps, end: true, value: (row) => row.step, cell: (row) => <Steps row={row} /> },
  {
    key: "cpu",
    title: words.cpu,
    end: true,
    value: (row) => row.cpu_seconds,
    cell: (row) => (row.cpu_seconds ? duration(row.cpu_seconds) : null),
  },
  { key: "made", title: words.made, end: true, value: (row) => row.made_at, cell: (row) => row.made_at.slice(0, 16).replace("T", " ") },
];

function Steps({ row }: { row: TrainingRow }) {
  if (!row.steps) return null;
  if (row.state === "done") return <>{whole(row.step)}</>;
  return (
    <span class="steps">
      <Progress label={words.steps} value={row.step} max={row.steps} /> {`${whole(row.step)}/${whole(row.steps)}`}
    </span>
  );
}

function Training({ rows }: { rows: TrainingRow[] }) {
  if (!rows.length)
    return (
      <Empty icon="runs" title={words.none}>
        <p>{words.noneText}</p>
        <code>freehold finetune --help</code>
      </Empty>
    );
  return (
    <Table caption={words.training} columns={RUNS} rows={rows} rowKey={(row) => row.id} sort={{ key: "made", down: true }} />
  );
}

function Evals({ rows }: { rows: EvalRow[] }) {
  const chosen = useSignal<string[]>([]);
  if (!rows.length)
    return (
      <Empty icon="runs" title={words.noEvals}>
        <p>{words.noEvalsText}</p>
        <code>freehold eval --help</code>
      </Empty>
    );
  const choose = (id: string, on: boolean) => {
    const others = chosen.value.filter((other) => other !== id);
    chosen.value = on ? [...others, id].slice(-2) : others;
  };
  const columns: Column<EvalRow>[] = [
    {
      key: "pick",
      title: words.pick,
      title_hidden: true,
      cell: (row) => (
        <input
          type="checkbox"
          aria-label={words.compareThis(row.name)}
          checked={chosen.value.includes(row.id)}
          disabled={row.state !== "done"}
          onChange={(e) => choose(row.id, e.currentTarget.checked)}
        />
      ),
    },
    { key: "name", title: words.eval, value: (row) => row.name, cell: (row) => <strong title={row.path ?? undefined}>{row.name}</strong> },
    { key: "model", title: texts.model, value: (row) => row.model, cell: (row) => row.model },
    {
      key: "tasks",
      title: words.tasks,
      cell: (row) =>
        row.state === "done" ? (
          row.tasks.map((task) => `${task.task} ${short(task.value)} ${task.metric} (${whole(task.items)})`).join(", ")
        ) : (
          <span class="badge bad">{row.trouble || words.states.damaged}</span>
        ),
    },
    { key: "at", title: words.made, end: true, value: (row) => row.at, cell: (row) => row.at.slice(0, 16).replace("T", " ") },
  ];
  const [one, other] = chosen.value;
  return (
    <>
      <p class="dim small pick">{words.pickTwo}</p>
      <Table caption={words.evals} columns={columns} rows={rows} rowKey={(row) => row.id} sort={{ key: "at", down: true }} />
      {one && other && <Paired one={one} other={other} />}
    </>
  );
}
