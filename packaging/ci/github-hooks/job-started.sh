#!/bin/sh
# flywheel for all jobs of a self-hosted GitHub runner. In the runner's .env:
#   ACTIONS_RUNNER_HOOK_JOB_STARTED=/etc/flywheel/github-hooks/job-started.sh
#   ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/etc/flywheel/github-hooks/job-completed.sh
# Gitea's runner (act_runner, "host" labels) uses the same two variables, in the
# environment of its service. Forgejo's runner has no hooks; its jobs use steps.
#
# Each step is a process of its own, so the session follows the runner's process
# for this job. flywheelctl finds it through the environment and the process tree,
# and writes the session's id to GITHUB_ENV for later steps. A non-zero status would
# fail the job, so this script always ends with 0, also on a host without flywheel.
flywheelctl session start || true
exit 0
