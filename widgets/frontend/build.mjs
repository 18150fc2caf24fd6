// Bundles each widget into one self-contained file, because anywidget loads it from a blob URL where no relative import works.
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const WIDGETS = ["training_lab"];
const OUT = "../saelab_widgets/static";

const { metafile } = await build({
  entryPoints: WIDGETS.map((name) => `src/${name}.ts`),
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  logLevel: "info",
});

// The licences of what really went into the bundles; sorted, so that two builds are equal byte for byte.
const inputs = Object.values(metafile.outputs).flatMap((output) => Object.keys(output.inputs));
const packages = [...new Set(inputs.flatMap((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []))].sort();
const notices = await Promise.all(
  packages.map(async (name) => {
    const { version, license } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
    const text = await readFile(`node_modules/${name}/LICENSE`, "utf8");
    return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  }),
);
const head = "The JavaScript files in this folder contain parts of these packages.\n";
await writeFile(`${OUT}/THIRD_PARTY_LICENSES.txt`, [head, ...notices].join(`\n${"-".repeat(80)}\n\n`));
