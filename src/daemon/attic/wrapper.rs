//! A program named `attic` in a directory of its own, for the PATH of jobs. It runs
//! the attic client that the daemon keeps, and contains no token.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use crate::config::Settings;
use crate::observe::event;
use crate::types::replace_file;

/// Writes the program. An error is logged: a job that calls `attic` then fails with
/// "not found".
pub(in crate::daemon) fn write(settings: &Settings) {
    let dir = settings.runtime_dir.join("bin");
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("flywheelctl"));
    let program = beside.filter(|program| program.is_file()).unwrap_or_else(|| "flywheelctl".into());
    let text = script(&program, &settings.socket);
    let written = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&dir)
        .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)))
        .and_then(|()| replace_file(&dir.join("attic"), text.as_bytes(), 0o755, None));
    if let Err(error) = written {
        event!(CLIENT_FAULT, file = %dir.display(), error = %error, "the program `attic` for jobs cannot be written to {}: {error}", dir.display());
    }
}

fn script(program: &Path, socket: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!("#!/bin/sh\nexec {} --socket {} client exec -- \"$@\"\n", quoted(program), quoted(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_as_one_word() {
        let text = script(Path::new("/opt/it's here/flywheelctl"), Path::new("/run/s"));
        assert_eq!(
            text,
            "#!/bin/sh\nexec '/opt/it'\\''s here/flywheelctl' --socket '/run/s' client exec -- \"$@\"\n"
        );
    }
}
