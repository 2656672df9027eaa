// Makes dist/commitcast.js: the client in one readable file, for pages without a build step. Committed, because Go
// programs embed it; test/package.test.ts rebuilds it and compares.

import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = new URL("../", import.meta.url);
export const target = new URL("dist/commitcast.js", root);

/** The text of a bundle. */
export async function bundle(entry, options = {}) {
  const result = await build({
    absWorkingDir: fileURLToPath(root),
    bundle: true,
    format: "esm",
    target: "es2022",
    write: false,
    legalComments: "none",
    ...(entry.includes("\n") || entry.includes("{")
      ? { stdin: { contents: entry, resolveDir: fileURLToPath(root), loader: "ts" } }
      : { entryPoints: [entry] }),
    ...options,
  });
  return result.outputFiles[0].text;
}

const banner = `// Commitcast's client for browsers, from client/ts/src by \`npm run build\`. Apache-2.0. Protocol commitcast.v1.
//   import { connect, act, digest } from "./commitcast.js";`;

export const browser = () => bundle("src/browser.ts", { banner: { js: banner } });

if (process.argv[1] === fileURLToPath(import.meta.url)) await writeFile(target, await browser());
