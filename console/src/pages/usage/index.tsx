// Tokens, cost and savings from the ledger and the keys' accounts, as the server sums them up. Computes no price itself.
import { useSignal } from "@preact/signals";
import type { ChatSum, LedgerSum, Savings, UsageFacts } from "../../api/types";
import { useLoaded } from "../../parts/loaded";
import { duration, money, percent, range, whole } from "../../parts/numbers";
import { Empty, Loaded, Page } from "../../parts/page";
import { Table, type Column } from "../../parts/table";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { Days } from "./days";
import { OwnModels } from "./own";
import "./usage.css";

const words = texts.usage;
const PERIODS = [1, 7, 30, 90, 365];
const dollars = (nano: number) => money(nano / 1e9);

export default function Usage() {
  const days = useSignal(30);
  const facts = useLoaded<UsageFacts>(`/console/api/usage?days=${days.value}`);
  return (
    <Page
      title={texts.pages.usage}
      lead={facts.value?.ledger ? words.leadLedger : words.lead}
      actions={
        <select
          aria-label={words.period}
          value={days.value}
          onChange={(e) => (days.value = Number(e.currentTarget.value))}
        >
          {PERIODS.map((n) => (
            <option key={n} value={n}>
              {words.days(n)}
            </option>
          ))}
        </select>
      }
    >
      <Loaded of={facts}>{(found) => <Found facts={found} />}</Loaded>
    </Page>
  );
}

function Found({ facts }: { facts: UsageFacts }) {
  const { ledger, accounts, chats, own_models } = facts;
  const used = (ledger && ledger.total.rows > 0) || (accounts && accounts.length > 0) || (chats && chats.total.answers > 0);
  if (!used)
    return (
      <>
        <Empty icon="usage" title={ledger ? words.nothing : words.none}>
          <p>{ledger ? words.nothingText : words.noneText}</p>
        </Empty>
        <OwnModels rows={own_models} />
      </>
    );
  return (
    <>
      {chats && chats.total.answers > 0 && <Chats chats={chats} />}
      {ledger && ledger.total.rows > 0 && (
        <>
          <Totals total={ledger.total} />
          <Days rows={ledger.by_day} say={dollars} />
          <OwnModels rows={own_models} />
          <Saved savings={facts.savings} error={facts.savings_error} />
          <Sums title={words.byModel} first={texts.model} name={(row) => shown(row.model ?? "")} rows={ledger.by_model} />
          <Sums title={words.byKey} first={texts.key} name={(row) => row.key || words.noKey} rows={ledger.by_key} />
          <p class="dim small prices">{words.prices}</p>
        </>
      )}
      {accounts && accounts.length > 0 && <Accounts rows={accounts} />}
    </>
  );
}

function Totals({ total }: { total: LedgerSum }) {
  const tiles: [string, string, string][] = [
    [words.requests, whole(total.rows), total.rows > total.whole ? words.unfinished(whole(total.rows - total.whole)) : ""],
    [words.prompt, whole(total.prompt), total.prompt ? words.cachedShare(percent(total.cached / total.prompt)) : ""],
    [words.completion, whole(total.completion), total.thought ? words.thought(whole(total.thought)) : ""],
    ...(total.sound_ms ? [[words.sound, duration(total.sound_ms / 1000), ""] as [string, string, string]] : []),
    [words.cost, dollars(total.nano), total.estimated ? words.estimated(dollars(total.estimated)) : ""],
    [words.firstToken, total.first_s ? duration(total.first_s) : "–", total.whole_s ? words.answers(duration(total.whole_s)) : ""],
  ];
  return (
    <dl class="tiles">
      {tiles.map(([name, value, note]) => (
        <div key={name} class="tile">
          <dt>{name}</dt>
          <dd>
            {value}
            {note && <small>{note}</small>}
          </dd>
        </div>
      ))}
    </dl>
  );
}

type Named = ChatSum & { name: string };
const CHAT_SUMS: Column<Named>[] = [
  { key: "answers", title: words.answered, end: true, value: (row) => row.answers, cell: (row) => whole(row.answers) },
  { key: "prompt", title: words.prompt, end: true, value: (row) => row.prompt, cell: (row) => whole(row.prompt) },
  { key: "completion", title: words.completion, end: true, value: (row) => row.completion, cell: (row) => whole(row.completion) },
  { key: "seconds", title: words.time, end: true, value: (row) => row.seconds, cell: (row) => duration(row.seconds) },
];

