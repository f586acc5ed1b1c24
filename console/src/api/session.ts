// Logging in and out, and requests that outlive a session: one that is refused because the session ended waits for the
// next login and is sent again, so that no caller above this file notices. A key is never kept here; the cookie stands for it.
import { signal } from "@preact/signals";

/** The session ended while the page was open: it asks for the key again. */
export const ended = signal(false);

let waiting: { again: () => void; giveUp: () => void }[] = [];

/** fetch, again after a login where the session had ended. Resolves with the refusal when the user does not log in. */
export async function request(path: string, init: RequestInit): Promise<Response> {
  for (;;) {
    const response = await fetch(path, init);
    if (response.status !== 401 || path.startsWith("/console/log") || path === "/console/owner") return response;
    if (!(await loggedIn(init.signal ?? undefined))) return response;
  }
}

function loggedIn(stop?: AbortSignal): Promise<boolean> {
  ended.value = true;
  return new Promise((done) => {
    waiting.push({ again: () => done(true), giveUp: () => done(false) });
    stop?.addEventListener("abort", () => done(false), { once: true });
  });
}

/** Send what waits, or with `again` false hand out its refusals. */
export function settle(again: boolean): void {
  const all = waiting;
  waiting = [];
  ended.value = false;
  for (const each of all) (again ? each.again : each.giveUp)();
}
