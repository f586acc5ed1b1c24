// The microphone in the composer: a button, and while it listens how long, how loud, and the two ways to end it.
import { useEffect } from "preact/hooks";
import { Button, IconButton } from "../../../parts/button";
import { notify, notifyError } from "../../../parts/notice";
import { texts } from "../../../texts";
import { microphones, watchDevices } from "../devices";
import { spoken } from "../lives";
import { hearing } from "../models";
import { hear } from "./hearing";
import { cancel, finish, level, LIMIT_S, microphone, record, seconds } from "./microphone";
import { clock } from "./subtitles";

const words = texts.chat.ears;

/** Where this browser has a microphone that the page may use, and a model of this server hears. */
export function MicrophoneButton() {
  useEffect(watchDevices, []);
  if (!microphones.value || !hearing.value.length) return null;
  return <IconButton icon="microphone" label={words.record} onClick={() => void begin()} />;
}

async function begin(): Promise<void> {
  try {
    await record((file, length, full) => {
      if (full) notify({ text: words.full(clock(LIMIT_S)) });
      hear(file, length);
    });
    spoken.value = words.recording;
  } catch (e) {
    notifyError(e);
  }
}

/** In place of the composer's buttons. `done`: it was ended either way, and its buttons with it. */
export function Recorder({ done }: { done: () => void }) {
  const on = microphone.value === "on";
  const drop = () => (cancel(), done());
  const keep = () => (finish(), done());
  useEffect(() => {
    const key = (e: KeyboardEvent) => {
      if (e.key !== "Escape" || document.querySelector("dialog[open], :popover-open")) return;
      e.preventDefault();
      e.stopPropagation();
      drop();
    };
    addEventListener("keydown", key, true);
    return () => removeEventListener("keydown", key, true);
  }, []);
  useEffect(() => cancel, []); // the page was left
  return (
    <div class="composer-foot recorder" role="group" aria-label={words.recording}>
      {on ? (
        <>
          <i class="light" aria-hidden="true" />
          <span class="time">
            {clock(seconds.value)} <small>{words.of(clock(LIMIT_S))}</small>
          </span>
          <Level />
        </>
      ) : (
        <span class="grow dim">{words.asking}</span>
      )}
      <Button kind="quiet" onClick={drop}>
        {texts.parts.cancel}
      </Button>
      <Button kind="primary" icon="check" disabled={!on} onClick={keep}>
        {words.done}
      </Button>
    </div>
  );
}

/** How loud it is now, drawn apart because it changes twelve times a second. Quiet speech shows too: it is a root. */
function Level() {
  return (
    <span class="level" aria-hidden="true">
      <i style={{ width: `${Math.round(100 * Math.sqrt(level.value))}%` }} />
    </span>
  );
}
