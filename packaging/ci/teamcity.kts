// flywheel in the Kotlin DSL of TeamCity (.teamcity/settings.kts), for an agent whose
// host runs flywheeld. flywheelctl finds the session by project, configuration and
// build number. "|| true" keeps builds green on agents without flywheel.
steps {
    script { scriptContent = "flywheelctl session start || true" }
    script { scriptContent = "nix-build" }
    script {
        scriptContent = "flywheelctl session end --push 'result*' || true"
        // Also after a failure and a cancellation.
        executionMode = BuildStep.ExecutionMode.ALWAYS
    }
}
