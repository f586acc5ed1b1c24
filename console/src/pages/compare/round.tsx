// One question and its answers side by side, with what each cost, and the first token at which two of them part.
import { Button } from "../../parts/button";
import { duration, rate, short, whole } from "../../parts/numbers";
import { Plain, Text, Verbatim } from "../../text";
import { texts } from "../../texts";
import type { Difference } from "../../api/types";
import { type Column, differences, pair, type Round } from "./rounds";
import { shown } from "../../text/shown";

const words = texts.compare;
const AROUND = 120; // characters shown before and after the first difference, of at most two lines

interface RoundProps {
  round: Round;
  from?: string; // the answer that the next question continues
  onFrom?: (answer: string) => void;
}

export function RoundView({ round, from, onFrom }: RoundProps) {
  return (
    <section class="round" aria-label={words.yours}>
      <div class="question">
        <Verbatim text={round.user.content} />
      </div>
      <div class="columns" style={{ "--columns": String(round.columns.length) }}>
        {round.columns.map((column) => (
          <Answer key={column.answer} column={column} chosen={from === column.answer} onFrom={onFrom} />
        ))}
      </div>
      <Verdicts columns={round.columns} />
    </section>
  );
}

interface AnswerProps {
  column: Column;
  chosen: boolean;
  onFrom: ((answer: string) => void) | undefined;
}

function Answer({ column, chosen, onFrom }: AnswerProps) {
  const { text, thinking, run, wait } = column;
  return (
    <article class="answer" aria-label={shown(column.model)} aria-busy={Boolean(run)}>
      <header>
        <h2><Plain text={column.model} /></h2>
        {onFrom && (
          <Button kind="quiet" aria-pressed={chosen} {...(chosen && { icon: "check" as const })} onClick={() => onFrom(column.answer)}>
            {chosen ? words.continues : words.continueFrom}
            <span class="unseen">{` ${shown(column.model)}`}</span>
          </Button>
        )}
      </header>
      <div class="answer-body" tabIndex={0} role="region" aria-label={shown(column.model)}>
        {thinking && (
          <details>
            <summary>{run && !text ? words.thinking : texts.chat.thought(null)}</summary>
            <Text source={thinking} open={Boolean(run) && !text} />
          </details>
        )}
        <Text source={text} open={Boolean(run)} />
        {run && !text && !thinking && (
          <p class="dim">{wait ? words.waits[wait as keyof typeof words.waits] : words.writing}</p>
        )}
        {column.error && <p class="field-error">{column.error}</p>}
      </div>
      <div class="cost" role="status">
        {run ? "" : cost(column)}
      </div>
    </article>
  );
}

/** "128 tokens · 42.1 tok/s · first after 180 ms · 3.2 s" */
function cost({ receipt, state }: Column): string {
  const cut = state in words.states ? words.states[state as keyof typeof words.states] : "";
  if (!receipt) return cut;
  const { tokens, tok_s, first_s, timings } = receipt;
  return [
    tokens && words.tokens(whole(tokens.answer)),
    tok_s && rate(tok_s),
    first_s && words.first(duration(first_s)),
    timings?.total_s && duration(timings.total_s),
    cut,
  ]
    .filter(Boolean)
    .join(" · ");
}

function Verdicts({ columns }: { columns: Column[] }) {
  const [first, ...others] = columns;
  const found = others.flatMap((other) => {
    const difference = differences.value.get(pair(first!.answer, other.answer));
    return difference ? [{ other, difference }] : [];
  });
  if (!found.length) return null;
  return (
    <div class="verdicts" role="status" aria-label={words.verdicts}>
      {found.map(({ other, difference }) => (
        <Verdict key={other.answer} a={first!} b={other} found={difference} />
      ))}
    </div>
  );
}

function Verdict({ a, b, found }: { a: Column; b: Column; found: Difference }) {
  return (
    <div class="verdict">
      <h3>
        <span class={found.equal ? "badge good" : "badge warn"}>
          {found.equal ? words.equal(whole(found.tokens[0])) : words.differs(whole((found.first ?? 0) + 1))}
        </span>
        <small>{speeds(a, b, found)}</small>
      </h3>
      {!found.equal && found.at !== undefined && (
        <dl>
          <dt><Plain text={a.model} /></dt>
          <dd>
            <Excerpt column={a} at={found.at} token={found.was ?? ""} />
          </dd>
          <dt><Plain text={b.model} /></dt>
          <dd>
            <Excerpt column={b} at={found.at} token={found.is ?? ""} />
          </dd>
        </dl>
      )}
    </div>
  );
}

/** "smollm2:135m 42 tok/s, qwen 12 tok/s: smollm2:135m writes 3.5 times as fast" */
function speeds(a: Column, b: Column, { tok_s: [x, y] }: Difference): string {
  const both = [x && `${shown(a.model)} ${rate(x)}`, y && `${shown(b.model)} ${rate(y)}`].filter(Boolean).join(", ");
  if (!x || !y || a.model === b.model) return both;
  const [fast, times] = x > y ? [shown(a.model), x / y] : [shown(b.model), y / x];
  return times < 1.05 ? both : `${both}: ${words.faster(fast, short(times))}`;
}

/** The text around the token at which two answers part; the token stands out. */
function Excerpt({ column, at, token }: { column: Column; at: number; token: string }) {
  const all = column.thinking + column.text;
  const before = all.slice(Math.max(0, at - AROUND), at).split("\n").slice(-2).join("\n");
  const start = at - before.length;
  const after = at + token.length;
  const rest = all.slice(after, after + AROUND).split("\n").slice(0, 2).join("\n");
  return (
    <span class="excerpt">
      {start > 0 && "…"}
      <Plain text={before} />
      <mark>{token ? <Plain text={token} /> : words.ends}</mark>
      <Plain text={rest} />
      {after + rest.length < all.length && "…"}
    </span>
  );
}
