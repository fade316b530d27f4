// Bundles the page in web/ into the folder that is given: node build.mjs DIR
import { copyFile, mkdir } from "node:fs/promises";
import { build } from "esbuild";

const out = process.argv[2];
await build({
    entryPoints: ["web/app.js"],
    outfile: `${out}/app.js`,
    bundle: true,
    format: "esm",
    platform: "browser",
    define: { global: "globalThis" },
    minify: true,
    logLevel: "warning",
});
// the crypto module is looked for beside the script
const wasm = "matrix_sdk_crypto_wasm_bg.wasm";
await mkdir(`${out}/pkg`, { recursive: true });
await copyFile(`node_modules/@matrix-org/matrix-sdk-crypto-wasm/pkg/${wasm}`, `${out}/pkg/${wasm}`);
for (const file of ["index.html", "style.css"]) await copyFile(`web/${file}`, `${out}/${file}`);
