// The side panel: system prompt, sampling with the model's own defaults named, presets, tools. Changes are kept with the
// chat, half a second after the last key.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { get } from "../../api/client";
import type { ChatSettings } from "../../api/types";
import { me } from "../../api/me";
import { Button, IconButton } from "../../parts/button";
import { notifyError } from "../../parts/notice";
import { texts } from "../../texts";
import { keep, kept } from "./kept";
import { defaultsOf, modelOf } from "./models";
import { type Chat, edit } from "./opened";
import { shown } from "../../text/shown";

const words = texts.chat;

interface Field {
  name: string;
  min: number;
  max: number;
  step: number;
}
const FIELDS: Field[] = [
  { name: "temperature", min: 0, max: 2, step: 0.05 },
  { name: "top_p", min: 0, max: 1, step: 0.05 },
  { name: "top_k", min: 0, max: 1000, step: 1 },
  { name: "min_p", min: 0, max: 1, step: 0.01 },
  { name: "repetition_penalty", min: 0.5, max: 2, step: 0.05 },
  { name: "presence_penalty", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.1 },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];
const SAVE_MS = 500;

/** Change the chat's settings here at once, and on the server soon. */
function useChange(chat: Chat): (change: Partial<ChatSettings>) => void {
  const waiting = useRef(0);
  const save = useMemo(
    () => () => {
      if (!waiting.current) return;
      clearTimeout(waiting.current);
      waiting.current = 0;
      if (chat.id) edit(chat, { settings: chat.settings.peek() }).catch(notifyError);
      else keep("settings", chat.settings.peek());
    },
    [chat],
  );
  useEffect(() => save, [chat]);
  return (change) => {
    chat.settings.value = pruned({ ...chat.settings.peek(), ...change });
    clearTimeout(waiting.current);
    waiting.current = window.setTimeout(save, SAVE_MS);
  };
}

/** Without what is empty, so that the model's own value holds. */
function pruned(settings: ChatSettings): ChatSettings {
  const full = Object.entries(settings).filter(([, value]) => value !== undefined && value !== "" && value !== null);
  return Object.fromEntries(full) as ChatSettings;
}

export function Panel({ chat, close }: { chat: Chat; close: () => void }) {
  const change = useChange(chat);
  const defaults = useSignal<Record<string, string>>({});
  const settings = chat.settings.value;
  const model = chat.model.value;
  useEffect(() => {
    if (model) void defaultsOf(model).then((found) => (defaults.value = found));
  }, [model]);
  const thinks = modelOf(model)?.capabilities?.includes("thinking");
  const sample = (name: string, value: number | undefined) => {
    const { [name]: _, ...rest } = settings.sampling ?? {};
    const sampling = value === undefined ? rest : { ...rest, [name]: value };
    change({ sampling: Object.keys(sampling).length ? sampling : undefined } as Partial<ChatSettings>);
  };
  return (
    <aside class="panel" aria-label={words.settings} onKeyDown={(e) => e.key === "Escape" && (e.stopPropagation(), close())}>
      <header>
        <h2>{words.settings}</h2>
        <IconButton icon="close" label={texts.parts.close} onClick={close} />
      </header>
      <Presets settings={settings} apply={(found) => change({ ...BLANK, ...found })} />
      <label class="field">
        <span>{words.system}</span>
        <textarea
          rows={5}
          value={settings.system ?? ""}
          placeholder={words.systemHint}
          onInput={(e) => change({ system: e.currentTarget.value })}
        />
      </label>
      <div class="numbers">
        <NumberField
          name="max_tokens"
          min={1}
          max={1_000_000}
          step={1}
          value={settings.max_tokens}
          blank={words.noLimit}
          change={(value) => change({ max_tokens: value } as Partial<ChatSettings>)}
        />
      </div>
      {thinks && <Think settings={settings} change={change} />}
      <Overflow settings={settings} change={change} />
      <Tools settings={settings} change={change} />
      <details class="sampling" open={Boolean(settings.sampling)}>
        <summary>{words.sampling}</summary>
        <p class="dim small">{words.samplingHint}</p>
        <div class="numbers">
          {FIELDS.map((field) => (
            <NumberField
              key={field.name}
              {...field}
              value={settings.sampling?.[field.name] as number | undefined}
              own={defaults.value[field.name]}
              blank={field.name === "seed" ? words.random : ""}
              change={(value) => sample(field.name, value)}
            />
          ))}
        </div>
      </details>
    </aside>
  );
}

const BLANK = { system: undefined, think: undefined, max_tokens: undefined, sampling: undefined, overflow: undefined } as unknown as ChatSettings;

interface NumberProps extends Field {
  value: number | undefined;
  own?: string | undefined; // the model's value, which holds where nothing is written
  blank?: string; // what is shown then, where the model has none
  change: (value: number | undefined) => void;
}

