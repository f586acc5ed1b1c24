// The request that makes an answer, as curl and as Python: the messages before it, its model and its sampling. Pictures
// are files that the program reads, to be downloaded beside it: a page with megabytes of base64 would be of no help.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { me } from "../../api/me";
import { request } from "../../api/session";
import type { ChatSettings, Message } from "../../api/types";
import { Button } from "../../parts/button";
import { Dialog } from "../../parts/dialog";
import { texts } from "../../texts";
import { copy } from "./actions";
import { escaped } from "./json";
import { type Chat, load, messageOf } from "./opened";
import { addressOf } from "./picture";
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
  const files = useSignal<PictureFile[]>([]);
  useEffect(() => {
    void load(chat, before)
      .then(() => filesOf(chat, before))
      .then((found) => (files.value = found))
      .catch(() => {}) // the server is away, as the page says
      .finally(() => (ready.value = true));
  }, []);
  const body = ready.value ? bodyOf(chat, message, before, files.value) : null;
  const text = body ? (kind.value === "curl" ? curl : python)(body, files.value) : words.loading;
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
      {files.value.length > 0 && (
        <p class="small">
          {words.pictures.beside}{" "}
          {files.value.map((file) => (
            <span key={file.name}>
              <a href={file.address} download={file.name}>
                {file.name}
              </a>{" "}
            </span>
          ))}
        </p>
      )}
    </Dialog>
  );
}

type Body = Record<string, unknown>;

/** A picture as a file beside the program. `mark` stands in the request for its base64. */
interface PictureFile {
  saved: string; // as its message has it
  name: string;
  type: string;
  mark: string;
  address: string;
}

/** The pictures of these messages, each once. */
async function filesOf(chat: Chat, before: string[]): Promise<PictureFile[]> {
  const all = before.flatMap((id) => messageOf(chat, id).peek()?.images ?? []);
  const files: PictureFile[] = [];
  for (const saved of new Set(all)) {
    const address = addressOf(chat.id, saved);
    if (!address) continue;
    const type = /^data:([^;]+);/.exec(saved)?.[1] ?? (await typeAt(address));
    const name = `picture-${files.length + 1}.${type.replace(/.*\//, "").replace("jpeg", "jpg")}`;
    files.push({ saved, name, type, mark: `<${name} in base64>`, address });
  }
  return files;
}

async function typeAt(address: string): Promise<string> {
  const answer = await request(address, { method: "GET" });
  void answer.body?.cancel();
  return answer.headers.get("content-type") ?? "";
}

export function bodyOf(chat: Chat, message: Message, before: string[], files: PictureFile[]): Body {
  const settings = (message.receipt?.bits?.settings as ChatSettings | undefined) ?? chat.settings.peek();
  const said = before.map((id) => messageOf(chat, id).peek()).filter((each): each is Message => each !== null);
  const sampling = message.receipt?.sampling ?? settings.sampling ?? {};
  const kept = Object.entries(sampling).filter(([name, value]) => typeof value === "number" || name === "seed");
  const max = message.receipt?.max_tokens ?? settings.max_tokens;
  return {
    model: message.model,
    messages: [
      ...(settings.system ? [{ role: "system", content: settings.system }] : []),
      ...said.map((each) => ({ role: each.role, content: contentOf(each, files), ...thoughtOf(each), ...callsOf(each) })),
    ],
    ...(settings.think != null && { think: settings.think }),
    ...Object.fromEntries(kept),
    ...(max && { max_tokens: max }),
    stream: true,
  };
}

/** Files before the text, in the words in which the server puts them there. */
function contentOf(message: Message, pictures: PictureFile[]): unknown {
  const files = (message.files ?? []).map((file) => `File ${file.name}:\n\`\`\`\n${file.text.trimEnd()}\n\`\`\``);
  const text = [...files, message.content].join("\n\n");
  const seen = (message.images ?? []).flatMap((saved) => pictures.find((each) => each.saved === saved) ?? []);
  if (!seen.length) return text;
  const images = seen.map(({ type, mark }) => ({ type: "image_url", image_url: { url: `data:${type};base64,${mark}` } }));
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

function curl(body: Body, files: PictureFile[]): string {
  const json = written(body, 2);
  const key = me.value?.keyed ? `  -H "Authorization: Bearer $FREEHOLD_API_KEY" \\\n` : "";
  const head = `curl -N ${location.origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${key}`;
  if (!files.length) return `${head}  -d '${json.replaceAll("'", "'\\''")}'\n`;
  // An argument is too short for a picture. In what stands here instead the shell looks for these three characters.
  const safe = files.reduce(
    (text, { mark, name }) => text.replaceAll(mark, () => `$(base64 < ${name} | tr -d '\\n')`),
    json.replace(/[\\$`]/g, "\\$&"),
  );
  return `${head}  -d @- <<END\n${safe}\nEND\n`;
}

function python(body: Body, files: PictureFile[]): string {
  const text = JSON.stringify(written({ ...body, stream: false }));
  const shown = files.map(({ mark, name }) => `text = text.replace("${mark}", base64.b64encode(open("${name}", "rb").read()).decode())\n`);
  const headers = me.value?.keyed
    ? `headers = {"Authorization": "Bearer " + os.environ["FREEHOLD_API_KEY"], "Content-Type": "application/json"}`
    : `headers = {"Content-Type": "application/json"}`;
  return `${files.length ? "import base64\n" : ""}import json
import os
import urllib.request

${files.length ? `text = ${text}\n${shown.join("")}body = json.loads(text)` : `body = json.loads(${text})`}
${headers}
request = urllib.request.Request("${location.origin}/v1/chat/completions", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
`.replace(me.value?.keyed ? "\0" : "import os\n", "");
}
