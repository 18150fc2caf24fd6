// Bundles each widget into one self-contained file, because anywidget loads it from a blob URL where no relative import works.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

// Every script in src/widgets/ is a widget's entry, but for parts that a widget has in a file of its own (name.part.ts).
const entries = (await readdir("src/widgets")).filter((name) => /^[a-z_]+\.ts$/.test(name)).sort();
const OUT = "../saelab_widgets/static";

const { metafile } = await build({
  entryPoints: [...entries.map((name) => `src/widgets/${name}`), "src/standalone.ts"],
  entryNames: "[name]",
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
