// Short messages at the foot of the page, spoken calmly by a screen reader, with at most one action such as Undo.
import { signal } from "@preact/signals";
import { texts } from "../texts";
import { ApiError } from "../api/client";
import { Button, IconButton } from "./button";
import { Icon } from "./icons";

export interface NoticeContent {
  text: string;
  kind?: "info" | "error";
  action?: { label: string; run: () => void };
  seconds?: number; // how long it stays; default 6, with an action 20, an error until it is closed
}

interface Shown extends NoticeContent {
  id: number;
}

const MOST = 3;
const shown = signal<Shown[]>([]);
let count = 0;

/** Show a message; returns a function that takes it away. */
export function notify(content: NoticeContent): () => void {
  const id = ++count;
  const close = () => {
    shown.value = shown.value.filter((notice) => notice.id !== id);
  };
  shown.value = [...shown.value, { ...content, id }].slice(-MOST);
  const seconds = content.seconds ?? (content.kind === "error" ? 0 : content.action ? 20 : 6);
  if (seconds) setTimeout(close, seconds * 1000);
  return close;
}

/** Show what a request was refused with, and the way out that the server named. */
export function notifyError(e: unknown): void {
  notify({ kind: "error", text: saying(e) });
}

/** An error as a sentence or two. */
export function saying(e: unknown): string {
  if (e instanceof ApiError && e.hint) return `${e.message}. ${e.hint}`;
  return e instanceof Error ? e.message : String(e);
}

/** Where messages appear; the frame has one. */
export function Notices() {
  return (
    <div class="notices" role="status" aria-live="polite">
      {shown.value.map((notice) => (
        <div key={notice.id} class={`notice ${notice.kind ?? "info"}`}>
          {notice.kind === "error" && <Icon name="warning" size={18} />}
          <p>{notice.text}</p>
          {notice.action && (
            <Button kind="quiet" onClick={() => (closeOf(notice.id), notice.action!.run())}>
              {notice.action.label}
            </Button>
          )}
          <IconButton icon="close" size={16} label={texts.parts.dismiss} onClick={() => closeOf(notice.id)} />
        </div>
      ))}
    </div>
  );
}

function closeOf(id: number): void {
  shown.value = shown.value.filter((notice) => notice.id !== id);
}
