#!/bin/sh
# flywheel with Hydra's RunCommand plugin, on the host with the store: every finished
# build's outputs are pushed, and the log of the command has one JSON object for each.
# In hydra.conf:
#   <runcommand>
#     command = /etc/flywheel/hydra-runcommand.sh
#   </runcommand>
# The user hydra-queue-runner needs the group of flywheel's socket. jq is needed.
set -eu
jq -r '.outputs[].path' "$HYDRA_JSON" | flywheelctl --json push --stdin
