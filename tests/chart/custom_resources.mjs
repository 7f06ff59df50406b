// Validates custom resources. Arguments: the folder with node_modules, a file with [{"where", "object"}]. Prints one line per problem.
//
// The schema of a custom resource accepts unknown fields, which Kubernetes then silently drops. So the objects are also compiled against
// TypeScript types, which reject unknown fields.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const PACKAGES = {
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
  "gateway.networking.k8s.io": "gateway-api",
};
const load = (path) => import(pathToFileURL(join(folder, "node_modules", path)));
const typescript = (await load("typescript/lib/typescript.js")).default;

function moduleOf({ apiVersion, kind }) {
  const path = `@kubernetes-models/${PACKAGES[apiVersion.split("/")[0]]}/${apiVersion}/${kind}`;
  return existsSync(join(folder, "node_modules", `${path}.js`)) ? path : undefined;
}

async function againstSchema({ where, object }) {
  const Kind = (await load(`${moduleOf(object)}.js`))[object.kind];
  try {
    new Kind(object).validate();
    return [];
  } catch (error) {
    return [`${where}: ${error.message}`];
  }
}

function againstTypes(entries) {
  const source = join(folder, "objects.ts");
  const lines = entries.map(({ object }, at) => {
    const type = `import("${moduleOf(object)}").I${object.kind}`;
    return `export const object${at}: ${type} = ${JSON.stringify(object)};`;
  });
  writeFileSync(source, lines.join("\n"));
  const { ModuleKind, ModuleResolutionKind, ScriptTarget } = typescript;
  const program = typescript.createProgram([source], {
    strict: true, noEmit: true, skipLibCheck: true, types: [],
    module: ModuleKind.NodeNext, moduleResolution: ModuleResolutionKind.NodeNext, target: ScriptTarget.ES2022,
  });
  return typescript.getPreEmitDiagnostics(program).map((found) => {
    const message = typescript.flattenDiagnosticMessageText(found.messageText, " ");
    const line = found.file?.fileName === source && found.file.getLineAndCharacterOfPosition(found.start).line;
    return `${line === false ? found.file?.fileName : entries[line].where}: ${message}`;
  });
}

const entries = JSON.parse(readFileSync(file, "utf8"));
const known = entries.filter(({ object }) => moduleOf(object));
const problems = entries.filter((entry) => !known.includes(entry)).map(({ where }) => `${where}: no schema found for this kind`);
for (const entry of known) problems.push(...(await againstSchema(entry)));
problems.push(...againstTypes(known));
for (const problem of problems) console.log(problem);
