// Says that the server does not answer and what to do, on every page that follows runs.
import { Icon } from "../../parts/icons";
import { texts } from "../../texts";
import { downSince } from "./link";

const words = texts.chat;

/** What happened while the server cannot be reached, and what to do. */
export function Away() {
  if (downSince.value === null) return null;
  return (
    <div class="away" role="status">
      <Icon name="warning" size={18} />
      <p>
        <b>{words.away}</b> {words.awayHint}
      </p>
    </div>
  );
}
