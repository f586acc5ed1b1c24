// A labelled control with a hint and an error that a screen reader hears with it, and a search box. Knows no form.
import type { ComponentChildren, JSX } from "preact";
import { useId } from "preact/hooks";
import { Icon } from "./icons";

interface FieldProps {
  label: string;
  hint?: ComponentChildren;
  error?: string;
  children: (control: { id: string; "aria-describedby"?: string; "aria-invalid"?: true }) => ComponentChildren;
}

/** `children` draws the control and spreads what it is given on it. */
export function Field({ label, hint, error, children }: FieldProps) {
  const id = useId();
  const described = error || hint ? { "aria-describedby": `${id}-hint` } : {};
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({ id, ...described, ...(error && { "aria-invalid": true as const }) })}
      {(error || hint) && (
        <p id={`${id}-hint`} class={error ? "field-error" : "field-hint"}>
          {error || hint}
        </p>
      )}
    </div>
  );
}

interface SearchProps {
  label: string;
  value: string;
  onValue: (value: string) => void;
}

export function Search({ label, value, onValue, ...rest }: SearchProps & Pick<JSX.IntrinsicElements["input"], "onKeyDown">) {
  return (
    <div class="search">
      <Icon name="search" size={18} />
      <input
        type="search"
        aria-label={label}
        placeholder={label}
        value={value}
        autocomplete="off"
        spellcheck={false}
        onInput={(e) => onValue(e.currentTarget.value)}
        {...rest}
      />
    </div>
  );
}

interface ToggleProps {
  label: string;
  on: boolean;
  onChange: (on: boolean) => void;
  disabled?: boolean;
}

/** A checkbox with its label after it. */
export function Toggle({ label, on, onChange, disabled }: ToggleProps) {
  return (
    <label class="toggle">
      <input type="checkbox" checked={on} disabled={disabled} onChange={(e) => onChange(e.currentTarget.checked)} />
      <span>{label}</span>
    </label>
  );
}
