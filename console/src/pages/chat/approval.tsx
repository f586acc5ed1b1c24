// A tool's question: what it is, what it wants to do, and the answers. Focus stands on Deny; nothing is approved by a key
// that was meant for something else. Everything that the tool wrote is shown with its invisible characters.
import { type Signal, useSignal } from "@preact/signals";
import { createElement } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { Ask } from "../../api/run";
import { Button } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { notifyError } from "../../parts/notice";
import { texts } from "../../texts";
import { Fold } from "./body";
import { composer } from "./composer";
import { escaped, isObject, pretty } from "./json";
import type { Live } from "./lives";
import { approve } from "./runs";
import { Verbatim } from "../../text";
import { shown } from "../../text/shown";

const words = texts.chat;
type Verdict = "deny" | "once" | "chat" | "always";
const SHORT = 300; // characters of a claim, and its lines, that are shown at once
const LINES_SHOWN = 4;
const EARLY_MS = 700; // a double click on one question must not allow the next

export function Approval({ ask, live }: { ask: Ask; live: Live }) {
  const asked = pretty(ask.arguments);
  const editable = escaped(asked);
  const edited = useSignal<string | null>(null); // null: as the model wrote them
  const word = useSignal("");
  const busy = useSignal(false);
  const left = useSignal(Math.max(0, ask.until - Date.now() / 1000));
  const early = useSignal(true);
  const whole = useRef<HTMLElement>(null);
  const deny = useRef<HTMLDivElement>(null);

  useEffect(() => {
    // A box that is being written in keeps the focus, so that its Enter sends a message and answers nothing here.
    const at = document.activeElement;
    const writes = (at instanceof HTMLTextAreaElement || at instanceof HTMLInputElement) && at.value !== "";
    if (!writes) deny.current?.querySelector("button")?.focus();
    const tick = setInterval(() => (left.value = Math.max(0, ask.until - Date.now() / 1000)), 1000);
    const soon = setTimeout(() => (early.value = false), EARLY_MS);
    return () => (clearInterval(tick), clearTimeout(soon));
  }, []);

  const wrong = edited.value !== null && !isObject(edited.value);
  const answer = (verdict: Verdict) => async () => {
    busy.value = true;
    const held = whole.current?.contains(document.activeElement);
    try {
      await approve(live, ask, {
        verdict,
        ...(verdict === "deny" && word.value.trim() && { word: word.value.trim() }),
        ...(verdict !== "deny" && edited.value !== null && edited.value !== editable && { arguments: edited.value }),
      });
      if (held && matchMedia("(pointer: fine)").matches) composer.focus();
    } catch (e) {
      notifyError(e);
      busy.value = false;
    }
  };

  return (
    <section
      class="approval"
      ref={whole}
      role="alertdialog"
      aria-label={words.wantsTo(shown(ask.tool), shown(ask.server))}
      onKeyDown={(e) => e.key === "Escape" && (e.stopPropagation(), deny.current?.querySelector("button")?.focus())}
    >
      <h3>
        <Icon name="tool" size={18} /> {words.wantsTo(shown(ask.tool), shown(ask.server))}
      </h3>
      {ask.changed && <Change before={ask.changed.before} after={ask.changed.after} />}
      <Claims ask={ask} />
      <Arguments asked={asked} editable={editable} edited={edited} wrong={wrong} />
      <label class="deny-word">
        <span>{words.denyWord}</span>
        <input
          value={word.value}
          maxLength={500}
          onInput={(e) => (word.value = e.currentTarget.value)}
          onKeyDown={(e) => e.key === "Enter" && !e.isComposing && void answer("deny")()}
        />
      </label>
      <div class="answers" ref={deny}>
        <Button busy={busy.value} onClick={answer("deny")}>
          {words.deny}
        </Button>
        <Button disabled={wrong || early.value} busy={busy.value} onClick={answer("once")}>
          {words.allowOnce}
        </Button>
        <Button disabled={wrong || early.value} busy={busy.value} onClick={answer("chat")}>
          {words.allowChat}
        </Button>
        <Button disabled={wrong || early.value} busy={busy.value} onClick={answer("always")}>
          {words.allowAlways}
        </Button>
        <small class="dim">{words.noAnswer(left.value)}</small>
      </div>
    </section>
  );
}

