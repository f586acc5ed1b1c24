// What can be done with a message: a row of buttons under it, and the arrows between its versions.
import type { Signal } from "@preact/signals";
import { useSignal } from "@preact/signals";
import type { Message } from "../../api/types";
import { IconButton } from "../../parts/button";
import { Menu, type MenuItem } from "../../parts/menu";
import { notify } from "../../parts/notice";
import { duration, rate } from "../../parts/numbers";
import { texts } from "../../texts";
import { fork, judge, takeOut } from "./altering";
import { type Chat, show } from "./opened";
import { beginEdit, regenerate } from "./sending";
import { versions } from "./tree";

const words = texts.chat;

interface Props {
  chat: Chat;
  message: Message;
  open: Signal<"receipt" | "request" | null>;
}

export function Actions({ chat, message, open }: Props) {
  const busy = message.state === "open";
  const mine = message.role === "user";
  const editable = mine || (message.role === "assistant" && !message.calls?.length);
  const toggle = (what: "receipt" | "request") => () => (open.value = open.value === what ? null : what);
  return (
    <div class="row">
      {!mine && !busy && <Pace message={message} />}
      <Versions chat={chat} id={message.id} />
      {!busy && (
        <>
          <Copy text={message.content} />
          {editable && <IconButton icon="edit" size={18} label={mine ? words.edit : words.editAnswer} onClick={() => void beginEdit(message.id)} />}
          {!mine && (
            <IconButton icon="again" size={18} label={words.regenerate} onClick={() => void regenerate(message.id)} />
          )}
          {message.role === "assistant" && <Thumbs chat={chat} message={message} />}
          {!mine && message.receipt && (
            <IconButton
              icon="receipt"
              size={18}
              label={words.receipt}
              aria-expanded={open.value === "receipt"}
              onClick={toggle("receipt")}
            />
          )}
          <Menu label={words.moreOfMessage} items={rest(message, toggle("request"))} />
        </>
      )}
    </div>
  );
}

/** What the reader thinks of an answer; the same thumb again takes it back. */
function Thumbs({ chat, message }: { chat: Chat; message: Message }) {
  return (["good", "poor"] as const).map((verdict) => {
    const pressed = message.verdict === verdict;
    return (
      <IconButton
        key={verdict}
        icon={verdict}
        size={18}
        label={words[verdict]}
        aria-pressed={pressed}
        onClick={() => void judge(chat, message, pressed ? "" : verdict)}
      />
    );
  });
}

/** What is asked for less often. */
function rest({ id, role }: Message, request: () => void): MenuItem[] {
  return [
    { label: words.fork, icon: "branch", onSelect: () => void fork(id) },
    ...(role === "assistant" ? [{ label: words.request, icon: "code" as const, onSelect: request }] : []),
    { label: words.deleteMessage, icon: "trash", danger: true, onSelect: () => void takeOut(id) },
  ];
}

/** How fast the answer was written, and how long it took: always in sight. */
function Pace({ message: { receipt, edited } }: { message: Message }) {
  if (edited) return <small class="pace">{words.edited}</small>;
  const took = receipt?.timings?.total_s;
  const said = [receipt?.tok_s ? rate(receipt.tok_s) : "", took ? duration(took) : ""].filter(Boolean);
  return said.length ? <small class="pace">{said.join(" · ")}</small> : null;
}

function Versions({ chat, id }: { chat: Chat; id: string }) {
  const all = versions(chat.tree.value, id);
  if (all.length < 2) return null;
  const at = all.indexOf(id);
  return (
    <span class="versions">
      <IconButton
        icon="left"
        size={18}
        label={words.previousVersion}
        disabled={at === 0}
        onClick={() => step(chat, all, at - 1)}
      />
      <span aria-label={words.version(at + 1, all.length)}>
        {at + 1}/{all.length}
      </span>
      <IconButton
        icon="right"
        size={18}
        label={words.nextVersion}
        disabled={at === all.length - 1}
        onClick={() => step(chat, all, at + 1)}
      />
    </span>
  );
}

/** Show another version; the arrow that was used keeps the focus in the message that took the place. */
export function step(chat: Chat, all: readonly string[], to: number): void {
  const id = all[to];
  if (id === undefined) return;
  const label = document.activeElement?.getAttribute("aria-label");
  show(chat, id);
  requestAnimationFrame(() => {
    const drawn = document.querySelector(`article[data-id="${CSS.escape(id)}"]`);
    const arrow = label && drawn?.querySelector<HTMLElement>(`[aria-label="${CSS.escape(label)}"]:not(:disabled)`);
    ((arrow || drawn) as HTMLElement | null)?.focus({ preventScroll: true });
  });
}

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    notify({ kind: "error", text: words.noClipboard });
    return false;
  }
}

function Copy({ text }: { text: string }) {
  const done = useSignal(false);
  const run = async () => {
    if (!(await copy(text))) return;
    done.value = true;
    setTimeout(() => (done.value = false), 1500);
  };
  return (
    <IconButton icon={done.value ? "check" : "copy"} size={18} label={words.copy} onClick={() => void run()} />
  );
}
