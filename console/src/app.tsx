// The frame around every page: its navigation and the page that the address names. Pages load when they are first seen.
import { useSignal, useSignalEffect } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { becomeOwner, me, readMe, stranger } from "./api/me";
import { ended } from "./api/session";
import { Boundary } from "./parts/boundary";
import { Asked } from "./parts/dialog";
import { allowed, Navigation, type PageName } from "./parts/frame";
import { KeyList } from "./parts/keys";
import { LoginAgain, LoginPage } from "./parts/login";
import { notifyError, Notices } from "./parts/notice";
import { Failed } from "./parts/page";
import { go, place, to } from "./parts/router";
import "./parts/parts.css";
import "./parts/theme";
import { Chat } from "./pages/chat";
import { texts } from "./texts";

type Loaded = { default: ComponentType };
const LATER: Record<Exclude<PageName, "chat">, () => Promise<Loaded>> = {
  compare: () => import("./pages/compare"),
  models: () => import("./pages/models"),
  engine: () => import("./pages/engine"),
  usage: () => import("./pages/usage"),
  runs: () => import("./pages/runs"),
  deployments: () => import("./pages/deployments"),
  keys: () => import("./pages/keys"),
  settings: () => import("./pages/settings"),
};

export function App() {
  const named = (place.value.page in texts.pages ? place.value.page : "chat") as PageName;
  const page = named in LATER && allowed(named) ? named : allowed("chat") ? "chat" : "models";
  const failed = useSignal<unknown>(null);
  const who = () => {
    failed.value = null;
    readMe().catch((e) => (failed.value = e));
  };
  useEffect(who, []);
  useEffect(() => {
    if (me.peek()) void readMe().catch(() => {}); // pages that have something in them by now
  }, [page]);
  useSignalEffect(() => {
    if (place.value.page === "open") void takeCode(place.value.rest[0] ?? "");
  });
  if (me.value === null) return failed.value ? <Alone error={failed.value} again={who} /> : null;
  if (me.value.refused && !me.value.keyed) return <Alone error={new Error(me.value.refused)} again={who} />;
  if (stranger(me.value))
    return (
      <>
        <LoginPage />
        <Notices />
      </>
    );
  return (
    <>
      <a class="skip" href="#main" onClick={toMain}>
        {texts.skip}
      </a>
      <Navigation page={page} />
      <main id="main" class={`page-${page}`} tabIndex={-1}>
        <Boundary key={page}>{page === "chat" ? <Chat /> : <Later page={page} />}</Boundary>
      </main>
      <Notices />
      <Asked />
      <KeyList />
      {ended.value && <LoginAgain />}
    </>
  );
}

/** In the place of the page: what keeps it from being one. */
function Alone({ error, again }: { error: unknown; again: () => void }) {
  return (
    <main id="main" class="alone" tabIndex={-1}>
      <Failed error={error} again={again} />
    </main>
  );
}

/** Use the code of the link that `freehold serve` or `open` printed, after taking it out of the address and so out of the tab's history. */
async function takeCode(code: string): Promise<void> {
  go(to("chat"), true);
  try {
    await becomeOwner(code);
  } catch (e) {
    await readMe().catch(notifyError);
    if (!me.peek()?.owner) notifyError(e); // the link was used by this browser before
  }
}

/** The address names a page, so that the link must not change it. */
function toMain(event: MouseEvent): void {
  event.preventDefault();
  document.getElementById("main")!.focus();
}

function Later({ page }: { page: keyof typeof LATER }) {
  const loaded = useSignal<ComponentType | null>(null);
  const failed = useSignal(false);
  const load = () => {
    failed.value = false;
    LATER[page]().then(
      (found) => (loaded.value = found.default),
      () => (failed.value = true),
    );
  };
  useEffect(load, [page]);
  const Page = loaded.value;
  if (failed.value) return <Failed error={new Error(texts.parts.notLoaded)} again={() => location.reload()} />;
  return Page ? <Page /> : null;
}
