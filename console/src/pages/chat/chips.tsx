// What goes with the message in the box: its files with their tokens, pictures, another model. Each can be taken out.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError } from "../../api/client";
import type { AttachedFile } from "../../api/types";
import { IconButton } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { texts } from "../../texts";
import { countPicture, countTokens, sees } from "./models";
import { opened } from "./opened";
import { addressOf, type Picture, sizeOf } from "./picture";
import { shown } from "../../text/shown";
import { box, other, setFiles } from "./sending";

const words = texts.chat;

/** `done`: one was taken out, and its button with it. */
export function Chips({ done }: { done: () => void }) {
  const { files, images } = box.value;
  const model = other.value;
  const now = model ?? opened.value.model.value;
  if (!files.length && !images.length && !model) return null;
  return (
    <ul class="chips" aria-label={words.attached}>
      {model && (
        <Chip label={words.answeredBy(shown(model))} remove={() => ((other.value = null), done())}>
          <span>{words.answeredBy(shown(model))}</span>
        </Chip>
      )}
      {images.map((image, i) => (
        <Chip
          key={keyOf(image)}
          label={words.pictures.nth(i + 1)}
          remove={() => (setFiles({ images: box.peek().images.filter((each) => each !== image) }), done())}
        >
          <PictureFacts picture={image} nth={i + 1} model={now} />
        </Chip>
      ))}
      {files.map((file, i) => (
        <Chip
          key={file.name + i}
          label={shown(file.name)}
          remove={() => (setFiles({ files: box.peek().files.filter((_, j) => j !== i) }), done())}
        >
          <Icon name="file" size={16} />
          <span>{shown(file.name)}</span>
          <Count file={file} model={now} />
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

const keys = new WeakMap<Picture, number>();
let made = 0;

/** Pictures have no names of their own: the same one may be there twice. */
function keyOf(picture: Picture): number {
  if (!keys.has(picture)) keys.set(picture, ++made);
  return keys.get(picture)!;
}

const COUNT_MS = 300; // of a model that stays chosen, before it is asked

/** A picture as it will be sent: small, with its size in pixels and in tokens of the model that will see it. */
function PictureFacts({ picture, nth, model }: { picture: Picture; nth: number; model: string }) {
  const address = useSignal(picture.blob ? "" : addressOf(opened.peek().id, picture.saved));
  const size = useSignal({ width: picture.width, height: picture.height });
  useEffect(() => {
    if (!picture.blob) return;
    const url = URL.createObjectURL(picture.blob);
    address.value = url;
    return () => URL.revokeObjectURL(url);
  }, [picture]);
  const { width, height } = size.value;
  const measured = ({ naturalWidth, naturalHeight }: HTMLImageElement) => {
    if (!width) size.value = { width: naturalWidth, height: naturalHeight };
  };
  return (
    <span class="picture-facts">
      {address.value && (
        <img src={address.value} alt={words.pictures.nth(nth)} onLoad={(e) => measured(e.currentTarget)} />
      )}
      <span>
        {picture.name && <span class="name">{shown(picture.name)}</span>}
        {width > 0 && <small>{sizeOf(width, height)}</small>}
        {width > 0 && <PictureCount key={model} model={model} width={width} height={height} />}
        {picture.note && <small class="note">{picture.note}</small>}
      </span>
    </span>
  );
}

type Tokens = number | string | null; // a string: why the model would refuse it; null: the model cannot tell
const pictureCounts = new Map<string, Promise<Tokens>>();

/** Ask once for every size. */
function tokensOf(model: string, width: number, height: number): Promise<Tokens> {
  const about = `${model} ${width} ${height}`;
  let count = pictureCounts.get(about);
  if (!count) {
    count = countPicture(model, width, height).catch((e: unknown) => {
      pictureCounts.delete(about);
      return e instanceof ApiError && e.status === 400 ? e.message : null;
    });
    pictureCounts.set(about, count);
  }
  return count;
}

/** How many tokens a picture is; nothing where the model cannot tell, and why where it would refuse the picture. */
function PictureCount({ model, width, height }: { model: string; width: number; height: number }) {
  const count = useSignal<Tokens | undefined>(undefined);
  const asks = Boolean(model) && sees(model) !== false;
  useEffect(() => {
    if (!asks) return;
    const timer = setTimeout(() => void tokensOf(model, width, height).then((tokens) => (count.value = tokens)), COUNT_MS);
    return () => clearTimeout(timer);
  }, [asks]);
  if (!asks || count.value === null) return null;
  if (typeof count.value === "string") return <small class="bad">{count.value}</small>;
  return <small>{count.value === undefined ? words.counting : words.nTokens(count.value)}</small>;
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
