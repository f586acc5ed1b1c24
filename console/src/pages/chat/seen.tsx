// Pictures that are in the chat: small beside their message, whole in a dialog.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Dialog } from "../../parts/dialog";
import { texts } from "../../texts";
import { addressOf, type Picture } from "./picture";

const words = texts.chat.pictures;

interface PicturesProps {
  chat: string | null; // its id
  saved: string[]; // as a message has them
}

/** The pictures of a message, as buttons; what is none is left out. */
export function Pictures({ chat, saved }: PicturesProps) {
  const addresses = saved.map((each) => addressOf(chat, each)).filter(Boolean);
  return <Shown addresses={addresses} />;
}

/** The pictures of a message that is on its way. */
export function SentPictures({ chat, pictures }: { chat: string | null; pictures: Picture[] }) {
  const addresses = useSignal<string[]>([]);
  useEffect(() => {
    const made = pictures.map(({ blob, saved }) => (blob ? URL.createObjectURL(blob) : addressOf(chat, saved)));
    addresses.value = made;
    return () => made.filter((each) => each.startsWith("blob:")).forEach((each) => URL.revokeObjectURL(each));
  }, [pictures]);
  return <Shown addresses={addresses.value} />;
}

function Shown({ addresses }: { addresses: string[] }) {
  const open = useSignal<number | null>(null);
  if (!addresses.length) return null;
  const at = open.value;
  return (
    <>
      <ul class="pictures" aria-label={words.list}>
        {addresses.map((address, i) => (
          <li key={i}>
            <button type="button" aria-label={words.show(i + 1, addresses.length)} onClick={() => (open.value = i)}>
              <Thumb address={address} name={words.nth(i + 1)} />
            </button>
          </li>
        ))}
      </ul>
      {at !== null && addresses[at] && (
        <Dialog title={words.nth(at + 1)} onClose={() => (open.value = null)} wide>
          <img class="whole" src={addresses[at]} alt={words.nth(at + 1)} />
        </Dialog>
      )}
    </>
  );
}

/** One picture; where it cannot be loaded, words that say so. */
function Thumb({ address, name }: { address: string; name: string }) {
  const lost = useSignal(false);
  if (lost.value) return <span class="lost">{words.lost(name)}</span>;
  return <img src={address} alt={name} decoding="async" onError={() => (lost.value = true)} />;
}
