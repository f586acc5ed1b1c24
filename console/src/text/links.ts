// Links out of hostile text: only http and https, the host in sight, and a question before an address that carries data.
// Nothing here asks the network for anything until someone clicks.
import { texts } from "../texts";
import { copied } from "../parts/clipboard";
import { button, el } from "./dom";
import { revealed } from "./invisible";

const LONGEST = 2000; // characters of an address that becomes a link
const PLAIN_PATH = 120; // a longer path carries data as a query does

/** The address, when it may become a link. */
export function safeUrl(address: string): URL | null {
  if (address.length > LONGEST || !/^https?:\/\//i.test(address)) return null;
  let url: URL;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  const named = url.username || url.password; // https://bank.example@evil.example
  return /^https?:$/.test(url.protocol) && url.hostname && !named ? url : null;
}

/** Whether an address reads as the host that it leads to: letters that only look like a slash or an `a` are part of one. */
export function names(address: string, url: URL): boolean {
  const host = address.slice(url.protocol.length + 2, url.protocol.length + 2 + url.host.length);
  return host.toLowerCase() === url.host && /^(?:[/?#]|$)/.test(address.slice(url.protocol.length + 2 + url.host.length));
}

/** Whether the address could carry what someone wrote to its owner. */
export function carries(url: URL): boolean {
  return url.search.length > 1 || /[=?&%]/.test(url.hash) || url.hash.length > 40 || url.pathname.length > PLAIN_PATH;
}

/** An empty link to `url`; its words are for the caller to put in. */
export function anchor(url: URL): HTMLAnchorElement {
  const made = el("a");
  made.title = url.href;
  if (!carries(url)) return out(made, url);
  made.setAttribute("role", "link"); // without an address, no middle click, no drag and no menu opens it unasked
  made.tabIndex = 0;
  made.className = "asks";
  made.addEventListener("click", () => ask(url));
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter") ask(url);
  });
  return made;
}

function out(made: HTMLAnchorElement, url: URL): HTMLAnchorElement {
  made.href = url.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  made.referrerPolicy = "no-referrer";
  return made;
}

/** Show the whole address, and open it only on a click there. */
function ask(url: URL): void {
  const say = texts.text;
  const dialog = el("dialog", "ask-link");
  const close = () => dialog.close();
  const title = el("h2", "", say.openLink);
  title.id = "ask-link-title"; // one dialog at a time: it is modal
  dialog.setAttribute("aria-labelledby", title.id);
  const open = out(el("a", "go", say.open), url);
  open.addEventListener("click", () => setTimeout(close));
  const address = el("code", "address", ...revealed(url.href));
  const stay = button(say.cancel, "", close);
  stay.autofocus = true;
  const copy = button(say.copyAddress, "", () => void copied(url.href));
  dialog.append(title, el("p", "", say.openLinkWhy(url.host)), address, el("div", "choices", stay, copy, open));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
