// The box that messages are written in: it grows, keeps what is written, takes files, and names the model that answers.
// A key typed changes one signal and one entry of storage; nothing else of the page is drawn again.
import { type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Button, IconButton } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { texts } from "../../texts";
import { attachFiles, dropping, takePaste } from "./attach";
import { isBlindTo, Sightless } from "./blind";
import { Camera } from "./camera";
import { Chips } from "./chips";
import { cameras, watchDevices } from "./devices";
import { caret } from "./ears/hearing";
import { microphone } from "./ears/microphone";
import { MicrophoneButton, Recorder } from "./ears/recorder";
import { Recordings } from "./ears/rows";
import { sends } from "./kept";
import { Mention } from "./mention";
import { hearing } from "./models";
import { type Chat, messageOf, opened } from "./opened";
import { type Live, lives } from "./lives";
import { stop } from "./runs";
import { beginEdit, box, editing, endEdit, other, pending, rewording, send, typed } from "./sending";

const words = texts.chat;
const TOUCH = matchMedia("(pointer: coarse)"); // focus opens a keyboard over the page. Without a mouse there is no pointer
const GROWS = CSS.supports("field-sizing", "content");

type Area = RefObject<HTMLTextAreaElement | null>;
export const composer: { focus: () => void } = { focus: () => {} };

export function Composer({ chat }: { chat: Chat }) {
  const area = useRef<HTMLTextAreaElement>(null);
  const mention = useSignal<string | null>(null); // what follows an @ at the caret
  const running = useComputed(() => [...lives.value.values()].find((live) => chat.branch.value.includes(live.value.answer)));
  const blind = useComputed(() => isBlindTo(opened.value)); // `chat` would be the one of an earlier drawing
  const empty = useComputed(
    () => blind.value || (!box.value.text.trim() && !box.value.files.length && !box.value.images.length),
  );

  composer.focus = () => area.current?.focus();
  caret.insert = insert;
  const refocus = () => void (TOUCH.matches || area.current?.focus());
  useSignalEffect(() => {
    void box.value.count; // set from outside: the element follows
    const node = area.current;
    if (!node || node.value === box.peek().text) return;
    node.value = box.peek().text;
    node.setSelectionRange(node.value.length, node.value.length);
    grow(node);
  });
  useEffect(() => {
    if (!TOUCH.matches) area.current!.focus();
  }, [chat]);
  useSignalEffect(() => {
    if (editing.value !== null) area.current?.focus(); // Edit was pressed: what is edited is here
  });
  useFirstLetter(area);

  function input(node: HTMLTextAreaElement) {
    typed(node.value);
    grow(node);
    const before = node.value.slice(Math.max(0, node.selectionStart - 80), node.selectionStart);
    mention.value = /(?:^|\s)@([\w.:/-]*)$/.exec(before)?.[1] ?? null;
  }

  /** Put a text in place of what is selected, apart from the word before it. */
  function insert(text: string) {
    const node = area.current;
    if (!node) return;
    const apart = /\S$/.test(node.value.slice(0, node.selectionStart)) ? " " : "";
    node.setRangeText(apart + text, node.selectionStart, node.selectionEnd, "end");
    input(node);
  }

  function key(e: KeyboardEvent) {
    if (e.isComposing || e.keyCode === 229) return; // the Enter that ends a word of an input method
    if (document.getElementById("mention") && ["ArrowDown", "ArrowUp", "Enter", "Tab", "Escape"].includes(e.key)) return;
    const node = area.current!;
    if (sends(e)) {
      e.preventDefault();
      submit();
    } else if (e.key === "ArrowUp" && node.value === "" && editing.peek() === null && !e.shiftKey && !e.altKey) {
      const last = chat.branch.peek().findLast((id) => chat.tree.peek().nodes.get(id)?.role === "user");
      if (last && messageOf(chat, last).peek()) {
        e.preventDefault();
        beginEdit(last);
      }
    } else if (e.key === "Escape" && (editing.peek() !== null || running.peek())) {
      e.preventDefault();
      if (editing.peek() !== null) endEdit();
      else void stop(running.peek()!.peek());
    }
  }

  function submit() {
    if (!running.peek() && !empty.peek()) void send();
  }

  function mentioned(model: string) {
    const node = area.current!;
    const at = node.selectionStart;
    const before = node.value.slice(0, at).replace(/@[\w.:/-]*$/, "");
    node.value = before + node.value.slice(at);
    node.setSelectionRange(before.length, before.length);
    mention.value = null;
    other.value = model;
    typed(node.value);
    node.focus();
  }

  return (
    <form
      class={dropping.value ? "composer dropping" : "composer"}
      onSubmit={(e) => (e.preventDefault(), submit())}
    >
      {editing.value !== null && <Editing answer={rewording(chat)} />}
      {mention.value !== null && (
        <Mention typed={mention.value} area={area} choose={mentioned} close={() => (mention.value = null)} />
      )}
      <Chips done={refocus} />
      <Recordings done={refocus} />
      {blind.value && <Sightless chat={chat} />}
      <textarea
        ref={area}
        rows={1}
        aria-label={texts.message}
        placeholder={dropping.value ? (hearing.value.length ? words.ears.dropHere : words.dropHere) : words.placeholder}
        onInput={(e) => input(e.currentTarget)}
        onKeyDown={key}
        onPaste={takePaste}
        onBlur={() => setTimeout(() => (mention.value = null), 150)}
      />
      {microphone.value !== "off" ? (
        <Recorder done={refocus} />
      ) : (
        <Foot running={running.value} empty={empty.value} area={area} keeps={editing.value !== null && rewording(chat)} />
      )}
    </form>
  );
}

