// The model of the chat: a button with its name that opens a list with a search; each model says whether it is in memory.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "../../parts/icons";
import { notifyError } from "../../parts/notice";
import { bytes } from "../../parts/numbers";
import { to } from "../../parts/router";
import { texts } from "../../texts";
import { keep } from "./kept";
import { models, readModels } from "./models";
import { type Chat, edit } from "./opened";
import { Plain } from "../../text";
import { shown } from "../../text/shown";

const words = texts.chat;

/** Ask this model from now on. */
export function choose(chat: Chat, model: string): void {
  chat.model.value = model;
  keep("model", model);
  edit(chat, { model }).catch(notifyError);
}

export function Picker({ chat }: { chat: Chat }) {
  const open = useSignal(false);
  const root = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open.value) return;
    void readModels().catch(() => {});
    const away = (e: Event) => !root.current?.contains(e.target as Node) && (open.value = false);
    addEventListener("pointerdown", away, true);
    return () => removeEventListener("pointerdown", away, true);
  }, [open.value]);
  const close = () => {
    open.value = false;
    root.current?.querySelector("button")?.focus();
  };
  return (
    <div class="picker" ref={root} onKeyDown={(e) => e.key === "Escape" && open.value && (e.stopPropagation(), close())}>
      <button
        type="button"
        class="picker-button"
        aria-haspopup="listbox"
        aria-expanded={open.value}
        aria-label={`${words.model}: ${shown(chat.model.value) || words.noModel}`}
        onClick={() => (open.value = !open.value)}
      >
        <span>{chat.model.value ? <Plain text={chat.model.value} /> : words.noModel}</span>
        <Icon name="down" size={16} />
      </button>
      {open.value && <Choices now={chat.model.value} choose={(model) => (choose(chat, model), close())} />}
    </div>
  );
}

function Choices({ now, choose }: { now: string; choose: (model: string) => void }) {
  const query = useSignal("");
  const at = useSignal(0);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current!.focus(), []);
  const found = (models.value ?? []).filter((model) => model.id.toLowerCase().includes(query.value.toLowerCase()));

  function key(e: KeyboardEvent) {
    if (e.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (step) at.value = (at.value + step + found.length) % Math.max(1, found.length);
    else if (e.key === "Enter" && found[at.value]) choose(found[at.value]!.id);
    else return;
    e.preventDefault();
    document.getElementById(`model-${at.value}`)?.scrollIntoView({ block: "nearest" });
  }

  return (
    <div class="picker-list">
      <input
        ref={input}
        type="text"
        role="combobox"
        aria-label={words.searchModels}
        placeholder={words.searchModels}
        aria-expanded="true"
        aria-controls="models"
        aria-activedescendant={found.length ? `model-${at.value}` : undefined}
        onInput={(e) => ((query.value = e.currentTarget.value), (at.value = 0))}
        onKeyDown={key}
      />
      <ul id="models" role="listbox" aria-label={words.model}>
        {found.map((model, i) => (
          <li
            key={model.id}
            id={`model-${i}`}
            role="option"
            aria-selected={model.id === now}
            class={i === at.value ? "at" : ""}
            onClick={() => choose(model.id)}
            onPointerMove={() => (at.value = i)}
          >
            <span class="tick">{model.id === now && <Icon name="check" size={16} />}</span>
            <span class="grow"><Plain text={model.id} /></span>
            {model.loaded && <small class="tag">{words.inMemory}</small>}
            {model.capabilities?.includes("vision") && <small class="tag">{words.sees}</small>}
            {model.bytes !== null && <small class="dim">{bytes(model.bytes)}</small>}
          </li>
        ))}
      </ul>
      {models.value !== null && !found.length && <p class="dim none">{words.noneFound}</p>}
      <a href={to("models")}>{words.moreModels}</a>
    </div>
  );
}
