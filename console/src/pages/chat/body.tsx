// What a message has besides its text: thinking, files, images, calls of tools and their results. All of it folded, and
// drawn only while it is open.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import type { AttachedFile, Message, ToolCall } from "../../api/types";
import { Icon, type IconName } from "../../parts/icons";
import { Text, Verbatim } from "../../text";
import { pretty } from "./json";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { type Live, thoughtSeconds } from "./lives";

const words = texts.chat;
const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/;

interface FoldProps {
  icon?: IconName;
  title: ComponentChildren;
  note?: string;
  busy?: boolean;
  children: () => ComponentChildren;
}

/** A line that opens; what it holds is made when it does. */
export function Fold({ icon, title, note, busy, children }: FoldProps) {
  const open = useSignal(false);
  return (
    <div class={busy ? "fold busy" : "fold"}>
      <button type="button" aria-expanded={open.value} onClick={() => (open.value = !open.value)}>
        <Icon name={open.value ? "down" : "right"} size={16} />
        {icon && <Icon name={icon} size={16} />}
        <span>{title}</span>
        {note && <small>{note}</small>}
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

export function Attachments({ files, images }: { files: AttachedFile[]; images: string[] }) {
  const pictures = images.filter((each) => PICTURE.test(each));
  if (!files.length && !pictures.length) return null;
  return (
    <div class="attachments">
      {pictures.map((each, i) => (
        <img key={i} src={each} alt={words.picture(i + 1)} />
      ))}
      {files.map((file, i) => (
        <Fold key={i} icon="file" title={shown(file.name)} note={words.characters(file.text.length)}>
          {() => <Verbatim text={file.text} code />}
        </Fold>
      ))}
    </div>
  );
}

/** Calls that an answer makes: from its run while it runs, from its message afterwards. */
export function Calls({ message, live }: { message: Message; live: Live | null }) {
  const running = live?.tools ?? [];
  const rest = (message.calls ?? []).filter((call) => !running.some((tool) => tool.call === call.id));
  return (
    <>
      {running.map((tool) => (
        <Fold
          key={tool.call}
          icon="tool"
          title={words.calls(shown(tool.server), shown(tool.tool))}
          note={words.toolStates[tool.state]}
          busy={tool.state === "running"}
        >
          {() => <Both arguments={tool.arguments} result={tool.result} />}
        </Fold>
      ))}
      {rest.map((call) => (
        <Fold key={call.id} icon="tool" title={words.calls(shown(call.server), shown(call.name))}>
          {() => <Both arguments={call.arguments} />}
        </Fold>
      ))}
    </>
  );
}

export function ToolResult({ message, call }: { message: Message; call: ToolCall | null }) {
  const title = call ? words.result(shown(call.server), shown(call.name)) : words.resultOf;
  const { outcome } = message;
  const unlike = outcome === "denied" || outcome === "failed";
  return (
    <Fold icon="tool" title={title} note={unlike ? words.toolStates[outcome] : words.characters(message.content.length)}>
      {() => <Both arguments={call?.arguments} result={message.content} />}
    </Fold>
  );
}

function Both({ arguments: asked, result }: { arguments?: string | undefined; result?: string | undefined }) {
  return (
    <>
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
