// Keeps an error of one part from taking the rest with it: the part is replaced by what happened and a way to try again.
import type { ComponentChildren } from "preact";
import { useErrorBoundary } from "preact/hooks";
import { texts } from "../texts";
import { Failed } from "./page";

export function Boundary({ children }: { children: ComponentChildren }) {
  const [error, reset] = useErrorBoundary();
  if (!error) return <>{children}</>;
  return <Failed error={new Error(texts.parts.broken(saysItself(error)))} again={reset} />;
}

function saysItself(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
