// The chat page: which chat is open, what is beside it, its keys, and what is said when the server is away.
import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Failed } from "../../parts/page";
import { isId, place } from "../../parts/router";
import { me } from "../../api/me";
import type { ChatSettings } from "../../api/types";
import { texts } from "../../texts";
import { dragLeave, dragOver, takeDrop } from "./attach";
import { Away } from "./away";
import { cards, look, readCards } from "./cards";
import "./chat.css";
import { Composer } from "./composer";
import { Find, finding } from "./find";
import { Head } from "./head";
import { keep, kept } from "./kept";
import { useChatKeys } from "./keys";
import { isDown, onReturn } from "./link";
import { List } from "./list";
import { Log, scroller } from "./log";
import { models, preferred, readModels } from "./models";
import { type Chat as Opened, fresh, open, opened, refresh, stateOf } from "./opened";
import { Panel } from "./panel";
import { spoken } from "./lives";
import { attachAll, follows, leaveOthers, tabs } from "./runs";
import { pending, readDraft } from "./sending";
import { Starters } from "./starters";
import { shown } from "../../text/shown";

const words = texts.chat;
const LOOK_MS = 1500;

export function Chat() {
  const list = useSignal(kept("list", true) && innerWidth > 900);
  const drawer = useSignal(false); // the list over the page, where it is narrow
  const panel = useSignal(false);
  const find = useSignal(false);
  const named = place.value.page === "chat" ? (place.value.rest[0] ?? "") : "";
  const id = isId(named) ? named : null;
  const chat = opened.value;
  const who = me.value?.key ?? null;

  useEffect(() => {
    void readCards().catch(() => {});
    void readModels().catch(() => {});
  }, [who]);
  useEffect(() => {
    find.value = false;
    void enter(id);
  }, [id, who]);
  useEffect(watch, []);
  useSignalEffect(() => {
    // What the list knows of the open chat: a new name, a pin.
    const card = cards.value.find((each) => each.id === opened.value.id);
    if (card) opened.value.card.value = card;
  });
  useSignalEffect(() => {
    document.title = `${shown(opened.value.card.value?.title || words.newTitle)} · ${texts.name}`;
  });
  useSignalEffect(() => {
    const now = opened.value;
    if (models.value && !now.model.value) now.model.value = preferred();
  });

  const narrow = () => innerWidth <= 900;
  const toggleList = () => {
    if (narrow()) drawer.value = !drawer.value;
    else keep("list", (list.value = !list.value));
  };
  useChatKeys(chat, {
    list: toggleList,
    panel: () => (panel.value = !panel.value),
    leave: () => {
      const over = drawer.value || (panel.value && narrow());
      drawer.value = false;
      if (over) panel.value = false;
      return over;
    },
    find: () => {
      if (find.value && document.activeElement?.closest(".find")) return false;
      if (find.value) finding.focus();
      find.value = true;
      return true;
    },
  });

  const empty = chat.branch.value.length === 0 && pending.value?.chat !== chat;
  const trouble = chat.trouble.value;
  return (
    <div class={`chat-page${list.value ? " with-list" : ""}${panel.value ? " with-panel" : ""}`}>
      {list.value && <List open={chat.id} />}
      {drawer.value && (
        <div class="drawer" onClick={(e) => e.target === e.currentTarget && (drawer.value = false)}>
          <List open={chat.id} close={() => (drawer.value = false)} />
        </div>
      )}
      <section
        class={empty ? "conversation blank" : "conversation"}
        onDragOver={dragOver}
        onDragLeave={dragLeave}
        onDrop={takeDrop}
      >
        <Head
          chat={chat}
          listed={list.value || drawer.value}
          panel={panel.value}
          toggle={{
            list: toggleList,
            find: () => (find.value = !find.value),
            panel: () => (panel.value = !panel.value),
          }}
        />
        {find.value && <Find key={chat.serial} chat={chat} close={() => ((find.value = false), scroller.now?.element.focus())} />}
        {trouble ? (
          <Failed error={trouble} again={() => void enter(id)} />
        ) : empty ? (
          <div class="welcome">
            <h2>{models.value?.length === 0 ? words.first.title : words.welcome}</h2>
            {models.value?.length === 0 && <Starters />}
          </div>
        ) : (
          <Log key={chat.serial} chat={chat} />
        )}
        <Away />
        <Composer chat={chat} />
      </section>
      {panel.value && <Panel key={chat.serial} chat={chat} close={() => (panel.value = false)} />}
      <Spoken />
    </div>
  );
}

/** Show the chat that the address names. */
async function enter(id: string | null): Promise<void> {
  const now = opened.peek();
  if (id === null) {
    const sends = now.id === null && pending.peek()?.chat === now;
    const model = place.peek().query.get("model") ?? kept("model", "");
    const chat = sends ? now : fresh(model, kept<ChatSettings>("settings", {}));
    leaveOthers(chat);
    return readDraft(chat);
  }
  if (now.id === id && now.tree.peek().nodes.size) return; // made in this page a moment ago
  try {
    const runs = await open(id);
    const chat = opened.peek();
    leaveOthers(chat);
    void attachAll(chat, runs);
    await readDraft(chat);
    const at = place.peek().query.get("at");
    if (at) requestAnimationFrame(() => scroller.now?.toMessage(at));
  } catch {
    // the page shows why in the chat's place, or says that the server is away
  }
}

/** Read the chat again, and follow what runs in it. */
async function again(chat: Opened): Promise<void> {
  if (chat.id === null) return;
  try {
    const runs = await refresh(chat);
    if (opened.peek() === chat) await attachAll(chat, runs);
  } catch {
    // as above
  }
}

/** Notice what changes elsewhere: other tabs at once, other browsers and the terminal within two seconds. */
function watch(): () => void {
  const check = async () => {
    if (document.hidden || isDown.peek()) return;
    const chat = opened.peek();
    const card = (await look()).find((each) => each.id === chat.id);
    if (card && chat.seen && stateOf(card) !== chat.seen && !follows(chat)) await again(chat);
  };
  const quietly = () => void check().catch(() => {});
  const timer = setInterval(quietly, LOOK_MS);
  const seen = () => !document.hidden && quietly();
  document.addEventListener("visibilitychange", seen);
  addEventListener("focus", quietly);
  const heard = ({ data }: MessageEvent) => data === opened.peek().id && void again(opened.peek());
  tabs.addEventListener("message", heard);
  const unwatch = onReturn(() => {
    void readCards().catch(() => {});
    void again(opened.peek());
  });
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", seen);
    removeEventListener("focus", quietly);
    tabs.removeEventListener("message", heard);
    unwatch();
  };
}

/** Drawn apart, so that only what is said changes it. */
function Spoken() {
  return (
    <div class="unseen" role="status" aria-live="polite">
      {spoken}
    </div>
  );
}
