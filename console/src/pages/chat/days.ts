// The groups of the list of chats: today, yesterday, the last week and month, then months by name.
import { texts } from "../../texts";

const DAY = 86_400_000;
const months = new Map<number, string>(); // a name costs 30 µs to make, and there may be 10,000 chats

export function groupOf(updated: number, now: Date): string {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const at = updated * 1000;
  if (at >= midnight) return texts.chat.today;
  if (at >= midnight - DAY) return texts.chat.yesterday;
  if (at >= midnight - 7 * DAY) return texts.chat.lastWeek;
  if (at >= midnight - 30 * DAY) return texts.chat.lastMonth;
  const date = new Date(at);
  const month = date.getFullYear() * 12 + date.getMonth();
  let name = months.get(month);
  if (!name) months.set(month, (name = date.toLocaleDateString("en-GB", { month: "long", year: "numeric" })));
  return name;
}
