// Ends the job's session: waits for its uploads and prints what became of each path.
import { flywheelctl, input } from "./flywheelctl.mjs";

const args = ["session", "end"];
if (process.env.STATE_session) args.push(process.env.STATE_session);
const patterns = input("push").split("\n").map((line) => line.trim()).filter(Boolean);
for (const pattern of patterns) args.push("--push", pattern);
args.push("--timeout", input("timeout") || "240s");
if (input("report")) args.push("--report", input("report"));
process.stdout.write(flywheelctl(args));
