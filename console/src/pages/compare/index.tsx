// Two to four models, one question, one seed: side by side while they write, then where their answers differ.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Button, IconButton } from "../../parts/button";
import { notifyError } from "../../parts/notice";
import { Empty, Failed, Page, Waiting } from "../../parts/page";
import { go, isId, place, to } from "../../parts/router";
import { texts } from "../../texts";
import { Away } from "../chat/away";
import { keep, kept, sends } from "../chat/kept";
import { models, readModels } from "../chat/models";
import "./compare.css";
import { RoundView } from "./round";
import { ask, askAgain, leave, NONE, now, open, running, stop } from "./rounds";
import { shown } from "../../text/shown";

const words = texts.compare;
const LEAST = 2;
const MOST = 4;

export default function Compare() {
  const error = useSignal<unknown>(null);
  const named = place.value.rest[0] ?? "";
  const chat = isId(named) ? named : "";
  useEffect(() => {
    readModels().catch((e) => (error.value = e));
    return leave;
  }, []);
  useEffect(() => {
    error.value = null;
    if (!chat) now.value = NONE;
    else if (now.value.chat !== chat) void open(chat).catch((e) => (error.value = e));
  }, [chat]);
  return (
    <Page
      title={texts.pages.compare}
      lead={words.lead}
      actions={
        chat && (
          <>
            <a class="button plain" href={to("chat", chat)}>
              {words.asChat}
            </a>
            <Button icon="plus" onClick={() => go(to("compare"))}>
              {words.fresh}
            </Button>
          </>
        )
      }
    >
      {error.value ? <Failed error={error.value} /> : models.value === null ? <Waiting /> : <Bench />}
    </Page>
  );
}

function Bench() {
  const all = models.value!.map((model) => model.id);
  const chosen = useSignal(firstChoice(all));
  const seed = useSignal(now.value.seed);
  const from = useSignal<string | null>(null); // the answer that the next question continues
  const { rounds } = now.value;
  const last = rounds.at(-1);
  const writing = running(last);
  useEffect(() => {
    const used = last?.columns.map((column) => column.model).filter((model) => all.includes(model)) ?? [];
    if (used.length >= LEAST) chosen.value = used.slice(0, MOST);
    seed.value = now.value.seed;
  }, [now.value.chat]);
  if (!all.length)
    return (
      <Empty icon="compare" title={words.few}>
        <p>{words.fewText}</p>
        <a href={to("models")}>{words.models}</a>
      </Empty>
    );
  const send = async (content: string) => {
    keep("compare", chosen.value);
    const parent = last ? (from.value ?? last.columns[0]!.answer) : null;
    try {
      const chat = await ask(chosen.value, seed.value, content, parent);
      from.value = null;
      go(to("compare", chat), true);
      return true;
    } catch (e) {
      notifyError(e);
      return false;
    }
  };
  const differ = last && chosen.value.some((model) => !last.columns.some((column) => column.model === model));
  return (
    <div class="compare">
      {rounds.map((round) => (
        <RoundView
          key={round.user.id}
          round={round}
          {...(round === last && !writing && {
            from: from.value ?? round.columns[0]!.answer,
            onFrom: (answer: string) => (from.value = answer),
          })}
        />
      ))}
      <Away />
      <Slots all={all} chosen={chosen.value} onChange={(next) => (chosen.value = next)} disabled={writing} />
      <Composer
        seed={seed.value}
        onSeed={(value) => (seed.value = value)}
        writing={writing}
        onSend={send}
        onStop={() => void stop(last!).catch(notifyError)}
      >
        {differ && !writing && (
          <Button icon="again" onClick={() => void askAgain(chosen.value, seed.value, last.user).catch(notifyError)}>
            {words.askAgain}
          </Button>
        )}
      </Composer>
    </div>
  );
}

/** Those of the last comparison that are still here, filled up; one model stands twice where there is no other. */
function firstChoice(all: string[]): string[] {
  const before = kept<string[]>("compare", []).filter((model) => all.includes(model));
  const chosen = [...before, ...all.filter((model) => !before.includes(model))];
  return before.length >= LEAST ? before.slice(0, MOST) : [...chosen, ...all, ...all].slice(0, LEAST);
}

interface SlotsProps {
  all: string[];
  chosen: string[];
  onChange: (chosen: string[]) => void;
  disabled: boolean;
}

function Slots({ all, chosen, onChange, disabled }: SlotsProps) {
  return (
    <div class="slots">
      {chosen.map((model, i) => (
        <div key={i} class="slot">
          <select
            aria-label={words.column(i + 1)}
            value={model}
            disabled={disabled}
            onChange={(e) => onChange(chosen.map((old, j) => (i === j ? e.currentTarget.value : old)))}
          >
            {all.map((id) => (
              <option key={id} value={id}>
                {shown(id)}
              </option>
            ))}
          </select>
          {chosen.length > LEAST && (
            <IconButton icon="close" size={16} label={words.remove(shown(model))} disabled={disabled} onClick={() => onChange(chosen.filter((_, j) => j !== i))} />
          )}
        </div>
      ))}
      {chosen.length < MOST && (
        <Button
          icon="plus"
          kind="quiet"
          disabled={disabled}
          onClick={() => onChange([...chosen, all.find((id) => !chosen.includes(id)) ?? all[0]!])}
        >
          {words.add}
        </Button>
      )}
    </div>
  );
}

interface ComposerProps {
  seed: number;
  onSeed: (seed: number) => void;
  writing: boolean;
  onSend: (content: string) => Promise<boolean>;
  onStop: () => void;
  children: preact.ComponentChildren;
}

function Composer({ seed, onSeed, writing, onSend, onStop, children }: ComposerProps) {
  const text = useSignal(kept<string>("compare-draft", ""));
  const sending = useSignal(false);
  const write = (value: string) => {
    text.value = value;
    keep("compare-draft", value);
  };
  const send = async () => {
    if (!text.value.trim() || writing || sending.value) return;
    sending.value = true;
    if (await onSend(text.value)) write("");
    sending.value = false;
  };
  const key = (e: KeyboardEvent) => {
    if (!sends(e)) return;
    e.preventDefault();
    void send();
  };
  return (
    <form
      class="compare-box"
      onSubmit={(e) => {
        e.preventDefault();
        void send();
      }}
    >
      <textarea
        rows={2}
        aria-label={texts.message}
        placeholder={texts.message}
        value={text.value}
        onInput={(e) => write(e.currentTarget.value)}
        onKeyDown={key}
      />
      <div class="compare-foot">
        <label title={words.seedHint}>
          {words.seed}
          <input
            type="number"
            min={0}
            max={4294967295}
            step={1}
            value={seed}
            onChange={(e) => onSeed(Math.max(0, Math.floor(Number(e.currentTarget.value) || 0)))}
          />
        </label>
        <span class="grow" />
        {children}
        {writing ? (
          <Button kind="primary" icon="stop" onClick={onStop}>
            {texts.stop}
          </Button>
        ) : (
          <Button kind="primary" icon="compare" type="submit" busy={sending.value}>
            {words.ask}
          </Button>
        )}
      </div>
    </form>
  );
}
