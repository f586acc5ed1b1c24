// Makes a key: a form with the options of `freehold keys add`, then the secret, once.
import { useSignal } from "@preact/signals";
import { post } from "../../api/client";
import { me } from "../../api/me";
import { Button } from "../../parts/button";
import { copied } from "../../parts/clipboard";
import { Dialog } from "../../parts/dialog";
import { Field, Toggle } from "../../parts/field";
import { saying } from "../../parts/notice";
import { texts } from "../../texts";
import "./keys.css";

const words = texts.keys;

export interface KeyRow {
  name: string;
  kind: "client" | "admin";
  models: string[];
  rate: string | null;
  tokens: string | null;
  spent_today: number;
  created: string;
}

export function MakeKey({ made, close }: { made: () => void; close: () => void }) {
  const secret = useSignal<(KeyRow & { key: string }) | null>(null);
  if (secret.value)
    return <Secret name={secret.value.name} secret={secret.value.key} close={close} />;
  return <Form close={close} made={(row) => ((secret.value = row), made())} />;
}

function Form({ made, close }: { made: (row: KeyRow & { key: string }) => void; close: () => void }) {
  const admin = useSignal(false);
  const error = useSignal("");
  const busy = useSignal(false);

  async function submit(e: SubmitEvent) {
    e.preventDefault();
    const of = new FormData(e.currentTarget as HTMLFormElement);
    const text = (name: string) => String(of.get(name) ?? "").trim();
    const models = text("models").split(",").map((each) => each.trim()).filter(Boolean);
    const limits = admin.value ? {} : { models, rate: text("rate"), tokens: text("tokens") };
    busy.value = true;
    error.value = "";
    try {
      made(await post("/console/api/keys", { name: text("name"), admin: admin.value, ...limits }));
    } catch (e) {
      error.value = saying(e);
      busy.value = false;
    }
  }

  return (
    <Dialog
      title={words.make}
      onClose={close}
      actions={
        <>
          <Button onClick={close}>{texts.parts.cancel}</Button>
          <Button kind="primary" type="submit" form="make-key" busy={busy.value}>
            {words.make}
          </Button>
        </>
      }
    >
      <form id="make-key" class="make-key" onSubmit={submit}>
        <Field label={words.name} hint={words.nameHint}>
          {(control) => <input {...control} data-autofocus name="name" required maxLength={64} autocomplete="off" spellcheck={false} />}
        </Field>
        <Toggle label={words.admin} on={admin.value} onChange={(on) => (admin.value = on)} />
        {!admin.value && (
          <>
            <Field label={words.models} hint={words.modelsHint}>
              {(control) => <input {...control} name="models" autocomplete="off" spellcheck={false} />}
            </Field>
            <Field label={words.rate} hint={words.rateHint}>
              {(control) => <input {...control} name="rate" autocomplete="off" spellcheck={false} />}
            </Field>
            <Field label={words.tokens} hint={words.tokensHint}>
              {(control) => <input {...control} name="tokens" autocomplete="off" spellcheck={false} />}
            </Field>
          </>
        )}
        {!me.value!.keyed && <p class="first-key">{words.first}</p>}
        <p class="field-error" role="alert">
          {error.value}
        </p>
      </form>
    </Dialog>
  );
}

function Secret({ name, secret, close }: { name: string; secret: string; close: () => void }) {
  const done = useSignal(false);
  return (
    <Dialog
      title={words.madeTitle(name)}
      onClose={close}
      actions={
        <>
          <Button icon={done.value ? "check" : "copy"} data-autofocus onClick={async () => (done.value = await copied(secret))}>
            {done.value ? words.copied : words.copyKey}
          </Button>
          <Button kind="primary" onClick={close}>
            {words.done}
          </Button>
        </>
      }
    >
      <p>{words.once}</p>
      <code class="secret">{secret}</code>
    </Dialog>
  );
}
