#!/bin/sh
# flywheel for all jobs of a self-hosted GitHub runner. In the runner's .env:
#   ACTIONS_RUNNER_HOOK_JOB_STARTED=/etc/flywheel/github-hooks/job-started.sh
#   ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/etc/flywheel/github-hooks/job-completed.sh
# Gitea's runner (act_runner, "host" labels) takes the same two variables, in the
# environment of its service; Forgejo's knows no hooks, its jobs use the steps.
#
# Steps are processes of their own, so the session follows the runner's process
# for this job, which the environment and the process tree tell. The session's id
# goes to GITHUB_ENV for later steps. A non-zero status would fail the job: this
# always ends with 0, also on a host without flywheel.
flywheelctl session start || true
exit 0
