// Hostile text as nodes, for every page: markdown, plain text, code. No caller needs to clean what it hands over.
import { useLayoutEffect, useRef } from "preact/hooks";
import { Chunks } from "./chunks";
import { CodeBox } from "./code";
import { Flow } from "./flow";
import { mark, pieces } from "./invisible";
import "./text.css";

/** Markdown of a model, a tool or a user. `open`: more of it may come, so its last block is not final. */
export function Text({ source, open = false }: { source: string; open?: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const flow = useRef<Flow | null>(null);
  useLayoutEffect(() => {
    flow.current ??= new Flow(box.current!);
    flow.current.set(source, open);
  }, [source, open]);
  useLayoutEffect(() => () => flow.current?.stop(), []);
  return <div class="text" ref={box} />;
}

/** A name, a title or an argument on one line: what is invisible in it has a mark, and its direction stays inside it. */
export function Plain({ text }: { text: string }) {
  return <bdi class="name">{pieces(text).map((piece) => (piece.hidden ? <Mark run={piece.text} /> : piece.text))}</bdi>;
}

function Mark({ run }: { run: string }) {
  const place = useRef<HTMLSpanElement>(null);
  useLayoutEffect(() => place.current!.replaceChildren(mark(run)), [run]);
  return <span ref={place} />;
}

/** Text with its line breaks and no markdown: what a user wrote, a file, a tool's result. Any length. */
export function Verbatim({ text, code = false }: { text: string; code?: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const chunks = useRef<Chunks | null>(null);
  useLayoutEffect(() => {
    chunks.current ??= new Chunks(box.current!, !code);
    chunks.current.set(text);
  }, [text]);
  return <div class={code ? "verbatim mono" : "verbatim"} dir={code ? "ltr" : "auto"} ref={box} />;
}

/** Code with its colours and a button that copies it. `label` is its language or its name. */
export function Code({ text, label = "", open = false }: { text: string; label?: string; open?: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const box = useRef<CodeBox | null>(null);
  useLayoutEffect(() => {
    if (box.current === null) place.current!.append((box.current = new CodeBox(label)).box);
    box.current.set(text, open);
  }, [text, open]);
  return <div class="text" ref={place} key={label} />;
}
