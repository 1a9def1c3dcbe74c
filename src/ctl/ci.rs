//! Finds the CI job from the environment. Pure: a closure gives the variables. Reads
//! names, numbers and addresses, never a token. The result labels a session and
//! authorizes nothing, because a job can set these variables.
//!
//! The variables are documented in: GitLab "Predefined CI/CD
//! variables", GitHub "Variables reference", Buildkite "Environment variables",
//! Jenkins "Using environment variables", Woodpecker "Environment variables", Azure
//! Pipelines "Use predefined variables", TeamCity "List of Predefined Build
//! Parameters". Buildbot sets none: packaging/ci has the ones that a master sets.

use crate::control::messages::CiJob;

/// The longest value that is used, in characters.
const MOST: usize = 200;

/// A CI job and the label of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The label, for people.
    pub label: String,
    /// The job, by which a later step finds the session again.
    pub job: CiJob,
}

/// Returns the CI job that this process belongs to, if any.
pub fn detect(lookup: impl Fn(&str) -> Option<String>) -> Option<Detected> {
    let env = Env(&lookup);
    // Gitea and Forgejo set GitHub's variables too, so they are checked first.
    match () {
        // gitlab-ci-local sets it to "false"; that is a job, too.
        () if env.get("GITLAB_CI").is_some() => env.gitlab(),
        () if env.on("FORGEJO_ACTIONS") => env.actions("forgejo"),
        () if env.on("GITEA_ACTIONS") => env.actions("gitea"),
        () if env.on("GITHUB_ACTIONS") => env.actions("github"),
        () if env.on("BUILDKITE") => env.buildkite(),
        () if env.get("JENKINS_URL").is_some() => env.jenkins(),
        () if env.get("CI").as_deref() == Some("woodpecker") => env.woodpecker(),
        () if env.on("TF_BUILD") => env.azure(),
        () if env.get("TEAMCITY_VERSION").is_some() => env.teamcity(),
        () if env.get("BUILDBOT_BUILDER").is_some() => env.buildbot(),
        () => None,
    }
}

struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    /// Returns a variable's value, trimmed, printable and shortened; none when empty.
    fn get(&self, name: &str) -> Option<String> {
        let value: String = (self.0)(name)?.chars().filter(|c| !c.is_control()).take(MOST).collect();
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "false" && v != "0")
    }

    /// Joins the values of those variables that are set.
    fn joined(&self, names: &[&str], by: &str) -> String {
        names.iter().filter_map(|n| self.get(n)).collect::<Vec<_>>().join(by)
    }

    fn gitlab(&self) -> Option<Detected> {
        let id = self.get("CI_JOB_ID")?;
        Some(Detected {
            label: format!("{} #{id}", self.joined(&["CI_PROJECT_PATH", "CI_JOB_NAME"], " "))
                .trim()
                .to_owned(),
            job: CiJob {
                system: "gitlab".to_owned(),
                url: self.get("CI_JOB_URL"),
                project: self.get("CI_PROJECT_PATH"),
                git_ref: self.get("CI_COMMIT_REF_NAME"),
                id,
            },
        })
    }

    fn actions(&self, system: &str) -> Option<Detected> {
        let run = self.get("GITHUB_RUN_ID")?;
        // The jobs of a matrix share run, attempt and name. The runner's tracking id is
        // unique for a job; else the runner's name is, because it runs one job at a time.
        let mut id = self.joined(&["GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB"], "/");
        if let Some(own) = self.get("RUNNER_TRACKING_ID").or_else(|| self.get("RUNNER_NAME")) {
            id = format!("{id}/{own}");
        }
        let project = self.get("GITHUB_REPOSITORY");
        // The pages of Gitea and Forgejo use the run's number within the repository.
        let page = if system == "github" { Some(run.clone()) } else { self.get("GITHUB_RUN_NUMBER") };
        let url = match (self.get("GITHUB_SERVER_URL"), &project, page) {
            (Some(server), Some(project), Some(page)) => {
                Some(format!("{}/{project}/actions/runs/{page}", server.trim_end_matches('/')))
            }
            _ => None,
        };
        Some(Detected {
            label: format!("{} #{run}", self.joined(&["GITHUB_REPOSITORY", "GITHUB_JOB"], " "))
                .trim()
                .to_owned(),
            job: CiJob { system: system.to_owned(), id, url, project, git_ref: self.get("GITHUB_REF_NAME") },
        })
    }

    fn buildkite(&self) -> Option<Detected> {
        let id = self.get("BUILDKITE_JOB_ID")?;
        let project = self.joined(&["BUILDKITE_ORGANIZATION_SLUG", "BUILDKITE_PIPELINE_SLUG"], "/");
        let step = self.get("BUILDKITE_LABEL").map(|l| format!(" {l}")).unwrap_or_default();
        let number = self.get("BUILDKITE_BUILD_NUMBER").unwrap_or_else(|| id.clone());
        Some(Detected {
            label: format!("{project}{step} #{number}").trim().to_owned(),
            job: CiJob {
                system: "buildkite".to_owned(),
                url: self.get("BUILDKITE_BUILD_URL").map(|u| format!("{u}#{id}")),
                project: (!project.is_empty()).then_some(project),
                git_ref: self.get("BUILDKITE_BRANCH"),
                id,
            },
        })
    }

    fn jenkins(&self) -> Option<Detected> {
        let id = self.get("BUILD_TAG")?;
        Some(Detected {
            label: id.clone(),
            job: CiJob {
                system: "jenkins".to_owned(),
                id,
                url: self.get("BUILD_URL"),
                project: self.get("JOB_NAME"),
                git_ref: self.get("BRANCH_NAME").or_else(|| self.get("GIT_BRANCH")),
            },
        })
    }

    fn woodpecker(&self) -> Option<Detected> {
        let number = self.get("CI_PIPELINE_NUMBER")?;
        let project = self.get("CI_REPO");
        // The workflows of a pipeline run at the same time, those of a matrix with one
        // name; each has a workspace of its own.
        let id = self.joined(&["CI_REPO", "CI_PIPELINE_NUMBER", "CI_WORKFLOW_NAME", "CI_WORKSPACE"], "/");
        Some(Detected {
            label: format!("{} #{number}", self.joined(&["CI_REPO", "CI_WORKFLOW_NAME"], " "))
                .trim()
                .to_owned(),
            job: CiJob {
                system: "woodpecker".to_owned(),
                id,
                url: self.get("CI_PIPELINE_URL"),
                project,
                git_ref: self.get("CI_COMMIT_BRANCH"),
            },
        })
    }

    fn azure(&self) -> Option<Detected> {
        let (build, job) = (self.get("BUILD_BUILDID")?, self.get("SYSTEM_JOBID")?);
        let project = self.get("SYSTEM_TEAMPROJECT");
        let number = self.get("BUILD_BUILDNUMBER").unwrap_or_else(|| build.clone());
        let url = match (self.get("SYSTEM_COLLECTIONURI"), &project) {
            (Some(server), Some(project)) => {
                let (server, project) =
                    (server.trim_end_matches('/').to_owned(), project.replace(' ', "%20"));
                Some(format!("{server}/{project}/_build/results?buildId={build}&view=logs&j={job}"))
            }
            _ => None,
        };
        let id = match self.get("SYSTEM_JOBATTEMPT") {
            Some(attempt) => format!("{build}/{job}/{attempt}"),
            None => format!("{build}/{job}"),
        };
        let names = ["SYSTEM_TEAMPROJECT", "BUILD_DEFINITIONNAME", "AGENT_JOBNAME"];
        Some(Detected {
            label: format!("{} #{number}", self.joined(&names, " ")).trim().to_owned(),
            job: CiJob {
                system: "azure".to_owned(),
                id,
                url,
                project,
                git_ref: self.get("BUILD_SOURCEBRANCHNAME"),
            },
        })
    }

    fn teamcity(&self) -> Option<Detected> {
        let number = self.get("BUILD_NUMBER")?;
        let names = ["TEAMCITY_PROJECT_NAME", "TEAMCITY_BUILDCONF_NAME"];
        Some(Detected {
            label: format!("{} #{number}", self.joined(&names, " ")).trim().to_owned(),
            job: CiJob {
                system: "teamcity".to_owned(),
                id: format!("{}/{number}", self.joined(&names, "/")),
                url: self.get("BUILD_URL"),
                project: self.get("TEAMCITY_PROJECT_NAME"),
                git_ref: None,
            },
        })
    }

    fn buildbot(&self) -> Option<Detected> {
        let (builder, number) = (self.get("BUILDBOT_BUILDER")?, self.get("BUILDBOT_BUILD_NUMBER")?);
        Some(Detected {
            label: format!("{builder} #{number}"),
            job: CiJob {
                system: "buildbot".to_owned(),
                id: format!("{builder}/{number}"),
                url: self.get("BUILDBOT_BUILD_URL"),
                project: self.get("BUILDBOT_PROJECT"),
                git_ref: self.get("BUILDBOT_BRANCH"),
            },
        })
    }
}
