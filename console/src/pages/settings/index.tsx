// What this browser and this session are set to. Choices are kept in this browser, as the chat page keeps its own.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId } from "preact/hooks";
import { get } from "../../api/client";
import { logOut, me } from "../../api/me";
import type { ChatSettings } from "../../api/types";
import { Button } from "../../parts/button";
import { ask } from "../../parts/dialog";
import { Field } from "../../parts/field";
import { notify, notifyError } from "../../parts/notice";
import { filled, LATER } from "../../parts/frame";
import { Page } from "../../parts/page";
import { to } from "../../parts/router";
import { theme, type Theme } from "../../parts/theme";
import { texts } from "../../texts";
import { keep, kept } from "../chat/kept";
import { forgetAll, keptHere } from "./storage";
import { Tools } from "./tools";
import "./settings.css";

const words = texts.settings;

export default function Settings() {
  return (
    <Page title={texts.pages.settings}>
      <div class="settings">
        <Section title={words.look}>
          <Choice
            label={words.theme}
            value={theme.value}
            options={Object.entries(words.themes) as [Theme, string][]}
            onChange={(value) => (theme.value = value)}
          />
        </Section>
        <Section title={words.writing}>
          <SendWith />
        </Section>
        <NewChats />
        <Tools />
        <Storage />
        <Session />
        <OtherPages />
        <Section title={words.about}>
          <p>{words.version(me.value!.version)}</p>
          <ul class="links">
            <li>
              <a href="/assets/THIRD_PARTY.txt" target="_blank" rel="noopener noreferrer">
                {words.licences}
              </a>
            </li>
            <li>
              <a href="/openapi.json" target="_blank" rel="noopener noreferrer">
                {words.api}
              </a>
            </li>
          </ul>
        </Section>
      </div>
    </Page>
  );
}

/** The pages that the navigation does not have yet. */
function OtherPages() {
  const pages = LATER.filter((page) => !filled(page) && (page !== "keys" || me.value!.can.includes("keys")));
  if (!pages.length) return null;
  return (
    <Section title={words.pages}>
      <p class="dim small">{words.pagesText}</p>
      <ul class="links">
        {pages.map((page) => (
          <li key={page}>
            <a href={to(page)}>{texts.pages[page]}</a>{" "}
            <span class="dim">{words.pageTexts[page as keyof typeof words.pageTexts]}</span>
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Section({ title, children }: { title: string; children: ComponentChildren }) {
  const id = useId();
  return (
    <section class="card" aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      {children}
    </section>
  );
}

interface ChoiceProps<T extends string> {
  label: string;
  value: T;
  options: [T, string][];
  onChange: (value: T) => void;
}

function Choice<T extends string>({ label, value, options, onChange }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset class="radios">
      <legend>{label}</legend>
      {options.map(([each, says]) => (
        <label key={each}>
          <input type="radio" name={name} checked={each === value} onChange={() => onChange(each)} />
          <span>{says}</span>
        </label>
      ))}
    </fieldset>
  );
}

function SendWith() {
  const enter = useSignal(kept("enter-sends", true));
  return (
    <Choice
      label={words.sendWith}
      value={enter.value ? "enter" : "ctrl"}
      options={[
        ["enter", words.enter],
        ["ctrl", words.ctrlEnter],
      ]}
      onChange={(value) => keep("enter-sends", (enter.value = value === "enter"))}
    />
  );
}

function NewChats() {
  const models = useSignal<string[]>([]);
  const model = useSignal(kept("model", ""));
  const settings = useSignal(kept<ChatSettings>("settings", {}));
  useEffect(() => {
    get<{ data: { id: string }[] }>("/v1/models").then(
      (found) => (models.value = found.data.map((each) => each.id)),
      () => {}, // an admin key sees none; the list stays empty
    );
  }, []);
  const change = (now: ChatSettings) => keep("settings", (settings.value = now));
  const { sampling = {}, system = "", max_tokens: most } = settings.value;
  const names = model.value && !models.value.includes(model.value) ? [model.value, ...models.value] : models.value;
  return (
    <Section title={words.newChats}>
      <p class="dim small">{words.newChatsText}</p>
      <div class="fields">
        <Field label={words.defaultModel}>
          {(control) => (
            <select {...control} value={model.value} onChange={(e) => keep("model", (model.value = e.currentTarget.value))}>
              {!model.value && <option value="">{words.lastModel}</option>}
              {names.map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Field label={words.system}>
          {(control) => (
            <textarea
              {...control}
              rows={3}
              value={system}
              onInput={(e) => {
                const { system: _, ...rest } = settings.peek();
                change(e.currentTarget.value ? { ...rest, system: e.currentTarget.value } : rest);
              }}
            />
          )}
        </Field>
        <NumberField
          label={words.temperature}
          own={words.own}
          value={sampling.temperature as number | undefined}
          most={2}
          step={0.05}
          onChange={(value) => {
            const { temperature: _, ...others } = sampling;
            change({ ...settings.peek(), sampling: value === undefined ? others : { ...others, temperature: value } });
          }}
        />
        <NumberField
          label={words.maxTokens}
          own={words.untilEnd}
          value={most}
          least={1}
          most={1_000_000}
          step={1}
          onChange={(value) => {
            const { max_tokens: _, ...rest } = settings.peek();
            change(value === undefined ? rest : { ...rest, max_tokens: value });
          }}
        />
      </div>
    </Section>
  );
}

interface NumberProps {
  label: string;
  own: string; // what holds where nothing is written
  value: number | undefined;
  least?: number;
  most: number;
  step: number;
  onChange: (value: number | undefined) => void;
}

function NumberField({ label, own, value, least = 0, most, step, onChange }: NumberProps) {
  const input = (e: { currentTarget: HTMLInputElement }) => {
    const { value, valueAsNumber: number } = e.currentTarget;
    if (value === "") onChange(undefined);
    else if (number >= least && number <= most) onChange(number);
  };
  return (
    <Field label={label}>
      {(control) => (
        <input {...control} type="number" min={least} max={most} step={step} value={value ?? ""} placeholder={own} onInput={input} />
      )}
    </Field>
  );
}

function Storage() {
  const found = useSignal(keptHere());
  async function forget() {
    if (!(await ask({ title: words.forgetTitle, text: words.forgetText, action: words.forget, danger: true }))) return;
    await forgetAll().catch(notifyError);
    found.value = keptHere();
    notify({ text: words.forgot });
  }
  const { bytes, entries } = found.value;
  return (
    <Section title={words.storage}>
      <p>{words.chats}</p>
      <p>{words.inBrowser(`${(bytes / 1000).toFixed(bytes < 10_000 ? 1 : 0)} kB`, entries)}</p>
      <Button kind="danger" icon="trash" disabled={entries === 0} onClick={forget}>
        {words.forget}
      </Button>
    </Section>
  );
}

function Session() {
  const who = me.value!;
  const busy = useSignal(false);
  const leave = () => {
    busy.value = true;
    logOut().catch((e) => ((busy.value = false), notifyError(e)));
  };
  return (
    <Section title={words.session}>
      <p>{who.key ? words.asKey(who.key) : who.owner ? words.asOwner : words.asLocal}</p>
      {!who.owner && !who.can.includes("keys") && (
        <p class="dim small">
          {words.becomeOwner} <code>freehold open</code>
        </p>
      )}
      {(who.key || who.owner) && (
        <Button icon="logout" busy={busy.value} onClick={leave}>
          {texts.logOut}
        </Button>
      )}
    </Section>
  );
}
