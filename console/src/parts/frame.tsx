// The navigation: a rail at the side, at the foot of a phone with what does not fit in a menu. Knows pages by name only.
import { me } from "../api/me";
import { texts } from "../texts";
import { Icon, type IconName } from "./icons";
import { Menu } from "./menu";
import { go, place, to } from "./router";

export type PageName = keyof typeof texts.pages;

const ICONS: Record<PageName, IconName> = {
  chat: "chat",
  compare: "compare",
  models: "models",
  engine: "engine",
  usage: "usage",
  runs: "runs",
  deployments: "deployments",
  keys: "keys",
  settings: "settings",
};
// The chat that was open when the page was left for another, and whose it is: the way back is to it.
let left: { at: string; key: string | null } = { at: to("chat"), key: null };
const FIRST: PageName[] = ["chat", "compare", "models", "engine"]; // those that a phone's bar shows
/** Pages that the navigation has once there is something in them; until then Settings leads to them. */
export const LATER: PageName[] = ["usage", "runs", "deployments", "keys"];

/** Whether a page is of use to who asks: an admin key makes keys and pulls models, and cannot chat. */
export function allowed(page: PageName): boolean {
  return (page !== "chat" && page !== "compare") || Boolean(me.value?.can.includes("chat"));
}

/** Whether the navigation has a page. */
export const filled = (page: PageName) => !LATER.includes(page) || Boolean(me.value?.has.includes(page));

export function Navigation({ page }: { page: PageName }) {
  const names = (Object.keys(ICONS) as PageName[]).filter(
    (name) => allowed(name) && (filled(name) || name === page) && (name !== "keys" || me.value?.can.includes("keys")),
  );
  const rest = names.filter((name) => !FIRST.includes(name));
  const key = me.value?.key ?? null;
  if (place.value.page === "chat") left = { at: to("chat", ...place.value.rest.slice(0, 1)), key };
  const back = left.key === key && page !== "chat" ? left.at : to("chat");
  return (
    <nav class="pages" aria-label={texts.name}>
      <ul>
        {names.map((name) => (
          <li key={name} class={FIRST.includes(name) ? "first" : name === "settings" ? "last" : ""}>
            <a href={name === "chat" ? back : to(name)} aria-current={name === page ? "page" : undefined}>
              <Icon name={ICONS[name]} size={22} />
              <span>{texts.pages[name]}</span>
            </a>
          </li>
        ))}
        <li class="rest">
          <Menu
            label={texts.parts.morePages}
            kind={FIRST.includes(page) ? "rest-button" : "rest-button current"}
            items={rest.map((name) => ({
              label: texts.pages[name],
              icon: ICONS[name],
              onSelect: () => go(to(name)),
            }))}
          >
            <Icon name={FIRST.includes(page) ? "more" : ICONS[page]} size={22} />
            <span>{FIRST.includes(page) ? texts.parts.more : texts.pages[page]}</span>
          </Menu>
        </li>
      </ul>
    </nav>
  );
}
