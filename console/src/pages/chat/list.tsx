// The list of chats: search, pinned ones, the rest by day. Only the rows near what is seen are drawn, so that ten
// thousand chats cost what thirty do. One row is a stop of the Tab key; arrows move among rows.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Card, Match } from "../../api/types";
import { Button, IconButton } from "../../parts/button";
import { Icon } from "../../parts/icons";
import { Menu } from "../../parts/menu";
import { notifyError } from "../../parts/notice";
import { go, to } from "../../parts/router";
import { Plain } from "../../text";
import { texts } from "../../texts";
import { cards, exportAs, listed, matches, next, pin, query, readMore, remove, rename, search } from "./cards";
import { groupOf } from "./days";
import { importFile } from "./import";
import { shown } from "../../text/shown";

const words = texts.chat;
const ROW = 36;
const HEAD = 34;
const MARGIN = 400; // pixels drawn above and below what is seen
const SEARCH_MS = 120;

interface Line {
  top: number;
  head?: string;
  card?: Card;
}

export const finder: { focus: () => void } = { focus: () => {} };

export function List({ open, close }: { open: string | null; close?: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  const timer = useRef(0);
  finder.focus = () => input.current?.focus();
  return (
    <nav class="chats" aria-label={words.chats}>
      <div class="chats-head">
        <Button kind="primary" icon="plus" onClick={() => (go(to("chat")), close?.())}>
          {texts.newChat}
        </Button>
        <More close={close} />
        {close && <IconButton icon="close" label={words.closeList} onClick={close} />}
      </div>
      <div class="search">
        <Icon name="search" size={18} />
        <input
          ref={input}
          type="search"
          aria-label={words.searchChats}
          placeholder={words.searchChats}
          value={query.value}
          autocomplete="off"
          spellcheck={false}
          onInput={(e) => {
            const text = e.currentTarget.value;
            clearTimeout(timer.current);
            timer.current = window.setTimeout(() => void search(text), text ? SEARCH_MS : 0);
          }}
          onKeyDown={(e) => e.key === "Escape" && (e.stopPropagation(), void search(""))}
        />
      </div>
      {matches.value ? <Found all={matches.value} close={close} /> : <Rows open={open} close={close} />}
    </nav>
  );
}

function More({ close }: { close?: (() => void) | undefined }) {
  const file = useRef<HTMLInputElement>(null);
  return (
    <>
      <Menu label={words.moreChats} items={[{ label: words.import, icon: "upload", onSelect: () => file.current!.click() }]} />
      <input
        ref={file}
        type="file"
        accept="application/json,.json"
        hidden
        onChange={(e) => {
          const chosen = e.currentTarget.files?.[0];
          if (chosen) void importFile(chosen).then((made) => made && close?.());
          e.currentTarget.value = "";
        }}
      />
    </>
  );
}

function linesOf(all: Card[]): { lines: Line[]; height: number } {
  const lines: Line[] = [];
  let top = 0;
  let last = "";
  const now = new Date();
  for (const card of all) {
    const head = card.pinned ? words.pinned : groupOf(card.updated, now);
    if (head !== last) {
      lines.push({ top, head });
      top += HEAD;
      last = head;
    }
    lines.push({ top, card });
    top += ROW;
  }
  return { lines, height: top };
}

function Rows({ open, close }: { open: string | null; close?: (() => void) | undefined }) {
  const box = useRef<HTMLDivElement>(null);
  const at = useSignal(0); // scrolled
  const renaming = useSignal<string | null>(null);
  const stop = useSignal<string | null>(null); // the row that Tab reaches
  const laid = useComputed(() => linesOf(cards.value));
  const { lines, height } = laid.value;
  const seen = box.current?.clientHeight || innerHeight;
  const drawn = lines.filter((line) => line.top > at.value - MARGIN && line.top < at.value + seen + MARGIN);
  const first = lines.find((line) => line.card)?.card?.id ?? null;
  const reachable = [stop.value, open].find((id) => id !== null && drawn.some((line) => line.card?.id === id));
  const tab = reachable ?? drawn.find((line) => line.card)?.card?.id ?? first;

  useEffect(() => {
    if (next.value !== null && at.value + seen + 2000 > height) void readMore().catch(() => {});
  });

  function move(e: KeyboardEvent) {
    const row = (e.target as HTMLElement).closest<HTMLElement>("[data-row]");
    if (!row || !["ArrowDown", "ArrowUp", "Home", "End"].includes(e.key) || e.altKey) return;
    const all = lines.filter((line) => line.card);
    const now = all.findIndex((line) => line.card!.id === row.dataset["row"]);
    const to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: all.length - 1 }[e.key]!;
    const line = all[Math.min(all.length - 1, Math.max(0, to))];
    if (!line) return;
    e.preventDefault();
    stop.value = line.card!.id;
    const frame = box.current!;
    if (line.top < frame.scrollTop + HEAD) frame.scrollTop = line.top - HEAD;
    else if (line.top + ROW > frame.scrollTop + frame.clientHeight) frame.scrollTop = line.top + ROW - frame.clientHeight;
    at.value = frame.scrollTop;
    requestAnimationFrame(() => frame.querySelector<HTMLElement>(`[data-row="${CSS.escape(line.card!.id)}"] a`)?.focus());
  }

  if (listed.value && !cards.value.length) return <p class="dim none">{words.noChats}</p>;
  return (
    <div class="rows" ref={box} onScroll={(e) => (at.value = e.currentTarget.scrollTop)} onKeyDown={move}>
      <div class="rows-inner" style={{ height: `${height}px` }}>
        {drawn.map(({ top, head, card }) =>
          head !== undefined ? (
            <h3 key={`${head}-${top}`} style={{ top: `${top}px` }}>
              {head}
            </h3>
          ) : (
            <Row
              key={card!.id}
              card={card!}
              top={top}
              open={card!.id === open}
              tab={card!.id === tab}
              renaming={renaming.value === card!.id}
              rename={(on) => (renaming.value = on ? card!.id : null)}
              close={close}
            />
          ),
        )}
      </div>
    </div>
  );
}