/** A letter typed on the page or its conversation, outside of any field, is the first of a message. */
function useFirstLetter(area: Area): void {
  useEffect(() => {
    const take = (e: KeyboardEvent) => {
      const command = e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented;
      if (command || e.key.length !== 1 || e.key === " " || document.querySelector("dialog[open], :popover-open")) return;
      if ((e.target as Element).matches("body, main, .log")) area.current?.focus();
    };
    addEventListener("keydown", take);
    return () => removeEventListener("keydown", take);
  }, []);
}

function Editing({ answer }: { answer: boolean }) {
  return (
    <div class="editing">
      <Icon name="edit" size={16} /> <span>{answer ? words.rewording : words.editing}</span>
      <Button kind="quiet" onClick={endEdit}>
        {texts.parts.cancel}
      </Button>
    </div>
  );
}

interface FootProps {
  running: Signal<Live> | undefined;
  empty: boolean;
  area: Area;
  keeps: boolean; // it is another wording of an answer
}

function Foot({ running, empty, area, keeps }: FootProps) {
  const stopNow = () => {
    void stop(running!.peek());
    if (!TOUCH.matches) area.current!.focus(); // for the button goes away with the answer
  };
  return (
    <div class="composer-foot">
      <AttachButton />
      <CameraButton />
      <MicrophoneButton />
      <span class="grow" />
      {running ? (
        <Button kind="primary" icon="stop" busy={running.value.stopping} onClick={stopNow}>
          {texts.stop}
        </Button>
      ) : (
        <Button kind="primary" icon={keeps ? "check" : "send"} type="submit" disabled={empty || pending.value !== null}>
          {keeps ? words.save : texts.send}
        </Button>
      )}
    </div>
  );
}

/** Where the style sheet cannot make the box as high as its text. */
function grow(node: HTMLTextAreaElement): void {
  if (GROWS) return;
  node.style.height = "auto";
  node.style.height = `${node.scrollHeight}px`;
}

/** Where this browser has a camera that the page may use. */
function CameraButton() {
  const open = useSignal(false);
  useEffect(watchDevices, []);
  if (!cameras.value) return null;
  return (
    <>
      <IconButton icon="camera" label={words.pictures.camera} onClick={() => (open.value = true)} />
      {open.value && <Camera take={(file) => attachFiles([file])} close={() => (open.value = false)} />}
    </>
  );
}

function AttachButton() {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <IconButton icon="attach" label={hearing.value.length ? words.ears.attach : words.attach} onClick={() => input.current!.click()} />
      <input
        ref={input}
        type="file"
        multiple
        hidden
        onChange={(e) => {
          attachFiles([...(e.currentTarget.files ?? [])]);
          e.currentTarget.value = "";
        }}
      />
    </>
  );
}

