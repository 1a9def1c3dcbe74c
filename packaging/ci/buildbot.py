# flywheel in a Buildbot master's master.cfg, for workers whose host runs flywheeld.
# Buildbot gives a worker's commands no variables that name the build, so `env` does:
# flywheelctl finds the session by them. "|| true" keeps builds green on workers
# without flywheel.
from buildbot.plugins import steps, util

env = {
    "BUILDBOT_BUILDER": util.Property("buildername"),
    "BUILDBOT_BUILD_NUMBER": util.Interpolate("%(prop:buildnumber)s"),
    "BUILDBOT_BRANCH": util.Interpolate("%(prop:branch:-)s"),
    "BUILDBOT_BUILD_URL": util.URLForBuild,
}
factory = util.BuildFactory([
    steps.ShellCommand(command="flywheelctl session start || true", env=env),
    steps.ShellCommand(command=["nix-build"], env=env),
    steps.ShellCommand(
        command="flywheelctl session end --push 'result*' || true",
        env=env,
        # Also after a failure.
        alwaysRun=True,
    ),
])
