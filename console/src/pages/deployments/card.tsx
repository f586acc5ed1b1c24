// One deployment: what it runs, its replicas with their logs, and roll and stop, which are asked about first.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { post } from "../../api/client";
import { Button } from "../../parts/button";
import { ask, Dialog } from "../../parts/dialog";
import { notify, notifyError, saying } from "../../parts/notice";
import { bytes, duration, range, rate, whole } from "../../parts/numbers";
import { Table, type Column } from "../../parts/table";
import { texts } from "../../texts";
import type { Deployment, Replica, ReplicaState } from "./rows";

const words = texts.deployments;
const TONES: Record<ReplicaState, string> = {
  ready: "good",
  starting: "",
  probing: "",
  draining: "warn",
  waiting: "warn",
  stopped: "",
  failed: "bad",
};

export function DeploymentCard({ row }: { row: Deployment }) {
  const busy = useSignal(false);
  const log = useSignal<number | null>(null);
  const doing = async (question: Parameters<typeof ask>[0], path: string, done: string) => {
    if (!(await ask(question))) return;
    busy.value = true;
    try {
      await post(path, { name: row.name });
      notify({ text: done });
    } catch (e) {
      notifyError(e);
    }
    busy.value = false;
  };
  const restart = () =>
    doing(
      { title: words.restartTitle(row.name), text: words.restartText, action: words.restart },
      "/admin/deployments/restart",
      words.restarted(row.name),
    );
  const stop = () =>
    doing(
      { title: words.stopTitle(row.name), text: words.stopText, action: words.stop, danger: true },
      "/admin/deployments/stop",
      words.stopped(row.name),
    );
  return (
    <section class="card deployment" aria-label={row.name}>
      <header>
        <div>
          <h2>
            {row.name} <span class={row.ready ? "badge good" : "badge warn"}>{row.ready ? words.ready : words.notReady}</span>
            {row.rolling && <span class="badge">{words.rolling(row.rolling)}</span>}
          </h2>
          <p class="dim small">{about(row)}</p>
        </div>
        {!row.plan.attached && (
          <div class="actions">
            <Button icon="again" busy={busy.value} onClick={() => void restart()}>
              {words.restart}
            </Button>
            <Button icon="stop" kind="danger" busy={busy.value} onClick={() => void stop()}>
              {words.stop}
            </Button>
          </div>
        )}
      </header>
      <Table
        caption={words.replicasOf(row.name)}
        columns={columns((number) => (log.value = number))}
        rows={row.replicas}
        rowKey={(replica) => String(replica.number)}
      />
      <p class="dim small">{counted(row)}</p>
      {row.plan.notes.map((note) => (
        <p key={note} class="dim small">
          {note}
        </p>
      ))}
      {log.value !== null && <Log name={row.name} replica={log.value} onClose={() => (log.value = null)} />}
    </section>
  );
}

function about({ plan, fallback }: Deployment): string {
  return [
    `${plan.engine} ${plan.version}`.trim(),
    words.context(whole(plan.context)),
    words.streams(plan.streams),
    plan.decode && words.expected(range(plan.decode.low, plan.decode.high, rate)),
    plan.attached && words.attached(plan.attached),
    fallback && words.fallback(fallback),
  ]
    .filter(Boolean)
    .join(" · ");
}

function counted(row: Deployment): string {
  return words.counted(whole(row.requests), whole(row.resumed), whole(row.retried), whole(row.cut));
}

function columns(open: (replica: number) => void): Column<Replica>[] {
  return [
    { key: "number", title: words.replica, cell: (r) => <strong>{r.number}</strong> },
    {
      key: "state",
      title: words.state,
      cell: (r) => (
        <span>
          <span class={`badge ${TONES[r.state]}`}>{words.states[r.state]}</span> <small class="dim">{r.phase}</small>
        </span>
      ),
    },
    { key: "since", title: words.since, end: true, cell: (r) => duration(Math.max(1, Math.round(r.since_s))) },
    { key: "flight", title: words.inFlight, end: true, cell: (r) => whole(r.in_flight) },
    { key: "restarts", title: words.restarts, end: true, cell: (r) => whole(r.restarts) },
    { key: "memory", title: words.memory, end: true, cell: (r) => (r.memory_bytes ? bytes(r.memory_bytes) : null) },
    { key: "said", title: words.death, cell: (r) => (r.said ? <span class="small">{r.said}</span> : null) },
    {
      key: "log",
      title: words.log,
      title_hidden: true,
      end: true,
      cell: (r) => (
        <Button kind="quiet" icon="file" aria-label={words.logOf(r.number)} onClick={() => open(r.number)}>
          {words.log}
        </Button>
      ),
    },
  ];
}

function Log({ name, replica, onClose }: { name: string; replica: number; onClose: () => void }) {
  const lines = useSignal<string[] | null>(null);
  const error = useSignal("");
  const read = async () => {
    try {
      error.value = "";
      lines.value = (await post<{ lines: string[] }>("/admin/deployments/log", { name, replica })).lines;
    } catch (e) {
      error.value = saying(e);
    }
  };
  useEffect(() => void read(), []);
  return (
    <Dialog
      wide
      title={words.logTitle(name, replica)}
      onClose={onClose}
      actions={
        <Button icon="again" onClick={() => void read()}>
          {words.refresh}
        </Button>
      }
    >
      <pre class="log" tabIndex={0}>
        {error.value || (lines.value?.length ? lines.value.join("\n") : words.noLog)}
      </pre>
    </Dialog>
  );
}