function NumberField({ name, min, max, step, value, own, blank, change }: NumberProps) {
  return (
    <label class="number">
      <span>{words.fields[name as keyof typeof words.fields]}</span>
      <input
        type="number"
        inputMode="decimal"
        min={min}
        max={max}
        step={step}
        value={value ?? ""}
        placeholder={own ?? blank ?? ""}
        onInput={(e) => {
          const node = e.currentTarget;
          if (node.value === "") change(undefined);
          else if (Number.isFinite(node.valueAsNumber) && node.valueAsNumber >= min && node.valueAsNumber <= max)
            change(node.valueAsNumber);
        }}
      />
      {value !== undefined && own !== undefined && <small>{words.insteadOf(own)}</small>}
    </label>
  );
}

type Changing = { settings: ChatSettings; change: (change: Partial<ChatSettings>) => void };

function Think({ settings, change }: Changing) {
  const now = settings.think === undefined ? "" : String(settings.think);
  return (
    <label class="field inline">
      <span>{words.think}</span>
      <select
        value={now}
        onChange={(e) => {
          const { value } = e.currentTarget;
          change({ think: value === "" ? undefined : value === "true" } as Partial<ChatSettings>);
        }}
      >
        <option value="">{words.asModel}</option>
        <option value="true">{words.on}</option>
        <option value="false">{words.off}</option>
      </select>
    </label>
  );
}

/** Whether a chat that outgrows the model's context continues without its oldest messages. */
function Overflow({ settings, change }: Changing) {
  return (
    <label class="field inline">
      <span>{words.overflow}</span>
      <select
        value={settings.overflow ?? "drop-oldest"}
        onChange={(e) => {
          const { value } = e.currentTarget;
          change({ overflow: value === "error" ? value : undefined } as Partial<ChatSettings>);
        }}
      >
        <option value="drop-oldest">{words.dropOldest}</option>
        <option value="error">{words.dropNothing}</option>
      </select>
    </label>
  );
}

interface Server {
  name: string;
  tools: { name: string }[] | null;
  trouble: string; // why it did not start, when it was last tried
}

/** Servers of tools, each on or off for this chat. Which there are is set in config.toml, never here. */
function Tools({ settings, change }: Changing) {
  const servers = useSignal<Server[]>([]);
  useEffect(() => {
    if (!me.value?.can.includes("tools")) return;
    get<{ servers: Server[] }>("/console/api/tools").then(
      (found) => (servers.value = found.servers),
      () => {}, // a server without tools has no such list
    );
  }, [me.value]);
  if (!servers.value.length) return null;
  const on = new Set(settings.tools ?? []);
  const set = (name: string, is: boolean) => {
    const tools = servers.value.map((each) => each.name).filter((each) => (each === name ? is : on.has(each)));
    change({ tools: tools.length ? tools : undefined } as Partial<ChatSettings>);
  };
  return (
    <fieldset class="tools">
      <legend>{words.tools}</legend>
      {servers.value.map((server) => (
        <label key={server.name} class="toggle">
          <input type="checkbox" checked={on.has(server.name)} onChange={(e) => set(server.name, e.currentTarget.checked)} />
          <span>
            {shown(server.name)}
            <small>{server.trouble || (server.tools ? words.nTools(server.tools.length) : "")}</small>
          </span>
        </label>
      ))}
    </fieldset>
  );
}

interface Preset extends ChatSettings {
  name: string;
}

/** Named settings, kept in this browser. */
function Presets({ settings, apply }: { settings: ChatSettings; apply: (settings: ChatSettings) => void }) {
  const all = useSignal(kept<Preset[]>("presets", []));
  const name = useSignal<string | null>(null);
  const chosen = useSignal("");
  const put = (presets: Preset[]) => {
    all.value = presets;
    keep("presets", presets.length ? presets : null);
  };
  const save = () => {
    const called = name.value?.trim();
    if (!called) return;
    const { tools: _, ...rest } = settings;
    put([...all.value.filter((each) => each.name !== called), { ...rest, name: called }].sort((a, b) => a.name.localeCompare(b.name)));
    chosen.value = called;
    name.value = null;
  };
  if (name.value !== null)
    return (
      <form class="presets" onSubmit={(e) => (e.preventDefault(), save())}>
        <input
          ref={(node) => node?.focus()}
          aria-label={words.presetName}
          placeholder={words.presetName}
          maxLength={60}
          value={name.value}
          onInput={(e) => (name.value = e.currentTarget.value)}
          onKeyDown={(e) => e.key === "Escape" && (e.stopPropagation(), (name.value = null))}
        />
        <Button type="submit">{words.save}</Button>
      </form>
    );
  return (
    <div class="presets">
      <select
        aria-label={words.preset}
        value={chosen.value}
        onChange={(e) => {
          chosen.value = e.currentTarget.value;
          const found = all.value.find((each) => each.name === chosen.value);
          const { name: _, ...rest } = found ?? { name: "" };
          apply(rest);
        }}
      >
        <option value="">{words.noPreset}</option>
        {all.value.map((each) => (
          <option key={each.name} value={each.name}>
            {each.name}
          </option>
        ))}
      </select>
      {chosen.value ? (
        <IconButton
          icon="trash"
          size={18}
          label={words.deletePreset(chosen.value)}
          onClick={() => (put(all.value.filter((each) => each.name !== chosen.value)), (chosen.value = ""))}
        />
      ) : null}
      <Button onClick={() => (name.value = chosen.value)}>{words.savePreset}</Button>
    </div>
  );
}
