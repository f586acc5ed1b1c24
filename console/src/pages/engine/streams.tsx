// The requests that are being answered. The oldest come first; only so many are drawn, twice a second.
import type { LiveStream } from "../../api/types";
import { duration, rate, whole } from "../../parts/numbers";
import { Table, type Column } from "../../parts/table";
import { texts } from "../../texts";
import { Plain } from "../../text";

const words = texts.engine;
const MOST = 50; // rows; the others are counted
const TONES = { waiting: "warn", prefill: "", decode: "good" } as const;

const COLUMNS: Column<LiveStream>[] = [
  { key: "id", title: words.request, cell: (s) => <code title={s.id}>{s.id.slice(-10)}</code> },
  { key: "model", title: texts.model, value: (s) => s.model, cell: (s) => <Plain text={s.model} /> },
  { key: "key", title: texts.key, value: (s) => s.key, cell: (s) => s.key || <span class="dim">{words.noKey}</span> },
  { key: "door", title: words.door, value: (s) => s.door, cell: (s) => words.doors[s.door as keyof typeof words.doors] ?? s.door },
  {
    key: "state",
    title: words.state,
    value: (s) => s.state,
    cell: (s) => <span class={`badge ${TONES[s.state]}`}>{words.streamStates[s.state]}</span>,
  },
  {
    key: "position",
    title: words.position,
    end: true,
    value: (s) => s.prompt_tokens + s.answer_tokens,
    cell: (s) => whole(s.prompt_tokens + s.answer_tokens),
  },
  { key: "answer", title: words.answer, end: true, value: (s) => s.answer_tokens, cell: (s) => whole(s.answer_tokens) },
  { key: "rate", title: words.speed, end: true, value: (s) => s.tok_s, cell: (s) => (s.tok_s === null ? "–" : rate(s.tok_s)) },
  { key: "age", title: words.age, end: true, value: (s) => s.age_s, cell: (s) => duration(Math.max(0.001, s.age_s)) },
];

export function Streams({ streams }: { streams: LiveStream[] }) {
  const oldest = [...streams].sort((a, b) => b.age_s - a.age_s);
  return (
    <section>
      <h2>
        {words.streams} <small class="dim">{streams.length}</small>
      </h2>
      {streams.length === 0 ? (
        <p class="dim small">{words.noStreams}</p>
      ) : (
        <Table caption={words.streams} columns={COLUMNS} rows={oldest.slice(0, MOST)} rowKey={(s) => s.id} />
      )}
      {streams.length > MOST && <p class="dim small">{words.moreStreams(streams.length - MOST)}</p>}
    </section>
  );
}
