// Runs flywheelctl for the two parts of the action.
import { spawnSync } from "node:child_process";

// The value of an input, as the runner passes it.
export const input = (name) => (process.env[`INPUT_${name.toUpperCase()}`] ?? "").trim();

// Runs flywheelctl with these arguments, shows what it prints, and returns its
// standard output. Without `strict` the job continues whatever happens.
export function flywheelctl(args) {
  const strict = input("strict") === "true";
  const run = spawnSync("flywheelctl", strict ? [...args, "--strict"] : args, {
    stdio: ["ignore", "pipe", "inherit"],
    encoding: "utf8",
  });
  const failed = run.error ? `flywheelctl cannot be run: ${run.error.message}` : null;
  if (failed) {
    console.log(`::${strict ? "error" : "warning"} title=flywheel::${failed}`);
  }
  if (strict && (failed || run.status !== 0)) {
    process.exitCode = 1;
  }
  return run.stdout ?? "";
}
