// Opens the job's session. flywheelctl writes FLYWHEEL_SESSION for later steps.
import { appendFileSync } from "node:fs";
import { flywheelctl, input } from "./flywheelctl.mjs";

const args = ["session", "start"];
for (const name of ["label", "cache"]) {
  if (input(name)) args.push(`--${name}`, input(name));
}
const session = flywheelctl(args).trim();
// For the part after the job, which does not get FLYWHEEL_SESSION when the job sets
// another one.
if (session && process.env.GITHUB_STATE) {
  appendFileSync(process.env.GITHUB_STATE, `session=${session}\n`);
}
