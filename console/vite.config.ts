// Builds the page into the Python package, and writes down what was built from what.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const OUT = join(import.meta.dirname, "../src/freehold/server/console/static");
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
  return {
    name: "manifest",
    closeBundle() {
      const built = readdirSync(OUT).filter((name) => name !== "manifest.json");
      const record = { sources: digests(import.meta.dirname, SOURCES), built: digests(OUT, built) };
      writeFileSync(join(OUT, "manifest.json"), JSON.stringify(record, null, 1) + "\n");
    },
  };
}

export default defineConfig({
  plugins: [manifest()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // a data: address in a style sheet is no file that the policy of styles knows
    modulePreload: { polyfill: false }, // which would be an inline script
    chunkSizeWarningLimit: 400,
  },
});
