// The frame around every page: its navigation and the page that the address names. Pages load when they are first seen.
import { useSignal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { me, readMe } from "./api/me";
import { place, to } from "./parts/router";
import { Chat } from "./pages/chat";
import { texts } from "./texts";

type Loaded = { default: ComponentType };
const LATER: Record<string, () => Promise<Loaded>> = {
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
  useEffect(() => void readMe(), []);
  const page = place.value.page in texts.pages ? place.value.page : "chat";
  return (
    <>
      <a class="skip" href="#main">
        {texts.skip}
      </a>
      <Navigation page={page} />
      <main id="main" tabIndex={-1}>
        {page === "chat" ? <Chat /> : <Later key={page} page={page} />}
      </main>
    </>
  );
}

function Navigation({ page }: { page: string }) {
  return (
    <nav class="pages" aria-label={texts.name}>
      {Object.entries(texts.pages)
        .filter(([name]) => name !== "keys" || me.value?.can.includes("keys"))
        .map(([name, title]) => (
          <a key={name} href={to(name)} aria-current={name === page ? "page" : undefined}>
            {title}
          </a>
        ))}
    </nav>
  );
}

function Later({ page }: { page: string }) {
  const loaded = useSignal<ComponentType | null>(null);
  useEffect(() => void LATER[page]!().then((found) => (loaded.value = found.default)), [page]);
  const Page = loaded.value;
  return Page ? <Page /> : null;
}
