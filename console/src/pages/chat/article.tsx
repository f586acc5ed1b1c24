// One message of the conversation: who says it, its text, what is going on with it, and what can be done with it.
// Its text is hostile: it reaches the page only through <Text>. Redrawn by signals, never by the log.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { hintOnce } from "../../api/client";
import type { ChatSettings, Message, Receipt } from "../../api/types";
import { Button } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { Plain, Text, Verbatim } from "../../text";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { Actions } from "./actions";
import { canContinue, continueAnswer } from "./altering";
import { Approval } from "./approval";
import { Attachments, Calls, Thinking, ToolResult } from "./body";
import { type Chat, messageOf } from "./opened";
import { ReceiptPanel } from "./receipt";
import { Pictures, SentPictures } from "./seen";
import { RequestDialog } from "./request";
import { epilogues, type Live, liveOf, type Wait } from "./lives";
import { editing, type Pending, regenerate, takeBack } from "./sending";

const words = texts.chat;

export function Article({ chat, id }: { chat: Chat; id: string }) {
  const message = messageOf(chat, id).value;
  const role = chat.tree.value.nodes.get(id)?.role;
  const open = useSignal<"receipt" | "request" | null>(null);
  const live = liveOf(id);
  if (!message)
    return <Frame id={id} role={role ?? "assistant"} name={role === "user" ? texts.you : words.model} loading />;
  if (role === "tool")
    return (
      <div class="message tool" data-id={id} hidden={isCalled(chat, message)}>
        <ToolResult chat={chat} message={message} />
      </div>
    );
  const mine = message.role === "user";
  const system = message.role === "system";
  return (
    <Frame
      id={id}
      role={message.role}
      name={mine ? texts.you : system ? words.system : message.model || words.model}
      edited={editing.value === id}
      busy={message.state === "open"}
    >
      <LeftOut context={message.receipt?.context ?? live?.context} />
      <Thinking message={message} live={live} />
      {message.content && (
        <div class={mine ? "bubble" : "said"}>
          {mine || system ? <Verbatim text={message.content} /> : <Text source={message.content} open={message.state === "open"} />}
        </div>
      )}
      <Attachments
        files={message.files ?? []}
        pictures={message.images?.length ? <Pictures chat={chat.id} saved={message.images} /> : null}
      />
      <Calls chat={chat} message={message} live={live} />
      {live && <Progress live={live} empty={!message.content} />}
      {live?.asks.map((ask) => <Approval key={ask.call + ask.digest} ask={ask} live={live} />)}
      <Ending message={message} settings={chat.settings.value} />
      <Actions chat={chat} message={message} open={open} />
      {open.value === "receipt" && <ReceiptPanel chat={chat} message={message} />}
      {open.value === "request" && <RequestDialog chat={chat} message={message} close={() => (open.value = null)} />}
    </Frame>
  );
}

interface FrameProps {
  id: string;
  role: string;
  name: string;
  edited?: boolean;
  busy?: boolean;
  loading?: boolean;
  children?: ComponentChildren;
}

function Frame({ id, role, name, edited, busy, loading, children }: FrameProps) {
  return (
    <article
      class={`message ${role}${edited ? " edited" : ""}`}
      data-id={id}
      aria-label={shown(name)}
      aria-busy={busy || loading || undefined}
      tabIndex={-1}
    >
      {role !== "user" && <header class="speaker"><Plain text={name} /></header>}
      {loading ? <div class="loading-lines" aria-label={words.loading} /> : children}
    </article>
  );
}

/** That the model did not read all of the chat, and how much of it. */
function LeftOut({ context }: { context: Partial<Receipt["context"]> | null | undefined }) {
  if (!context?.dropped_messages) return null;
  return (
    <p class="remark left-out">
      <Icon name="info" size={16} /> {words.leftOut(context.dropped_messages, context.limit ?? 0)}
    </p>
  );
}

