// Builds the page into the Python package, and writes down what was built from what, and under which licences.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { defineConfig, type Plugin } from "vite";

const OUT = join(import.meta.dirname, "../src/freehold/serve/http/console/static");
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

function files(path: string): string[] {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path)
    .sort()
    .flatMap((name) => files(join(path, name)));
}

function digests(root: string, paths: string[]): Record<string, string> {
  const all = paths.flatMap((path) => files(join(root, path)));
  const of = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
  return Object.fromEntries(all.map((path) => [relative(root, path), of(path)]).sort());
}

/** manifest.json: sha256 of every source and of every file built from them; a test compares them. */
function manifest(): Plugin {
  let out = OUT;
  return {
    name: "manifest",
    configResolved(config) {
      out = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      const built = readdirSync(out).filter((name) => name !== "manifest.json");
      const record = { sources: digests(import.meta.dirname, SOURCES), built: digests(out, built) };
      writeFileSync(join(out, "manifest.json"), JSON.stringify(record, null, 1) + "\n");
    },
  };
}

const PACKAGE = /^(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//;

/** The licence of a package in its own words. A build without one fails: it may not be handed on. */
function licence(folder: string): string {
  const said = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as Record<string, string>;
  const file = readdirSync(folder).find((name) => /^licen[cs]e(\.|$)/i.test(name));
  if (!file) throw new Error(`${said.name} brings no licence along`);
  const text = readFileSync(join(folder, file), "utf8").replaceAll("\r\n", "\n").trim();
  return `${said.name} ${said.version} (${said.license})\n\n${text}\n`;
}

/** THIRD_PARTY.txt: the licence of every package that something in the built files comes from. */
function thirdParty(): Plugin {
  return {
    name: "third-party",
    generateBundle(_, bundle) {
      const modules = Object.values(bundle).flatMap((file) => (file.type === "chunk" ? file.moduleIds : []));
      const folders = new Set(modules.map((id) => PACKAGE.exec(id.replace(/^\0/, ""))?.[1]).filter((id) => id !== undefined));
      const known = [...folders].filter((folder) => existsSync(join(folder, "package.json")));
      const source = known.map(licence).sort().join(`\n${"-".repeat(100)}\n\n`);
      this.emitFile({ type: "asset", fileName: "THIRD_PARTY.txt", source });
    },
  };
}

export default defineConfig({
  plugins: [thirdParty(), manifest()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // a data: address in a style sheet is no file that the policy of styles knows
    modulePreload: { polyfill: false }, // which would be an inline script
    chunkSizeWarningLimit: 400,
  },
});
