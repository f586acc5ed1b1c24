// How full the model's context is after the last answer, as its receipt says. Absent until there is one.
import { Meter } from "../../parts/meter";
import { whole } from "../../parts/numbers";
import { texts } from "../../texts";
import { type Chat, messageOf } from "./opened";

export function ContextMeter({ chat }: { chat: Chat }) {
  const branch = chat.branch.value;
  for (let i = branch.length - 1; i >= Math.max(0, branch.length - 6); i--) {
    const context = messageOf(chat, branch[i]!).value?.receipt?.context;
    if (!context?.limit) continue;
    const said = texts.chat.ofContext(whole(context.used), whole(context.limit));
    const full = context.used / context.limit > 0.85 || context.dropped_messages > 0;
    return (
      <div class="context" title={said}>
        <Meter label={texts.chat.context} value={context.used} max={context.limit} said={said} tone={full ? "warn" : "accent"} />
        <small>{texts.chat.share(context.used / context.limit)}</small>
      </div>
    );
  }
  return null;
}
