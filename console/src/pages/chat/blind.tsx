// Said where a message has pictures and its model reads text alone: why it is not sent, and which models here would see.
import { Button } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { to } from "../../parts/router";
import { texts } from "../../texts";
import { shown } from "../../text/shown";
import { models, seeing, sees } from "./models";
import { type Chat, messageOf } from "./opened";
import { choose } from "./picker";
import { box, other } from "./sending";

const words = texts.chat.pictures;
const MOST = 4; // models that are named

const modelNow = (chat: Chat) => other.value ?? chat.model.value;

/** Whether there are pictures that the model of the next answer is known not to see. */
export function isBlindTo(chat: Chat): boolean {
  return sees(modelNow(chat)) === false && (box.value.images.length > 0 || hasPictures(chat));
}

/** Whether the chat up to here has pictures of the user's, as far as it is loaded. */
function hasPictures(chat: Chat): boolean {
  return chat.branch.value.some((id) => {
    const message = messageOf(chat, id).value;
    return message?.role === "user" && Boolean(message.images?.length);
  });
}

export function Sightless({ chat }: { chat: Chat }) {
  const others = models.value ? seeing() : [];
  const use = (model: string) => {
    other.value = null;
    choose(chat, model);
  };
  return (
    <div class="sightless" role="status">
      <Icon name="eye" size={16} />
      <p>
        {words.blind(shown(modelNow(chat)))} {others.length ? words.theseSee : words.noneSees}{" "}
        {!others.length && <a href={to("models")}>{words.findOne}</a>}
      </p>
      {others.slice(0, MOST).map((model) => (
        <Button key={model} onClick={() => use(model)}>
          {words.use(shown(model))}
        </Button>
      ))}
    </div>
  );
}
