// A native modal dialog: the browser keeps focus in it, Escape closes it, focus returns. And a question asked through one.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { texts } from "../texts";
import { Button, IconButton } from "./button";
import { Plain } from "../text";

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  actions?: ComponentChildren; // buttons at its foot
  wide?: boolean;
}

/** Shown while it is rendered. The element with `autofocus` has the focus, else the first that can. */
export function Dialog({ title, onClose, children, actions, wide }: DialogProps) {
  const id = useId();
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    const dialog = element.current!;
    dialog.showModal();
    dialog.querySelector<HTMLElement>("[data-autofocus]")?.focus();
    return () => {
      dialog.close();
      before?.focus?.();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={wide ? "dialog wide" : "dialog"}
      aria-labelledby={id}
      onCancel={(e) => (e.preventDefault(), onClose())}
      onClick={(e) => e.target === element.current && onClose()}
    >
      <div class="dialog-box">
        <header>
          <h2 id={id}><Plain text={title} /></h2>
          <IconButton icon="close" label={texts.parts.close} onClick={onClose} />
        </header>
        {/* it may scroll, which the keyboard must reach */}
        <div class="dialog-body" tabIndex={0}>
          {children}
        </div>
        {actions && <footer>{actions}</footer>}
      </div>
    </dialog>
  );
}

interface Question {
  title: string;
  text: ComponentChildren;
  action: string; // the word on the button that does it
  danger?: boolean;
}

const asked = signal<(Question & { answer: (yes: boolean) => void }) | null>(null);

/** Ask before something that cannot be taken back. Focus stands on Cancel. */
export function ask(question: Question): Promise<boolean> {
  return new Promise((answer) => {
    asked.value = {
      ...question,
      answer: (yes) => {
        asked.value = null;
        answer(yes);
      },
    };
  });
}

/** Where questions appear; the frame has one. */
export function Asked() {
  const now = asked.value;
  if (!now) return null;
  return (
    <Dialog
      title={now.title}
      onClose={() => now.answer(false)}
      actions={
        <>
          <Button data-autofocus onClick={() => now.answer(false)}>
            {texts.parts.cancel}
          </Button>
          <Button kind={now.danger ? "danger" : "primary"} onClick={() => now.answer(true)}>
            {now.action}
          </Button>
        </>
      }
    >
      {now.text}
    </Dialog>
  );
}
