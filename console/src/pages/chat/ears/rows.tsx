// The recordings of the open chat above the box: how far each is heard, and what can be done with it.
import { useEffect } from "preact/hooks";
import { Button, IconButton } from "../../../parts/button";
import { Icon } from "../../../parts/icons";
import { Progress } from "../../../parts/meter";
import { texts } from "../../../texts";
import { shown } from "../../../text/shown";
import { opened } from "../opened";
import { again, type Hearing, hearings, isOf, leave, read, use } from "./hearing";
import { clock } from "./subtitles";
import { TranscriptDialog } from "./transcript";

const words = texts.chat.ears;

/** `done`: one was ended, and its buttons with it. */
export function Recordings({ done }: { done: () => void }) {
  const mine = hearings.value.filter((each) => isOf(each, opened.value));
  return (
    <>
      {mine.length > 0 && (
        <ul class="recordings" aria-label={words.list}>
          {mine.map((each) => (
            <Row key={each.id} of={each} done={done} />
          ))}
        </ul>
      )}
      {read.value && <TranscriptDialog key={read.value.id} of={read.value} close={() => ((read.value = null), done())} />}
    </>
  );
}

function Row({ of, done }: { of: Hearing; done: () => void }) {
  const state = of.state.value;
  const begun = of.segments.value.length > 0;
  useEffect(() => {
    if (of.seconds.peek() === null) void lengthOf(of.sound).then((length) => (of.seconds.value ??= length));
  }, [of]);
  const drop = () => (leave(of), done());
  return (
    <li class={state === "failed" ? "recording refused" : "recording"}>
      <Icon name={state === "failed" ? "warning" : "sound"} size={18} />
      <div>
        <p>
          <span class="name">{shown(of.name)}</span> <small>{said(of)}</small>
        </p>
        {state === "failed" ? <p class="bad">{of.trouble.value}</p> : state !== "done" && <Bar of={of} />}
      </div>
      {(begun || state === "failed") && (
        <span class="ways">
          {state === "failed" && (
            <Button icon="again" onClick={() => again(of)}>
              {texts.parts.again}
            </Button>
          )}
          {begun && <Button onClick={() => (read.value = of)}>{words.transcript}</Button>}
          {state === "done" && (
            <Button kind="primary" onClick={() => (use(of), done())}>
              {words.use}
            </Button>
          )}
        </span>
      )}
      <IconButton icon="close" size={16} label={words.drop(shown(of.name))} onClick={drop} />
    </li>
  );
}

const heardOf = (of: Hearing) => of.segments.value.at(-1)?.end ?? 0;

function said(of: Hearing): string {
  const { state, seconds } = of;
  if (state.value === "sending") return words.sending;
  if (state.value === "done") return clock(seconds.value ?? heardOf(of));
  if (state.value === "failed") return "";
  return words.hearing(clock(heardOf(of)), seconds.value === null ? null : clock(seconds.value));
}

function Bar({ of }: { of: Hearing }) {
  const known = of.state.value === "hearing" && of.seconds.value !== null;
  return <Progress label={words.heard(shown(of.name))} max={of.seconds.value ?? 0} {...(known && { value: heardOf(of) })} />;
}

/** How long a recording is, as far as this browser can play it. */
function lengthOf(sound: File): Promise<number | null> {
  return new Promise((done) => {
    const url = URL.createObjectURL(sound);
    const audio = new Audio();
    const end = (length: number | null) => (URL.revokeObjectURL(url), done(length));
    audio.preload = "metadata";
    audio.onloadedmetadata = () => end(Number.isFinite(audio.duration) ? audio.duration : null);
    audio.onerror = () => end(null);
    audio.src = url;
  });
}
