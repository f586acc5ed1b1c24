// The head of the conversation: its title, what steers its answers beside the messages, its model, and what opens.
import { IconButton } from "../../parts/button";
import { Icon, type IconName } from "../../parts/icons";
import { shown } from "../../text/shown";
import { texts } from "../../texts";
import { ContextMeter } from "./context";
import type { Chat } from "./opened";
import { Picker } from "./picker";

const words = texts.chat;
const LONG = 300; // characters of a system prompt that the pointer shows

interface HeadProps {
  chat: Chat;
  listed: boolean;
  panel: boolean;
  toggle: Record<"list" | "find" | "panel", () => void>;
}

export function Head({ chat, listed, panel, toggle }: HeadProps) {
  return (
    <header class="chat-head">
      <IconButton icon="menu" label={words.showList} aria-expanded={listed} onClick={toggle.list} />
      <h1>{shown(chat.card.value?.title || (chat.id ? words.untitled : words.newTitle))}</h1>
      <ContextMeter chat={chat} />
      <Picker chat={chat} />
      <IconButton icon="search" label={words.find} onClick={toggle.find} />
      <IconButton icon="settings" label={words.settings} aria-expanded={panel} onClick={toggle.panel} />
      <Steering chat={chat} open={() => panel || toggle.panel()} />
    </header>
  );
}

/** Chips of a system prompt and of tools whenever they are set; each opens the settings. */
function Steering({ chat, open }: { chat: Chat; open: () => void }) {
  const { system, tools } = chat.settings.value;
  const chips: [IconName, string, string][] = [];
  if (system) chips.push(["info", words.system, shown(system.length > LONG ? `${system.slice(0, LONG)}…` : system)]);
  if (tools?.length) chips.push(["tool", words.toolsSet(tools.map(shown).join(", ")), ""]);
  if (!chips.length) return null;
  return (
    <ul class="steering" aria-label={words.steering}>
      {chips.map(([icon, label, title]) => (
        <li key={icon}>
          <button type="button" title={title || label} onClick={open}>
            <Icon name={icon} size={14} /> <span>{label}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}
