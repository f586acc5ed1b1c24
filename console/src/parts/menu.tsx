// A button that opens a menu above everything: arrows move, Escape and a click elsewhere close, focus returns.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useId, useRef } from "preact/hooks";
import { Icon, type IconName } from "./icons";

export interface MenuItem {
  label: string;
  icon?: IconName;
  danger?: boolean;
  checked?: boolean; // where the menu is a choice of one
  disabled?: boolean;
  note?: string; // a second, dim line
  onSelect: () => void;
}

interface MenuProps {
  label: string; // what the button is called
  items: (MenuItem | "line")[];
  icon?: IconName; // of the button; default: three dots
  children?: ComponentChildren; // the button's words, instead of an icon alone
  tabIndex?: number; // of the button, where a list has one stop of the Tab key
  kind?: string; // the button's class, instead of that of Button or IconButton
}

const MARGIN = 8; // between the menu and the window's edge

export function Menu({ label, items, icon = "more", children, kind, tabIndex }: MenuProps) {
  const id = useId();
  const button = useRef<HTMLButtonElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const open = useSignal(false);
  const choices = items.some((item) => item !== "line" && item.checked !== undefined);

  const opened = (now: boolean) => {
    if (!list.current || !button.current) return; // the browser's word came after its message was drawn no more
    open.value = now;
    if (now) settle(list.current, button.current);
  };
  const move = (event: KeyboardEvent) => {
    const all = entries(list.current!);
    const at = all.indexOf(document.activeElement as HTMLElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Tab") list.current!.hidePopover();
    if (next === undefined) return;
    event.preventDefault();
    all[(next + all.length) % all.length]?.focus();
  };
  const select = (item: MenuItem) => {
    list.current!.hidePopover();
    button.current!.focus();
    item.onSelect();
  };
  return (
    <>
      <button
        ref={button}
        type="button"
        class={kind ?? (children ? "button plain" : "icon-button")}
        tabIndex={tabIndex}
        aria-haspopup="menu"
        aria-expanded={open.value}
        aria-controls={id}
        aria-label={children ? undefined : label}
        title={children ? undefined : label}
        onClick={() => list.current!.togglePopover()}
        onKeyDown={(e) => e.key === "ArrowDown" && (e.preventDefault(), list.current!.showPopover())}
      >
        {children ?? <Icon name={icon} />}
      </button>
      <div
        ref={list}
        id={id}
        popover="auto"
        role="menu"
        aria-label={label}
        class="menu"
        onToggle={(e) => opened(e.newState === "open")}
        onKeyDown={move}
      >
        {open.value &&
          items.map((item, i) =>
            item === "line" ? (
              <hr key={i} />
            ) : (
              <Entry key={i} item={item} choices={choices} select={select} />
            ),
          )}
      </div>
    </>
  );
}

interface EntryProps {
  item: MenuItem;
  choices: boolean;
  select: (item: MenuItem) => void;
}

function Entry({ item, choices, select }: EntryProps) {
  return (
    <button
      type="button"
      role={choices ? "menuitemradio" : "menuitem"}
      aria-checked={choices ? Boolean(item.checked) : undefined}
      aria-disabled={item.disabled || undefined}
      tabIndex={-1}
      class={item.danger ? "danger" : ""}
      onClick={() => !item.disabled && select(item)}
    >
      {choices ? <Tick on={Boolean(item.checked)} /> : item.icon && <Icon name={item.icon} size={18} />}
      <span>
        {item.label}
        {item.note && <small>{item.note}</small>}
      </span>
    </button>
  );
}

function Tick({ on }: { on: boolean }) {
  return <span class="tick">{on && <Icon name="check" size={16} />}</span>;
}

function entries(menu: HTMLElement): HTMLElement[] {
  return [...menu.querySelectorAll<HTMLElement>("[role^=menuitem]")];
}

/** Put an open menu under its button, or above it where there is more room; focus its checked or first entry. */
function settle(menu: HTMLElement, button: HTMLElement): void {
  requestAnimationFrame(() => {
    const from = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = menu;
    const left = from.left + width + MARGIN > innerWidth ? from.right - width : from.left;
    const below = from.bottom + 4;
    const top = below + height + MARGIN > innerHeight ? from.top - height - 4 : below;
    menu.style.left = `${Math.max(MARGIN, left)}px`;
    menu.style.top = `${Math.max(MARGIN, top)}px`;
    const all = entries(menu);
    (all.find((item) => item.ariaChecked === "true") ?? all[0])?.focus();
  });
}
