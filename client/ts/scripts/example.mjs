// Bundles the page of an example, page.tsx, to page.js beside it: node client/ts/scripts/example.mjs examples/seatmap

import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const own = (name) => [`@commitcast/client${name === "index" ? "" : `/${name}`}`, here(`../src/${name}.ts`)];

await build({
  absWorkingDir: resolve(process.argv[2]),
  entryPoints: ["page.tsx"],
  outfile: "page.js",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  legalComments: "none",
  nodePaths: [here("../node_modules")],
  alias: Object.fromEntries(["act", "digest", "persist", "share", "react", "index"].map(own)),
  tsconfigRaw: {}, // that of the examples names the types of packages, not the packages
});
