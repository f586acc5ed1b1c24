// An answer's receipt: what it cost, how it was sampled, and whether the same bits come again. Shows only what is in it.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import type { Message, Receipt } from "../../api/types";
import { Button } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { saying } from "../../parts/notice";
import { duration, rate, whole } from "../../parts/numbers";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import type { Chat } from "./opened";
import { sameBits, type Verdict } from "./runs";

const words = texts.chat;

export function ReceiptPanel({ chat, message }: { chat: Chat; message: Message }) {
  const receipt = message.receipt;
  if (!receipt) return null;
  return (
    <section class="receipt" aria-label={words.receipt}>
      <dl>
        {rows(message, receipt).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {receipt.warnings?.map((warning) => (
        <p key={warning} class="remark">
          <Icon name="warning" size={16} /> {warning}
        </p>
      ))}
      <SameBits chat={chat} message={message} />
    </section>
  );
}

/** Rows of the receipt, in the order in which people ask; a fact that it lacks has no row. */
export function rows(message: Message, receipt: Receipt): [string, string][] {
  const { context, sampling = {}, timings = {}, tokens } = receipt;
  const out: [string, string | null][] = [
    [words.model, shown(receipt.model ?? message.model)],
    [words.tokens, tokens ? words.tokensOf(tokens.prompt, tokens.answer, tokens.thought) : null],
    [words.cached, context?.cached ? words.nTokens(context.cached) : null],
    [words.context, context ? words.ofContext(whole(context.used), whole(context.limit)) : null],
    [words.dropped, context?.dropped_messages ? whole(context.dropped_messages) : null],
    [words.speed, receipt.tok_s ? rate(receipt.tok_s) : null],
    [words.firstToken, receipt.first_s ? duration(receipt.first_s) : null],
    [words.total, timings.total_s ? duration(timings.total_s) : null],
    [words.sampling, samplingOf(sampling)],
    [words.seed, sampling.seed === undefined || sampling.seed === null ? null : String(sampling.seed)],
    [words.maxTokens, receipt.max_tokens ? whole(receipt.max_tokens) : null],
  ];
  return out.filter((row): row is [string, string] => Boolean(row[1]));
}

const PLAIN: Record<string, number> = {
  top_k: 0,
  top_p: 1,
  min_p: 0,
  typical_p: 1,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
};

/** What differs from plain sampling: "Temperature 0.7, Top p 0.8". */
function samplingOf(sampling: Record<string, unknown>): string {
  return Object.entries(sampling)
    .filter(([name, value]) => typeof value === "number" && name !== "seed" && name !== "penalty_window")
    .filter(([name, value]) => PLAIN[name] !== value)
    .map(([name, value]) => `${words.fields[name as keyof typeof words.fields] ?? name} ${value}`)
    .join(", ");
}

function SameBits({ chat, message }: { chat: Chat; message: Message }) {
  const verdict = useSignal<Verdict | null>(null);
  const trouble = useSignal<string | null>(null);
  const busy = useSignal(false);
  const over = useMemo(() => new AbortController(), []);
  useEffect(() => () => over.abort(), []);
  if (message.receipt?.continued) return <p class="remark">{words.continuedBits}</p>;
  if (message.receipt?.asked_again) return <p class="remark">{words.askedAgainBits}</p>;
  if (message.receipt && message.receipt.bits === null) return <p class="remark">{words.noBits}</p>;

  async function run() {
    busy.value = true;
    verdict.value = trouble.value = null;
    try {
      verdict.value = await sameBits(chat, message.id, over.signal);
    } catch (e) {
      if (!over.signal.aborted) trouble.value = saying(e);
    }
    busy.value = false;
  }

  const found = verdict.value;
  return (
    <div class="same-bits">
      <Button icon="again" busy={busy.value} onClick={() => void run()}>
        {words.sameBits}
      </Button>
      <p role="status" class={found ? (found.equal ? "good" : "bad") : ""}>
        {busy.value && words.computing}
        {found && (
          <>
            <Icon name={found.equal ? "check" : "warning"} size={18} /> {verdictOf(found)}
          </>
        )}
        {trouble.value}
      </p>
    </div>
  );
}

function verdictOf(found: Verdict): string {
  if (found.equal) return words.equal(found.tokens);
  if (found.changed) return words.cannotBeEqual(found.changed);
  return words.differs((found.first ?? 0) + 1, found.was ?? "", found.is ?? "");
}
