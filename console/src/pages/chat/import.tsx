// Takes in a chat that was exported. A file may be a stranger's: its tools are left out by the server, and a system prompt
// stays only if it was shown and chosen. Knows the export's fields; writes nothing itself.
import { type Signal, signal } from "@preact/signals";
import { post } from "../../api/client";
import type { Card } from "../../api/types";
import { ask } from "../../parts/dialog";
import { Toggle } from "../../parts/field";
import { notify, notifyError } from "../../parts/notice";
import { go, to } from "../../parts/router";
import { Verbatim } from "../../text";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { changed } from "./cards";
import { reach } from "./link";

const words = texts.chat;

/** Ask about what a file brings along, and make a chat of it; returns whether there is one. */
export async function importFile(file: File): Promise<boolean> {
  try {
    const chat = JSON.parse(await file.text()) as unknown;
    const prompts = systemOf(chat);
    const keep = signal(false);
    const tools = toolsOf(chat);
    const question = {
      title: words.importTitle(shown(file.name)),
      text: <Steered prompts={prompts} tools={tools} keep={keep} />,
      action: words.importDo,
    };
    if ((prompts.length || tools.length) && !(await ask(question))) return false;
    const card = await reach(post<Card>("/console/api/import", { chat, system: keep.value }));
    changed(card);
    go(to("chat", card.id));
    return true;
  } catch (e) {
    if (e instanceof SyntaxError) notify({ kind: "error", text: words.notJson(file.name) });
    else notifyError(e);
    return false;
  }
}

function Steered({ prompts, tools, keep }: { prompts: string[]; tools: string[]; keep: Signal<boolean> }) {
  return (
    <div class="steered">
      {prompts.length > 0 && (
        <>
          <p>{words.importSystem}</p>
          {prompts.map((prompt, i) => (
            <div key={i} class="quoted" tabIndex={0} role="group" aria-label={words.system}>
              <Verbatim text={prompt} />
            </div>
          ))}
          <Toggle label={words.importKeep} on={keep.value} onChange={(on) => (keep.value = on)} />
        </>
      )}
      {tools.length > 0 && <p>{words.importTools(tools.map(shown).join(", "))}</p>}
    </div>
  );
}

type Loose = { [name: string]: unknown } | null | undefined;

/** The system prompts of an exported chat, those among its messages too. The server refuses those of another type than text. */
function systemOf(chat: unknown): string[] {
  const { settings, messages } = (chat ?? {}) as { settings?: Loose; messages?: unknown };
  const rows = (Array.isArray(messages) ? messages : []) as Loose[];
  const said = [settings?.["system"], ...rows.filter((row) => row?.["role"] === "system").map((row) => row?.["content"])];
  return said.filter((text): text is string => typeof text === "string" && text !== "");
}

function toolsOf(chat: unknown): string[] {
  const tools = ((chat ?? {}) as { settings?: Loose }).settings?.["tools"];
  return Array.isArray(tools) ? tools.filter((name): name is string => typeof name === "string") : [];
}
