// The request that makes an answer, as curl and as Python: the messages before it, its model and its sampling.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { me } from "../../api/me";
import type { ChatSettings, Message } from "../../api/types";
import { Button } from "../../parts/button";
import { Dialog } from "../../parts/dialog";
import { texts } from "../../texts";
import { copy } from "./actions";
import { escaped } from "./json";
import { type Chat, load, messageOf } from "./opened";
import { branchOf } from "./tree";

const words = texts.chat;

interface Props {
  chat: Chat;
  message: Message;
  close: () => void;
}

export function RequestDialog({ chat, message, close }: Props) {
  const kind = useSignal<"curl" | "python">("curl");
  const ready = useSignal(false);
  const before = branchOf(chat.tree.peek(), message.parent);
  useEffect(() => void load(chat, before).finally(() => (ready.value = true)), []);
  const body = ready.value ? bodyOf(chat, message, before) : null;
  const text = body ? (kind.value === "curl" ? curl(body) : python(body)) : words.loading;
  return (
    <Dialog
      title={words.request}
      onClose={close}
      wide
      actions={
        <Button kind="primary" icon="copy" onClick={() => void copy(text)}>
          {words.copy}
        </Button>
      }
    >
      <div class="choice" role="group" aria-label={words.request}>
        {(["curl", "python"] as const).map((each) => (
          <button key={each} type="button" aria-pressed={kind.value === each} onClick={() => (kind.value = each)}>
            {each === "curl" ? "curl" : "Python"}
          </button>
        ))}
      </div>
      <pre class="request" tabIndex={0}>
        {text}
      </pre>
    </Dialog>
  );
}

type Body = Record<string, unknown>;

export function bodyOf(chat: Chat, message: Message, before: string[]): Body {
  const settings = (message.receipt?.bits?.settings as ChatSettings | undefined) ?? chat.settings.peek();
  const said = before.map((id) => messageOf(chat, id).peek()).filter((each): each is Message => each !== null);
  const sampling = message.receipt?.sampling ?? settings.sampling ?? {};
  const kept = Object.entries(sampling).filter(([name, value]) => typeof value === "number" || name === "seed");
  const max = message.receipt?.max_tokens ?? settings.max_tokens;
  return {
    model: message.model,
    messages: [
      ...(settings.system ? [{ role: "system", content: settings.system }] : []),
      ...said.map((each) => ({ role: each.role, content: contentOf(each), ...thoughtOf(each), ...callsOf(each) })),
    ],
    ...(settings.think != null && { think: settings.think }),
    ...Object.fromEntries(kept),
    ...(max && { max_tokens: max }),
    stream: true,
  };
}

/** Files before the text, in the words in which the server puts them there. */
function contentOf(message: Message): unknown {
  const files = (message.files ?? []).map((file) => `File ${file.name}:\n\`\`\`\n${file.text.trimEnd()}\n\`\`\``);
  const text = [...files, message.content].join("\n\n");
  if (!message.images?.length) return text;
  const images = message.images.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...images, { type: "text", text }];
}

const thoughtOf = ({ thinking }: Message): Body => (thinking ? { reasoning_content: thinking } : {});

function callsOf(message: Message): Body {
  if (message.role === "tool") return { tool_call_id: message.call };
  if (!message.calls?.length) return {};
  const calls = message.calls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  return { tool_calls: calls };
}

/** JSON with the seed as the number that it is, however many digits it has, and nothing invisible. */
function written(body: Body, indent = 0): string {
  const json = JSON.stringify(body, null, indent).replace(/^( *"seed": ?)"(\d+)"/m, "$1$2");
  return escaped(json.replace(/,"seed":"(\d+)"/, ',"seed":$1'));
}

function curl(body: Body): string {
  const quoted = written(body, 2).replaceAll("'", "'\\''");
  const key = me.value?.keyed ? `  -H "Authorization: Bearer $FREEHOLD_API_KEY" \\\n` : "";
  return `curl -N ${location.origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${key}  -d '${quoted}'\n`;
}

function python(body: Body): string {
  const headers = me.value?.keyed
    ? `headers = {"Authorization": "Bearer " + os.environ["FREEHOLD_API_KEY"], "Content-Type": "application/json"}`
    : `headers = {"Content-Type": "application/json"}`;
  return `import json
import os
import urllib.request

body = json.loads(${JSON.stringify(written({ ...body, stream: false }))})
${headers}
request = urllib.request.Request("${location.origin}/v1/chat/completions", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
`.replace(me.value?.keyed ? "\0" : "import os\n", "");
}
