// What a message has besides its text: thinking, files, images, calls of tools and their results. All of it folded, and
// drawn only while it is open.
import { useSignal } from "@preact/signals";
import { type ComponentChildren, Fragment } from "preact";
import type { AttachedFile, Message, ToolState } from "../../api/types";
import { Icon, type IconName } from "../../parts/icons";
import { Plain, Text, Verbatim } from "../../text";
import { pretty } from "./json";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { type Live, thoughtSeconds } from "./lives";
import { type Chat, messageOf } from "./opened";
import { Pictures } from "./seen";

const words = texts.chat;
const SHORT = 300; // characters of a call's arguments in its row; the row folds out to all of them
const TONES: Record<ToolState, string> = { running: "", done: "good", denied: "bad", failed: "bad" };

interface FoldProps {
  icon?: IconName;
  title: ComponentChildren;
  note?: string;
  tone?: string; // of the note
  busy?: boolean;
  children: () => ComponentChildren;
}

/** A line that opens; what it holds is made when it does. */
export function Fold({ icon, title, note, tone = "", busy, children }: FoldProps) {
  const open = useSignal(false);
  return (
    <div class={busy ? "fold busy" : "fold"}>
      <button type="button" aria-expanded={open.value} onClick={() => (open.value = !open.value)}>
        <Icon name={open.value ? "down" : "right"} size={16} />
        {icon && <Icon name={icon} size={16} />}
        <span>{title}</span>
        {note && <small class={tone}>{note}</small>}
      </button>
      {open.value && <div class="fold-body">{children()}</div>}
    </div>
  );
}

export function Thinking({ message, live }: { message: Message; live: Live | null }) {
  if (!message.thinking) return null;
  const thinks = live?.phase === "thinking";
  const seconds = live?.seconds || thoughtSeconds.get(message.id) || message.receipt?.thinking_s;
  const title = thinks ? words.thinking(seconds ?? 0) : words.thought(seconds ? Number(seconds) : null);
  return (
    <Fold title={title} busy={thinks}>
      {() => <Text source={message.thinking} open={Boolean(thinks)} />}
    </Fold>
  );
}

/** `pictures`: drawn already, since those of a message on its way are not in the chat yet. */
export function Attachments({ files, pictures }: { files: AttachedFile[]; pictures?: ComponentChildren }) {
  if (!files.length && !pictures) return null;
  return (
    <div class="attachments">
      {pictures}
      {files.map((file, i) => (
        <Fold key={i} icon="file" title={shown(file.name)} note={words.characters(file.text.length)}>
          {() => <Verbatim text={file.text} code />}
        </Fold>
      ))}
    </div>
  );
}

/** Calls that an answer makes, a row each: from its run while it runs, from the chat afterwards. */
export function Calls({ chat, message, live }: { chat: Chat; message: Message; live: Live | null }) {
  const calls = message.calls ?? [];
  const running = live?.tools ?? [];
  if (!calls.length && !running.length) return null;
  const results = resultsOf(chat, message.id);
  const known = new Set(calls.map((call) => call.id));
  return (
    <>
      {calls.map((call) => {
        const now = running.find((tool) => tool.call === call.id);
        const result = results.get(call.id);
        const state = result?.outcome ?? now?.state;
        return (
          <Fragment key={call.id}>
            <CallRow {...call} tool={call.name} state={state} result={result?.content ?? now?.result} />
            {result?.images?.length ? <Pictures chat={chat.id} saved={result.images} /> : null}
          </Fragment>
        );
      })}
      {running.filter((tool) => !known.has(tool.call)).map((tool) => <CallRow key={tool.call} {...tool} />)}
    </>
  );
}

interface CallRowProps {
  server: string;
  tool: string;
  arguments: string;
  state?: ToolState | null | undefined;
  result?: string | undefined;
}

function CallRow({ server, tool, arguments: asked, state, result }: CallRowProps) {
  return (
    <Fold
      icon="tool"
      title={
        <>
          <b>
            <Plain text={tool} />
          </b>{" "}
          <span class="call-arguments">
            <Plain text={asked.replace(/\s+/g, " ").slice(0, SHORT)} />
          </span>
        </>
      }
      busy={state === "running"}
      {...(state && { note: words.callStates[state], tone: TONES[state] })}
    >
      {() => <Both server={server} arguments={asked} result={result} />}
    </Fold>
  );
}

/** The results below an answer, by the call that each answers. */
function resultsOf(chat: Chat, id: string): Map<string, Message> {
  const found = new Map<string, Message>();
  const branch = chat.branch.value;
  for (let at = branch.indexOf(id) + 1; at > 0 && at < branch.length; at++) {
    if (chat.tree.value.nodes.get(branch[at]!)?.role !== "tool") break;
    const message = messageOf(chat, branch[at]!).value;
    if (message) found.set(message.call, message);
  }
  return found;
}

/** A result whose call is not in the chat, such as one of an imported chat; any other is in its call's row. */
export function ToolResult({ chat, message }: { chat: Chat; message: Message }) {
  const { outcome } = message;
  const note = outcome === "denied" || outcome === "failed" ? words.callStates[outcome] : words.characters(message.content.length);
  return (
    <>
      <Fold icon="tool" title={words.resultOf} note={note}>
        {() => <Both result={message.content} />}
      </Fold>
      <Pictures chat={chat.id} saved={message.images ?? []} />
    </>
  );
}

interface BothProps {
  server?: string;
  arguments?: string;
  result?: string | undefined;
}

function Both({ server, arguments: asked, result }: BothProps) {
  return (
    <>
      {server && <p class="dim small">{words.ofServer(shown(server))}</p>}
      {asked !== undefined && (
        <>
          <h4>{words.arguments}</h4>
          <Verbatim text={pretty(asked)} code />
        </>
      )}
      {result !== undefined && (
        <>
          <h4>{words.resultOf}</h4>
          <Verbatim text={result} code />
        </>
      )}
    </>
  );
}
