// What every page but chat looks like: a heading, actions beside it, and its content in one of four states.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { texts } from "../texts";
import { Button } from "./button";
import { Icon, type IconName } from "./icons";
import type { Loading } from "./loaded";
import { saying } from "./notice";
import { place } from "./router";

let moves = -1; // the first page keeps the focus where the browser puts it
place.subscribe(() => moves++);

/** Name the document after a page, and move focus to its heading when it was navigated to. Put the ref on an element with tabIndex -1. */
export function useHeading(title: string) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    if (moves > 0) heading.current?.focus({ preventScroll: true });
  }, []);
  useEffect(() => {
    document.title = `${title} · ${texts.name}`;
  }, [title]);
  return heading;
}

interface PageProps {
  title: string;
  lead?: ComponentChildren; // one sentence under the title
  actions?: ComponentChildren;
  children: ComponentChildren;
}

export function Page({ title, lead, actions, children }: PageProps) {
  const heading = useHeading(title);
  return (
    <div class="page">
      <header class="page-head">
        <div>
          <h1 ref={heading} tabIndex={-1}>
            {title}
          </h1>
          {lead && <p class="lead">{lead}</p>}
        </div>
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </div>
  );
}

interface EmptyProps {
  icon: IconName;
  title: string;
  children?: ComponentChildren;
}

/** Nothing is here yet: what would be, and how it comes. */
export function Empty({ icon, title, children }: EmptyProps) {
  return (
    <div class="empty">
      <Icon name={icon} size={32} />
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** Draw what was loaded, or that it is still loading, or why it was refused. */
export function Loaded<T>({ of, children }: { of: Loading<T>; children: (value: T) => ComponentChildren }) {
  if (of.value !== null) return <>{children(of.value)}</>;
  if (of.error === null) return <Waiting />;
  return <Failed error={of.error} again={of.again} />;
}

export function Waiting() {
  return (
    <div class="waiting" role="status">
      <span class="unseen">{texts.parts.loading}</span>
      <div />
      <div />
      <div />
    </div>
  );
}

export function Failed({ error, again }: { error: unknown; again?: () => void }) {
  return (
    <div class="failed" role="alert">
      <Icon name="warning" size={24} />
      <p>{saying(error)}</p>
      {again && (
        <Button icon="again" onClick={again}>
          {texts.parts.again}
        </Button>
      )}
    </div>
  );
}
