// The first screen of a machine without a model: a few that run well here, one button each, and its progress in place.
import { useSignal } from "@preact/signals";
import { me } from "../../api/me";
import type { Starter, Starters as StarterList } from "../../api/types";
import { Button, IconButton } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { useLoaded } from "../../parts/loaded";
import { Progress } from "../../parts/meter";
import { notifyError } from "../../parts/notice";
import { bytes, duration, rate } from "../../parts/numbers";
import { Loaded } from "../../parts/page";
import { to } from "../../parts/router";
import { PACE_TONES } from "../../parts/tones";
import { Plain } from "../../text";
import { texts } from "../../texts";
import { type Pull, pull, pulls } from "../models/pulls";
import { composer } from "./composer";
import { readModels } from "./models";
import { opened } from "./opened";

const words = texts.chat.first;

export function Starters() {
  const found = useLoaded<StarterList>("/console/api/starters");
  const owner = me.value?.can.includes("pull");
  return (
    <div class="starters">
      <p>{words.lead}</p>
      {!owner && (
        <p class="hint">
          <Icon name="lock" size={18} />
          <span>
            {words.owner} <code>freehold open</code>
          </span>
        </p>
      )}
      <Loaded of={found}>
        {({ models }) =>
          models.length ? (
            <ul>
              {models.map((model) => (
                <Row key={model.name} model={model} may={Boolean(owner)} />
              ))}
            </ul>
          ) : (
            <p class="dim">{words.none}</p>
          )
        }
      </Loaded>
      <p class="dim small">
        {words.more} <a href={`${to("models")}?tab=catalogue`}>{texts.pages.models}</a>
      </p>
    </div>
  );
}

function Row({ model, may }: { model: Starter; may: boolean }) {
  const pulling = pulls.value[model.name];
  const done = useSignal(false);
  const fetchIt = async () => {
    try {
      done.value = await pull(model.name, model.bytes);
      if (done.value) await begin(model.name);
    } catch (e) {
      notifyError(e);
    }
  };
  return (
    <li class="starter" aria-label={model.name}>
      <div>
        <strong>
          <Plain text={model.name} />
        </strong>
        <p class="dim small">
          <Plain text={model.about} />
        </p>
        <p class="facts-line">
          <span>{words.download(bytes(model.bytes))}</span>
          <span class={`badge ${PACE_TONES[model.pace]}`}>{texts.models.paces[model.pace]}</span>
          <span class="dim">{words.about(rate(model.speed.mid))}</span>
        </p>
      </div>
      {pulling ? (
        <Fetching name={model.name} of={pulling} />
      ) : (
        may && (
          <Button kind="primary" icon="download" busy={done.value} onClick={() => void fetchIt()}>
            {words.take}
            <span class="unseen">{` ${model.name}`}</span>
          </Button>
        )
      )}
    </li>
  );
}

function Fetching({ name, of }: { name: string; of: Pull }) {
  const { done, total, rate: speed, state } = of;
  const left = state === "fetching" && speed > 0 && total > done ? (total - done) / speed : 0;
  const said =
    state === "verifying" ? texts.models.verifying : texts.models.fetched(bytes(done), total ? bytes(total) : "", "");
  return (
    <div class="fetching">
      <div>
        <Progress label={texts.models.pulling(name)} max={total} said={said} {...(total > 0 && { value: done })} />
        <small class="dim">{left > 1 ? `${said} · ${texts.models.left(duration(left))}` : said}</small>
      </div>
      <IconButton icon="close" label={texts.models.cancelPull(name)} onClick={of.cancel} />
    </div>
  );
}

/** The first model is here: the chat has it, and waits for a message. */
async function begin(name: string): Promise<void> {
  await readModels();
  const chat = opened.peek();
  if (!chat.model.peek()) chat.model.value = name;
  composer.focus();
}