/** Tokens and seconds of the own chats, where there is no ledger. */
function Chats({ chats: { total, by_model, by_day } }: { chats: NonNullable<UsageFacts["chats"]> }) {
  const tiles: [string, string][] = [
    [words.answered, whole(total.answers)],
    [words.prompt, whole(total.prompt)],
    [words.completion, whole(total.completion)],
    [words.time, duration(total.seconds)],
  ];
  const name = (title: string): Column<Named> => ({
    key: "name",
    title,
    value: (row) => row.name,
    cell: (row) => <strong>{row.name}</strong>,
  });
  return (
    <>
      <dl class="tiles">
        {tiles.map(([name, value]) => (
          <div key={name} class="tile">
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <section>
        <h2>{words.byModel}</h2>
        <Table
          caption={words.byModel}
          columns={[name(texts.model), ...CHAT_SUMS]}
          rows={by_model.map((row) => ({ ...row, name: shown(row.model) }))}
          rowKey={(row) => row.name}
          sort={{ key: "seconds", down: true }}
        />
      </section>
      <section>
        <h2>{words.byDay}</h2>
        <Table
          caption={words.byDay}
          columns={[name(words.dayTitle), ...CHAT_SUMS]}
          rows={by_day.map((row) => ({ ...row, name: row.day }))}
          rowKey={(row) => row.name}
          sort={{ key: "name", down: true }}
        />
      </section>
      <p class="dim small prices">{words.fromReceipts}</p>
    </>
  );
}

type Against = Savings["against"][number];

const AGAINST: Column<Against>[] = [
  { key: "name", title: words.instead, cell: (row) => <strong>{row.name}</strong> },
  { key: "what", title: texts.pages.models, cell: (row) => row.what },
  { key: "cost", title: words.wouldCost, end: true, value: (row) => row.cost.mid, cell: (row) => range(row.cost.low, row.cost.high, money) },
  {
    key: "saved",
    title: words.saved,
    end: true,
    value: (row) => row.saved.mid,
    cell: (row) => <strong class={row.saved.low > 0 ? "gain" : ""}>{range(row.saved.low, row.saved.high, money)}</strong>,
  },
  { key: "requests", title: words.requests, end: true, value: (row) => row.requests, cell: (row) => whole(row.requests) },
];

function Saved({ savings, error }: { savings: Savings | null; error: UsageFacts["savings_error"] }) {
  if (!savings && !error) return null;
  const notes = (savings?.notes ?? []) as string[];
  const assumptions = (savings?.assumptions ?? []) as { key: string; unit: string; source: string; value: { mid: number } }[];
  return (
    <section>
      <h2>{words.savings}</h2>
      {error && <p class="dim small">{error.message}</p>}
      {savings && (
        <>
          <Table caption={words.savings} columns={AGAINST} rows={savings.against} rowKey={(row) => row.name} />
          <ul class="notes">
            <li>{words.loss}</li>
            {notes.map((note) => (
              <li key={note}>{note}</li>
            ))}
            {assumptions.map((one) => (
              <li key={one.key}>{`${one.key}: ${one.value.mid} ${one.unit} (${one.source})`}</li>
            ))}
          </ul>
        </>
      )}
    </section>
  );
}

interface SumsProps {
  title: string;
  first: string;
  name: (row: LedgerSum) => string;
  rows: LedgerSum[];
}

function Sums({ title, first, name, rows }: SumsProps) {
  const number = (key: keyof LedgerSum, head: string, say: (n: number) => string = whole): Column<LedgerSum> => ({
    key,
    title: head,
    end: true,
    value: (row) => row[key] as number,
    cell: (row) => say(row[key] as number),
  });
  const columns: Column<LedgerSum>[] = [
    { key: "name", title: first, value: name, cell: (row) => <strong>{name(row)}</strong> },
    number("rows", words.requests),
    number("prompt", words.prompt),
    number("cached", words.cached),
    number("completion", words.completion),
    ...(rows.some((row) => row.sound_ms) ? [number("sound_ms", words.sound, (ms) => duration(ms / 1000))] : []),
    number("first_s", words.firstToken, (s) => (s ? duration(s) : "–")),
    number("nano", words.cost, dollars),
  ];
  return (
    <section>
      <h2>{title}</h2>
      <Table caption={title} columns={columns} rows={rows} rowKey={name} sort={{ key: "nano", down: true }} />
    </section>
  );
}

/** Tokens that the keys' quotas count; they are kept without a gateway too. */
function Accounts({ rows }: { rows: NonNullable<UsageFacts["accounts"]> }) {
  const keys = new Map<string, { key: string; tokens: number; days: number }>();
  for (const row of rows) {
    const before = keys.get(row.key) ?? { key: row.key, tokens: 0, days: 0 };
    keys.set(row.key, { key: row.key, tokens: before.tokens + row.tokens, days: before.days + 1 });
  }
  const columns: Column<{ key: string; tokens: number; days: number }>[] = [
    { key: "key", title: texts.key, value: (row) => row.key, cell: (row) => <strong>{row.key}</strong> },
    { key: "days", title: words.activeDays, end: true, value: (row) => row.days, cell: (row) => row.days },
    { key: "tokens", title: words.tokens, end: true, value: (row) => row.tokens, cell: (row) => whole(row.tokens) },
  ];
  return (
    <section>
      <h2>{words.accounts}</h2>
      <Table caption={words.accounts} columns={columns} rows={[...keys.values()]} rowKey={(row) => row.key} sort={{ key: "tokens", down: true }} />
    </section>
  );
}
