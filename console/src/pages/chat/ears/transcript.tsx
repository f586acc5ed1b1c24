// A transcript: what was said with its times, beside the sound. A click on a line plays the recording from there.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { copied } from "../../../parts/clipboard";
import { Button } from "../../../parts/button";
import { Dialog } from "../../../parts/dialog";
import { notify } from "../../../parts/notice";
import { texts } from "../../../texts";
import { Plain } from "../../../text";
import { box, setFiles } from "../sending";
import { caret, type Hearing, leave } from "./hearing";
import { clock, plain, srt, timed } from "./subtitles";

const words = texts.chat.ears;
const stem = (name: string) => name.replace(/\.\w{1,5}$/, "") || name;

export function TranscriptDialog({ of, close }: { of: Hearing; close: () => void }) {
  const audio = useRef<HTMLAudioElement>(null);
  const address = useSignal("");
  const mute = useSignal(false); // this browser cannot play it
  const now = useSignal(0);
  const segments = of.segments.value;
  const at = useComputed(() => of.segments.value.findLastIndex((each) => each.start <= now.value + 0.05));
  useEffect(() => {
    const url = (address.value = URL.createObjectURL(of.sound));
    return () => URL.revokeObjectURL(url);
  }, [of]);

  function jump(second: number): void {
    now.value = second;
    audio.current!.currentTime = second;
    void audio.current!.play().catch(() => {}); // ended by the next click before it began
  }

  function summarise(): void {
    const file = { name: `${stem(of.name)}.txt`, text: timed(of.segments.peek()) };
    setFiles({ files: [...box.peek().files, file] });
    if (!box.peek().text.trim()) caret.insert(words.summariseThis);
    leave(of);
    close();
  }

  async function copyText(): Promise<void> {
    if (await copied(plain(of.segments.peek()))) notify({ text: words.copied });
    else notify({ kind: "error", text: texts.chat.noClipboard });
  }

  return (
    <Dialog
      title={of.name}
      onClose={close}
      wide
      actions={
        <>
          <Button icon="copy" onClick={() => void copyText()}>
            {words.copy}
          </Button>
          <Button icon="download" onClick={() => save(`${stem(of.name)}.srt`, srt(of.segments.peek()))}>
            {words.srt}
          </Button>
          <Button kind="primary" disabled={of.state.value !== "done"} onClick={summarise}>
            {words.summarise}
          </Button>
        </>
      }
    >
      <div class="transcript">
        {mute.value ? (
          <p class="dim">{words.mute}</p>
        ) : (
          <audio
            ref={audio}
            controls
            src={address.value || undefined}
            aria-label={words.player}
            onTimeUpdate={(e) => (now.value = e.currentTarget.currentTime)}
            onError={() => (mute.value = true)}
          />
        )}
        <ol>
          {segments.map(({ start, text }, i) => (
            <li key={i}>
              <button type="button" disabled={mute.value} aria-current={i === at.value || undefined} onClick={() => jump(start)}>
                <time>{clock(start)}</time>
                <Plain text={text} />
              </button>
            </li>
          ))}
        </ol>
      </div>
    </Dialog>
  );
}

function save(name: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/x-subrip" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // once the browser has taken it
}
