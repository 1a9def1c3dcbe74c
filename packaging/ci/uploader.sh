#!/bin/sh
# flywheel for programs that stream finished paths to an uploader and wait for one
# answer a path (nixbot, and scripts of your own): paths in, one in a line; one final
# JSON object out for each, in the order in which they settle. See "Many paths" in
# docs/jobs.md for the objects and the exit status.
exec flywheelctl --json push --stdin --timeout "${FLYWHEEL_TIMEOUT:-240s}"
