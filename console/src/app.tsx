// The frame around every page: its navigation and the page that the address names. Pages load when they are first seen.
import { useSignal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { readMe } from "./api/me";
import { Boundary } from "./parts/boundary";
import { Asked } from "./parts/dialog";
import { Navigation, type PageName } from "./parts/frame";
import { KeyList } from "./parts/keys";
import { notifyError, Notices } from "./parts/notice";
import { Failed } from "./parts/page";
import { place } from "./parts/router";
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
  useEffect(() => void readMe().catch(notifyError), []);
  const page = (place.value.page in texts.pages ? place.value.page : "chat") as PageName;
  return (
    <>
      <a class="skip" href="#main" onClick={toMain}>
        {texts.skip}
      </a>
      <Navigation page={page} />
      <main id="main" tabIndex={-1}>
        <Boundary key={page}>{page === "chat" ? <Chat /> : <Later page={page} />}</Boundary>
      </main>
      <Notices />
      <Asked />
      <KeyList />
    </>
  );
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
