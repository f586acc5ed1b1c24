// Buttons: with words, or with an icon whose name is its label and its tooltip. Knows no action.
import type { ComponentChildren, JSX } from "preact";
import { Icon, type IconName } from "./icons";

type Native = Omit<JSX.IntrinsicElements["button"], "icon" | "label" | "class" | "size">;

export interface ButtonProps extends Native {
  kind?: "plain" | "primary" | "quiet" | "danger";
  icon?: IconName;
  busy?: boolean; // what it began is still going: it says so and does nothing
  children?: ComponentChildren;
}

export function Button({ kind = "plain", icon, busy, children, onClick, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      {...rest}
      class={`button ${kind}`}
      aria-busy={busy || undefined}
      aria-disabled={busy || undefined}
      onClick={busy ? undefined : onClick}
    >
      {icon && <Icon name={icon} size={18} />}
      {children}
    </button>
  );
}

export interface IconButtonProps extends Native {
  icon: IconName;
  label: string;
  size?: number;
}

export function IconButton({ icon, label, size = 20, ...rest }: IconButtonProps) {
  return (
    <button type="button" {...rest} class="icon-button" aria-label={label} title={label}>
      <Icon name={icon} size={size} />
    </button>
  );
}
