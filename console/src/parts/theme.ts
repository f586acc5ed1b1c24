// Light or dark: the system's choice unless Settings says otherwise. Kept in this browser, where it keeps things.
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEY = "freehold.theme";

function kept(): Theme {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : "system";
  } catch {
    return "system"; // storage is refused in this browser
  }
}

export const theme = signal<Theme>(kept());

effect(() => {
  const now = theme.value;
  if (now === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  try {
    localStorage.setItem(KEY, now);
  } catch {
    // storage is refused: the choice lasts as long as the page
  }
});
