// What goes with the message in the box: its files with their tokens, pictures, another model. Each can be taken out.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { AttachedFile } from "../../api/types";
import { IconButton } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { texts } from "../../texts";
import { countTokens } from "./models";
import { opened } from "./opened";
import { shown } from "../../text/shown";
import { box, other, setFiles } from "./sending";

const words = texts.chat;

export function Chips() {
  const { files, images } = box.value;
  const model = other.value;
  if (!files.length && !images.length && !model) return null;
  return (
    <ul class="chips" aria-label={words.attached}>
      {model && (
        <Chip label={words.answeredBy(shown(model))} remove={() => (other.value = null)}>
          <span>{words.answeredBy(shown(model))}</span>
        </Chip>
      )}
      {images.map((image, i) => (
        <Chip
          key={image.length + ":" + i}
          label={words.picture(i + 1)}
          remove={() => setFiles({ images: box.peek().images.filter((_, j) => j !== i) })}
        >
          <img src={image} alt={words.picture(i + 1)} />
        </Chip>
      ))}
      {files.map((file, i) => (
        <Chip
          key={file.name + i}
          label={shown(file.name)}
          remove={() => setFiles({ files: box.peek().files.filter((_, j) => j !== i) })}
        >
          <Icon name="file" size={16} />
          <span>{shown(file.name)}</span>
          <Count file={file} model={model ?? opened.value.model.value} />
        </Chip>
      ))}
    </ul>
  );
}

function Chip({ label, remove, children }: { label: string; remove: () => void; children: preact.ComponentChildren }) {
  return (
    <li class="chip">
      {children}
      <IconButton icon="close" size={14} label={words.takeOut(label)} onClick={remove} />
    </li>
  );
}

const counts = new WeakMap<AttachedFile, Map<string, number | null>>();

/** How many tokens a file is for the model that will read it. Counted by the model's own tokenizer. */
function Count({ file, model }: { file: AttachedFile; model: string }) {
  const count = useSignal<number | null | undefined>(counts.get(file)?.get(model));
  useEffect(() => {
    let gone = false;
    if (!model) return; // none is chosen yet
    if (counts.get(file)?.has(model)) return void (count.value = counts.get(file)!.get(model));
    void countTokens(model, file.text).then((n) => {
      counts.set(file, (counts.get(file) ?? new Map<string, number | null>()).set(model, n));
      if (!gone) count.value = n;
    });
    return () => void (gone = true);
  }, [file, model]);
  const said =
    count.value === undefined ? words.counting : count.value === null ? words.characters(file.text.length) : words.nTokens(count.value);
  return <small>{said}</small>;
}
