// Colours of code: highlight.js names the kind of each piece, and this file gives pieces without any markup.
// Loaded with the first code whose language it knows.
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import dockerfile from "highlight.js/lib/languages/dockerfile";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

/** A piece of code and the class that colours it; "" for none. */
export type Coloured = [kind: string, text: string];

// highlight.js has some forty names of kinds; the page has eight colours.
const KINDS: Record<string, string> = {
  keyword: "k", literal: "k", "meta-keyword": "k", tag: "k", name: "k", "selector-tag": "k", section: "f",
  string: "s", regexp: "s", char: "s", symbol: "s", addition: "add", deletion: "del", comment: "c", quote: "c", doctag: "c",
  number: "n", title: "f", function: "f", "title.function": "f", "title.class": "t", type: "t", class: "t", built_in: "t",
  attr: "a", attribute: "a", variable: "a", property: "a", "selector-class": "a", "selector-id": "a", meta: "m",
}; // prettier-ignore

/** What highlight.js writes into instead of a tree that turns itself into HTML. */
class Pieces {
  readonly list: Coloured[] = [];
  private readonly scopes: string[] = [""];

  addText(text: string): void {
    const kind = this.scopes[this.scopes.length - 1]!;
    const last = this.list[this.list.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else if (text) this.list.push([kind, text]);
  }

  openNode(scope: string): void {
    this.scopes.push(KINDS[scope] ?? KINDS[scope.split(".")[0]!] ?? this.scopes[this.scopes.length - 1]!);
  }

  closeNode(): void {
    this.scopes.pop();
  }

  startScope(scope: string): void {
    this.openNode(scope);
  }

  endScope(): void {
    this.closeNode();
  }

  __addSublanguage(other: Pieces): void {
    for (const [kind, text] of other.list) {
      this.scopes.push(kind);
      this.addText(text);
      this.scopes.pop();
    }
  }

  finalize(): void {}

  toHTML(): string {
    return "";
  }
}

const LANGUAGES = { bash, c, cpp, csharp, css, diff, dockerfile, go, ini, java, javascript, json, kotlin, php, python, ruby, rust, sql, typescript, xml, yaml }; // prettier-ignore
for (const [name, grammar] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, grammar);
hljs.configure({ __emitter: Pieces } as never);

/** Cut code into coloured pieces; null for a language that is not known here. */
export function coloured(code: string, language: string): Coloured[] | null {
  if (!hljs.getLanguage(language)) return null;
  const result = hljs.highlight(code, { language, ignoreIllegals: true }) as unknown as { _emitter: Pieces };
  return result._emitter.list;
}