interface RowProps {
  card: Card;
  top: number;
  open: boolean;
  tab: boolean;
  renaming: boolean;
  rename: (on: boolean) => void;
  close?: (() => void) | undefined;
}

function Row({ card, top, open, tab, renaming, rename: edits, close }: RowProps) {
  const title = shown(card.title || words.untitled);
  const name = async (text: string) => {
    edits(false);
    if (text.trim() && text.trim() !== card.title) await rename(card, text.trim()).catch(notifyError);
  };
  if (renaming)
    return (
      <div class="chat-row" style={{ top: `${top}px` }}>
        <input
          ref={(node) => {
            if (node && document.activeElement !== node) node.select();
          }}
          aria-label={words.rename}
          maxLength={200}
          defaultValue={card.title}
          onBlur={(e) => void name(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.isComposing) return;
            e.stopPropagation();
            if (e.key === "Enter") e.currentTarget.blur();
            if (e.key === "Escape") edits(false);
          }}
        />
      </div>
    );
  return (
    <div class={open ? "chat-row open" : "chat-row"} style={{ top: `${top}px` }} data-row={card.id}>
      <a
        href={to("chat", card.id)}
        title={title}
        tabIndex={tab ? 0 : -1}
        aria-current={open ? "page" : undefined}
        onClick={() => close?.()}
        onKeyDown={(e) => {
          if (e.key === "F2") edits(true);
          if (e.key === "Delete") void remove(card).catch(notifyError);
        }}
      >
        {card.running && <i class="running" role="img" aria-label={words.running} />}
        {card.pinned && <Icon name="pin" size={14} />}
        <Plain text={card.title || words.untitled} />
      </a>
      <RowMenu card={card} title={title} rename={() => edits(true)} tab={tab} />
    </div>
  );
}

function RowMenu({ card, title, rename, tab }: { card: Card; title: string; rename: () => void; tab: boolean }) {
  return (
    <span class="row-menu">
      <Menu
        label={words.moreOf(title)}
        tabIndex={tab ? 0 : -1}
        items={[
          { label: card.pinned ? words.unpin : words.pin, icon: "pin", onSelect: () => void pin(card).catch(notifyError) },
          { label: words.rename, icon: "edit", onSelect: rename },
          { label: words.exportMd, icon: "download", onSelect: () => exportAs(card, "md") },
          { label: words.exportJson, icon: "download", onSelect: () => exportAs(card, "json") },
          "line",
          { label: words.delete, icon: "trash", danger: true, onSelect: () => void remove(card).catch(notifyError) },
        ]}
      />
    </span>
  );
}

function Found({ all, close }: { all: Match[]; close?: (() => void) | undefined }) {
  return (
    <div class="rows found">
      <p class="dim" role="status">
        {words.nFound(all.length)}
      </p>
      {all.map(({ chat, message, role, excerpt }) => (
        <a key={chat.id + message} href={`${to("chat", chat.id)}?at=${encodeURIComponent(message ?? "")}`} onClick={() => close?.()}>
          <b>
            <Plain text={chat.title || words.untitled} />
          </b>
          <small>
            {role === "user" ? `${texts.you}: ` : ""}
            <Plain text={excerpt} />
          </small>
        </a>
      ))}
    </div>
  );
}