/** What is going on while nothing, or no more, is to be read. */
function Progress({ live, empty }: { live: Live; empty: boolean }) {
  if (live.away) return null; // the page's notice says it
  const wait = live.asks.length ? null : live.wait; // a question waits for the reader
  const said = live.stopping ? words.stopping : wait && waitsFor(wait);
  return (
    <>
      {live.notes.map((note) => (
        <p key={note} class="remark">
          <Icon name="info" size={16} /> {note}
        </p>
      ))}
      {said ? (
        <p class="remark pulse">{said}</p>
      ) : (
        empty && live.phase === "waiting" && !live.asks.length && <p class="dots" aria-label={words.waiting}><i /><i /><i /></p>
      )}
    </>
  );
}

function waitsFor({ why, done, of, expected_s }: Wait): string {
  if (why === "load") return words.loadingModel(done && of ? done / of : null);
  if (why === "prompt") return words.reading(done ?? 0, of ?? 0);
  if (why === "queue") return words.queued(expected_s ?? null);
  return why === "tools" ? words.startingTools : words.engineAgain;
}

/** How an answer ended, where that is not by itself; and the way on. */
function Ending({ message, settings }: { message: Message; settings: ChatSettings }) {
  const epilogue = epilogues.value.get(message.id);
  const { state } = message;
  const found = epilogue?.error ?? message.error;
  const error = found && hintOnce(found);
  const full = error?.code === "context_length_exceeded"; // the page has its own way out of this one
  const hint = full ? words.contextHint(settings.overflow === "error") : error?.hint;
  const again = (
    <Button icon="again" onClick={() => void regenerate(message.id)}>
      {words.regenerate}
    </Button>
  );
  const further = canContinue(message) && (
    <Button icon="play" onClick={() => void continueAnswer(message.id)}>
      {words.continue}
    </Button>
  );
  return (
    <>
      {epilogue?.notes.map((note) => (
        <p key={note} class="remark">
          <Icon name="info" size={16} /> {note}
        </p>
      ))}
      {(state === "stopped" || state === "length") && (
        <p class="remark ended">
          <span>{state === "stopped" ? words.stopped : cutOff(message, settings)}</span>
          {further}
        </p>
      )}
      {(state === "failed" || state === "lost") && message.role !== "user" && (
        <div class="trouble" role="group" aria-label={words.trouble}>
          <Icon name="warning" size={18} />
          <div>
            <p>{state === "lost" ? words.lost : (error?.message ?? words.failed)}</p>
            {hint && <p class="dim">{hint}</p>}
          </div>
          {further || again}
        </div>
      )}
    </>
  );
}

/** Which limit ended an answer: its own of tokens, or the model's context. */
function cutOff({ receipt }: Message, { overflow }: ChatSettings): string {
  const { used = 0, limit = 0 } = receipt?.context ?? {};
  if (limit && used >= limit) return words.cutByContext(limit, overflow === "error");
  return words.cutByLimit(receipt?.max_tokens || null);
}

/** Whether the call that a tool's message answers is in the chat: then its row shows the result. */
function isCalled(chat: Chat, message: Message): boolean {
  for (let parent = message.parent; parent; parent = chat.tree.peek().nodes.get(parent)?.parent ?? null) {
    const above = messageOf(chat, parent).value;
    if (above?.calls?.some((call) => call.id === message.call)) return true;
    if (above && above.role !== "tool") return false;
  }
  return false;
}

/** A message that the server does not have yet. */
export function PendingArticle({ pending: { chat, draft, held } }: { pending: Pending }) {
  return (
    <article class="message user waits" aria-label={texts.you} aria-busy="true">
      {draft.text && (
        <div class="bubble">
          <Verbatim text={draft.text} />
        </div>
      )}
      <Attachments
        files={draft.files}
        pictures={draft.images.length ? <SentPictures chat={chat.id} pictures={draft.images} /> : null}
      />
      {held && (
        <div class="trouble">
          <p>{words.notSent}</p>
          <Button onClick={takeBack}>{words.takeBack}</Button>
        </div>
      )}
    </article>
  );
}