interface ArgumentsProps {
  asked: string;
  editable: string; // the same with its invisible characters as escapes
  edited: Signal<string | null>;
  wrong: boolean;
}

function Arguments({ asked, editable, edited, wrong }: ArgumentsProps) {
  return (
    <>
      <h4>{words.arguments}</h4>
      {edited.value === null ? (
        <>
          <div tabIndex={0} role="group" aria-label={words.arguments}>
            <Verbatim text={asked} code />
          </div>
          <Button kind="quiet" icon="edit" onClick={() => (edited.value = editable)}>
            {words.editArguments}
          </Button>
        </>
      ) : (
        <label class="edit-arguments">
          <span class="unseen">{words.arguments}</span>
          <textarea
            spellcheck={false}
            rows={Math.min(16, edited.value.split("\n").length + 1)}
            value={edited.value}
            aria-invalid={wrong || undefined}
            onInput={(e) => (edited.value = e.currentTarget.value)}
          />
          {wrong && <small class="bad">{words.notObject}</small>}
        </label>
      )}
    </>
  );
}

/** What the tool says of itself: its own words, no fact. A long text folds, so that it moves nothing out of sight. */
function Claims({ ask }: { ask: Ask }) {
  const { description, annotations } = ask.claims ?? { description: "", annotations: {} };
  const hints = Object.entries(annotations ?? {}).map(([name, value]) => `${name}: ${JSON.stringify(value)}`);
  const claim = [description, ...hints].filter(Boolean).join("\n");
  if (!claim) return null;
  const said = () => (
    <blockquote>
      <Verbatim text={claim} code />
    </blockquote>
  );
  if (claim.length > SHORT || claim.split("\n").length > LINES_SHOWN)
    return (
      <div class="claims">
        <Fold title={words.claims} note={words.characters(claim.length)}>
          {said}
        </Fold>
      </div>
    );
  return (
    <div class="claims">
      <h4>{words.claims}</h4>
      {said()}
    </div>
  );
}

function Change({ before, after }: { before: string; after: string }) {
  return (
    <div class="change">
      <p>
        <Icon name="warning" size={18} /> {words.changedTool}
      </p>
      <pre class="difference" tabIndex={0}>
        {difference(pretty(before), pretty(after)).map(([sign, line], i) =>
          createElement(LINES[sign], { key: i }, `${sign} ${shown(line)}\n`),
        )}
      </pre>
    </div>
  );
}

type Line = [" " | "-" | "+", string];
const LINES = { " ": "span", "-": "del", "+": "ins" } as const;
const MOST = 400; // lines compared in pairs; longer texts are shown one after the other

/** Lines taken out and put in, by their longest common subsequence. */
export function difference(before: string, after: string): Line[] {
  const [a, b] = [before.split("\n"), after.split("\n")];
  if (a.length > MOST || b.length > MOST) return [...a.map((l): Line => ["-", l]), ...b.map((l): Line => ["+", l])];
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i]![j] = a[i] === b[j] ? common[i + 1]![j + 1]! + 1 : Math.max(common[i + 1]![j]!, common[i]![j + 1]!);
  const out: Line[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length)
    if (i < a.length && j < b.length && a[i] === b[j]) out.push([" ", (j++, a[i++]!)]);
    else if (j >= b.length || (i < a.length && common[i + 1]![j]! >= common[i]![j + 1]!)) out.push(["-", a[i++]!]);
    else out.push(["+", b[j++]!]);
  return out;
}
