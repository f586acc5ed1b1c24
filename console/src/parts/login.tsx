// Asks for a key: in the place of the page, or over it when a session ends. A real form, so that password managers see it.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError } from "../api/client";
import { logIn } from "../api/me";
import { settle } from "../api/session";
import { texts } from "../texts";
import { Button } from "./button";
import { Dialog } from "./dialog";
import { Field } from "./field";
import { Icon } from "./icons";
import { saying } from "./notice";
import "./login.css";

const words = texts.login;

export function LoginPage() {
  useEffect(() => void (document.title = `${texts.logIn} · ${texts.name}`), []);
  return (
    <main id="main" class="login" tabIndex={-1}>
      <div class="login-box">
        <Icon name="lock" size={28} />
        <h1>{texts.name}</h1>
        <p class="dim">{words.wanted}</p>
        <LoginForm />
        <p class="dim small">
          {words.where} <code>freehold keys add NAME</code>
          {words.or} <code>freehold open</code>
        </p>
      </div>
    </main>
  );
}

/** Over the page, which stays as it is. Closing it hands the refusals to what was asked for. */
export function LoginAgain() {
  return (
    <Dialog title={words.ended} onClose={() => settle(false)}>
      <p class="login-kept">{words.kept}</p>
      <LoginForm />
    </Dialog>
  );
}

function LoginForm() {
  const input = useRef<HTMLInputElement>(null);
  const error = useSignal("");
  const busy = useSignal(false);
  const shown = useSignal(false);
  useEffect(() => input.current!.focus(), []);

  async function submit(e: Event) {
    e.preventDefault();
    const key = input.current!.value.trim();
    if (!key || busy.value || !isSecureContext) return; // the key would be read on its way, for a session that does not count
    busy.value = true;
    error.value = "";
    try {
      if (await logIn(key)) return;
      error.value = words.noCookie;
    } catch (e) {
      error.value = e instanceof ApiError && e.status === 401 ? words.wrong : saying(e);
    } finally {
      busy.value = false;
    }
    input.current?.select();
    input.current?.focus();
  }

  return (
    <form class="login-form" onSubmit={submit}>
      {!isSecureContext && <p class="login-warning">{words.plain}</p>}
      <input hidden name="username" autocomplete="username" value="freehold" readOnly />
      <Field label={texts.key}>
        {(control) => (
          <div class="login-key">
            <input
              {...control}
              {...(error.value && { "aria-invalid": true as const, "aria-describedby": "login-error" })}
              ref={input}
              type={(shown.value ? "text" : "password") as "password"}
              name="key"
              required
              autocomplete="current-password"
              autocapitalize="off"
              spellcheck={false}
            />
            <button type="button" class="icon-button" aria-label={words.show} aria-pressed={shown.value} title={words.show} onClick={() => (shown.value = !shown.value)}>
              <Icon name="eye" size={18} />
            </button>
          </div>
        )}
      </Field>
      <p id="login-error" class="field-error" role="alert">
        {error.value}
      </p>
      <Button kind="primary" type="submit" busy={busy.value} disabled={!isSecureContext}>
        {texts.logIn}
      </Button>
    </form>
  );
}
