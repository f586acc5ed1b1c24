// One model's engine: what it does now, its last minutes as curves, and where its memory goes.
import type { ComponentChildren } from "preact";
import type { LiveEngine, LiveModel, Percentiles } from "../../api/types";
import { Chart, type Series } from "../../parts/chart";
import { Stack, type Part } from "../../parts/meter";
import { ago, bytes, duration, percent, rate, whole } from "../../parts/numbers";
import { texts } from "../../texts";
import { type History, SPAN_S } from "./live";
import { Plain } from "../../text";
import { shown } from "../../text/shown";

const words = texts.engine;
const SPEED: Series[] = [{ label: words.now, tone: "a" }];
const WAITS: Series[] = [
  { label: words.half, tone: "a" },
  { label: words.ninetyNine, tone: "b" },
];
const clock = (at: number) => new Date(at * 1000).toLocaleTimeString("en-GB");

interface CardProps {
  model: LiveModel;
  history: History | undefined;
  needs: string; // its sentence on memory, as Models says it
}

export function EngineCard({ model, history, needs }: CardProps) {
  const { full } = model;
  return (
    <section class="card engine-card" aria-label={shown(model.name)}>
      <h2>
        <Plain text={model.name} />
        {full && (
          <small>
            {[full.quantization, words.context(whole(full.context)), words.threads(full.threads)].join(" · ")}
          </small>
        )}
      </h2>
      <dl class="tiles">
        {full && (
          <Tile name={words.writing} note={full.prefill_tok_s === null ? "" : words.readingAt(rate(full.prefill_tok_s))}>
            {full.tok_s === null ? "–" : rate(full.tok_s)}
          </Tile>
        )}
        {full && (
          <Tile name={words.streams} note={full.preemptions ? words.preemptions(full.preemptions) : ""}>
            {full.running}
          </Tile>
        )}
        <Tile name={words.queue} note={words.expected(duration(model.expected_wait_s))}>
          {model.waiting}
        </Tile>
        {full && <Latency name={words.ttft} of={full.ttft} />}
        {full && <Latency name={words.itl} of={full.itl} />}
      </dl>
      {full && history && history.at.length > 1 && (
        <div class="charts">
          <Chart
            label={words.writing}
            time
            span={SPAN_S}
            x={history.at}
            series={SPEED}
            values={[history.decode]}
            say={rate}
            sayX={clock}
          />
          <Chart
            label={words.itl}
            time
            span={SPAN_S}
            x={history.at}
            series={WAITS}
            values={[history.itl50, history.itl99]}
            say={duration}
            sayX={clock}
          />
        </div>
      )}
      {full && <Deaths engine={full} />}
      {full && (
        <details>
          <summary>{words.details}</summary>
          <Tails engine={full} />
          <Memory engine={full} needs={needs} />
          <Life engine={full} />
        </details>
      )}
    </section>
  );
}

function Tile({ name, note, children }: { name: string; note?: string; children: ComponentChildren }) {
  return (
    <div class="tile">
      <dt>{name}</dt>
      <dd>
        {children}
        {note && <small>{note}</small>}
      </dd>
    </div>
  );
}

/** Of the last minute where something came in it, otherwise of everything since the start. */
function Latency({ name, of }: { name: string; of: { all: Percentiles; recent: Percentiles | null } }) {
  const recent = of.recent !== null && of.recent.count > 0;
  const shown = recent ? of.recent! : of.all;
  if (shown.p50 === null) return <Tile name={name}>–</Tile>;
  return (
    <Tile name={name} note={recent ? words.lastMinute : words.sinceStart}>
      {duration(shown.p50)}
    </Tile>
  );
}

/** The slowest tenth and hundredth of everything since the start. */
function Tails({ engine: { ttft, itl } }: { engine: LiveEngine }) {
  const said = ([[words.ttft, ttft.all], [words.itl, itl.all]] as const).flatMap(([name, { p90, p99 }]) =>
    p90 === null || p99 === null ? [] : [`${name}: ${words.tail(duration(p90), duration(p99))}`],
  );
  return said.length ? <p class="dim small">{said.join(" · ")}</p> : null;
}

function Memory({ engine, needs }: { engine: LiveEngine; needs: string }) {
  const { cache } = engine;
  const found = cache.hit_tokens + cache.disk_tokens;
  const asked = found + cache.computed_tokens;
  const blocks: Part[] = [
    { label: words.inUse, value: cache.live - cache.shared, tone: "a" },
    { label: words.shared, value: cache.shared, tone: "b" },
    { label: words.evictable, value: cache.evictable, tone: "c" },
    { label: words.free, value: cache.free, tone: "free" },
  ];
  const kinds = Object.entries(engine.memory).filter(([, size]) => size > 0);
  return (
    <div class="stacks">
      <div>
        <h3>
          {words.cache} <small>{words.cacheSize(whole(cache.blocks), cache.block_tokens)}</small>
        </h3>
        <Stack label={words.cache} parts={blocks} max={cache.blocks} say={(n) => whole(n * cache.block_tokens)} />
        {asked > 0 && (
          <p class="dim small">
            {words.hits(percent(found / asked), whole(found), whole(asked))}
            {cache.disk_tokens > 0 && words.fromDisk(whole(cache.disk_tokens))}
          </p>
        )}
        {cache.states > 0 && (
          <p class="dim small">{words.states(cache.states_live, cache.states_cached, cache.states)}</p>
        )}
      </div>
      <div>
        <h3>
          {words.memory} <small>{words.reserved(bytes(engine.memory_bytes))}</small>
        </h3>
        {kinds.length > 0 && (
          <Stack
            label={words.memory}
            parts={kinds.map(([kind, value]) => ({ label: words.kinds[kind as keyof typeof words.kinds] ?? kind, value }))}
            max={engine.memory_bytes}
            say={bytes}
          />
        )}
        {needs && <p class="dim small">{needs}</p>}
      </div>
    </div>
  );
}

/** Its process, and what it was loaded with. */
function Life({ engine }: { engine: LiveEngine }) {
  const { process, drafts } = engine;
  const facts: string[] = [words.loadedIn(duration(engine.load_s))];
  if (process) facts.push(words.process(process.pid, bytes(process.rss), duration(process.cpu_s)));
  if (drafts.drafted) facts.push(words.drafts(percent(drafts.accepted / drafts.drafted), whole(drafts.drafted)));
  if (engine.slow_readers) facts.push(words.slowReaders(engine.slow_readers));
  if (engine.expires_at !== null) {
    const left = engine.expires_at - Date.now() / 1000;
    if (left > 0) facts.push(words.expires(duration(Math.max(1, Math.round(left)))));
  }
  return <p class="dim small">{facts.join(" · ")}</p>;
}

/** How it died before. */
function Deaths({ engine }: { engine: LiveEngine }) {
  if (!engine.restarts) return null;
  return (
    <div class="deaths">
      <h3>{words.restarts(engine.restarts)}</h3>
      <ul>
        {engine.deaths.map((death) => (
          <li key={death.at}>
            <time dateTime={new Date(death.at * 1000).toISOString()}>{ago(death.at)}</time> {death.cause}
          </li>
        ))}
      </ul>
    </div>
  );
}

