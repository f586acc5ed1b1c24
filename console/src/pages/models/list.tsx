// A table of models, and what the caller may do to each. Knows rows; asks nothing of the server itself.
import { me } from "../../api/me";
import type { ModelRow } from "../../api/types";
import { Button, IconButton } from "../../parts/button";
import { Menu, type MenuItem } from "../../parts/menu";
import { Progress } from "../../parts/meter";
import { bytes, duration, rate, short } from "../../parts/numbers";
import { go, to } from "../../parts/router";
import { Table, type Column } from "../../parts/table";
import { PACE_TONES } from "../../parts/tones";
import { texts } from "../../texts";
import { busy, fetchModel, load, remove, unload } from "./actions";
import { type Pull, pulls } from "./pulls";
import { fit, quality, size, VERDICT_TONES } from "./rows";
import { Plain } from "../../text";
import { shown } from "../../text/shown";

const words = texts.models;

const SIZE: Column<ModelRow> = {
  key: "bytes",
  title: words.size,
  end: true,
  value: (row) => row.bytes || null,
  cell: (row) => (row.bytes ? (row.bytes_known ? "" : "≈ ") + bytes(row.bytes) : <span class="dim">{words.unknownSize}</span>),
};

interface TableFacts {
  rows: ModelRow[];
  held: boolean;
  tab: string;
  most: number;
}

export function ModelTable({ rows, held, tab, most }: TableFacts) {
  const columns: Column<ModelRow>[] = [
    { key: "name", title: texts.model, value: (row) => row.name, cell: (row) => <Name row={row} tab={tab} /> },
    { key: "fit", title: words.fitTitle, value: (row) => row.memory, cell: (row) => <Fit row={row} /> },
    SIZE,
    {
      key: "speed",
      title: words.speed,
      value: (row) => row.decode?.mid ?? null,
      cell: (row) => <Speed row={row} />,
    },
    { key: "licence", title: words.licence, value: (row) => row.licence || null, cell: (row) => <Licence row={row} /> },
    { key: "quality", title: words.quality, value: quality, cell: (row) => <Quality row={row} /> },
    { key: "do", title: words.actions, title_hidden: true, end: true, cell: (row) => <ModelActions row={row} /> },
  ];
  const caption = held ? words.here : words.catalogue;
  return <Table caption={caption} columns={columns} rows={rows} rowKey={(row) => row.name} most={most} />;
}

function Name({ row, tab }: { row: ModelRow; tab: string }) {
  const about = [row.lab, row.country, size(row), row.quant].filter(Boolean).join(" · ");
  return (
    <div class="model-name">
      <a href={`${to("models", row.name)}?tab=${tab}`}><Plain text={row.name} /></a>
      {row.loaded && <span class="badge good">{words.loaded}</span>}
      {row.held && row.state && row.state !== "ready" && <span class="badge bad">{row.state}</span>}
      <small>{about}</small>
    </div>
  );
}

function Fit({ row }: { row: ModelRow }) {
  const { says, tone } = fit(row);
  return (
    <span class="two-lines">
      <span class={`badge ${tone}`} title={shown(row.refused || row.reason || row.needs) || undefined}>
        {says}
      </span>
    </span>
  );
}

function Speed({ row }: { row: ModelRow }) {
  if (!row.decode || !row.pace) return null;
  return (
    <span class="two-lines">
      <span class={`badge ${PACE_TONES[row.pace]}`}>{words.paces[row.pace]}</span> <small>{rate(row.decode.mid)}</small>
    </span>
  );
}

function Licence({ row }: { row: ModelRow }) {
  if (!row.licence && !row.verdict) return null;
  return (
    <span class="two-lines">
      {row.verdict && row.verdict.answer !== "conditions" && (
        <span class={`badge ${VERDICT_TONES[row.verdict.answer]}`}>{words.verdicts[row.verdict.answer]}</span>
      )}
      <small>
        <Plain text={row.licence.replaceAll(/LicenseRef-(scancode-)?/g, "")} />
      </small>
    </span>
  );
}

function Quality({ row }: { row: ModelRow }) {
  const found = quality(row);
  return found === null ? null : <span title={words.qualityOf}>{short(found)}</span>;
}

/** `full`: with words on every button, where there is room. */
export function ModelActions({ row, full }: { row: ModelRow; full?: boolean }) {
  const pulling = pulls.value[row.pull ?? row.name];
  if (pulling) return <Pulling name={row.name} pull={pulling} />;
  const can = me.value?.can ?? [];
  const working = busy.value.has(row.name);
  const chat = row.held && row.role === "generator" && row.runs && can.includes("chat");
  const items: MenuItem[] = [];
  if (row.held && can.includes("load"))
    items.push(
      row.loaded
        ? { label: words.unload, icon: "memory", onSelect: () => void unload(row) }
        : { label: words.load, icon: "memory", onSelect: () => void load(row) },
    );
  if (row.held && can.includes("delete"))
    items.push({ label: words.delete, icon: "trash", danger: true, onSelect: () => void remove(row) });
  return (
    <span class="row-actions">
      {row.pull && !row.held && can.includes("pull") && (
        <Button icon="download" kind={full ? "primary" : "plain"} onClick={() => void fetchModel(row)}>
          {words.pull}
        </Button>
      )}
      {chat && !full && (
        <IconButton icon="chat" label={words.chatWith(shown(row.name))} onClick={() => go(`${to("chat")}?model=${encodeURIComponent(row.name)}`)} />
      )}
      {working && <span class="dim small">{words.working}</span>}
      {full
        ? items.map((item) => (
            <Button key={item.label} kind={item.danger ? "danger" : "plain"} icon={item.icon!} busy={working} onClick={item.onSelect}>
              {item.label}
            </Button>
          ))
        : items.length > 0 && !working && <Menu label={words.actionsOf(shown(row.name))} items={items} />}
    </span>
  );
}

function Pulling({ name, pull }: { name: string; pull: Pull }) {
  const says =
    pull.state === "verifying"
      ? words.verifying
      : words.fetched(bytes(pull.done), pull.total ? bytes(pull.total) : "", pull.rate ? `${bytes(pull.rate)}/s` : "");
  const left = pull.state === "fetching" && pull.rate > 0 && pull.total > pull.done ? (pull.total - pull.done) / pull.rate : 0;
  return (
    <div class="pulling">
      <div>
        <Progress label={words.pulling(shown(name))} max={pull.total} said={says} {...(pull.total > 0 && { value: pull.done })} />
        <small>
          {says}
          {left > 1 && ` · ${words.left(duration(left))}`}
        </small>
      </div>
      <IconButton icon="close" label={words.cancelPull(shown(name))} onClick={pull.cancel} />
    </div>
  );
}

