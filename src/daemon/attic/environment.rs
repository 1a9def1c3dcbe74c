//! How the attic client and Nix are run: in which directories, and with which part
//! of the daemon's environment. Must not know what they are run for.

use std::ffi::OsString;

use super::Login;
use crate::attic::{Runner, Scrub, Workspace};
use crate::config::Settings;

/// Where and how the attic client and Nix are run.
pub(in crate::daemon) fn workspace(settings: &Settings, login: &Login) -> Workspace {
    let caches = login.clone();
    let scrub = Scrub::new(move |text| {
        caches.caches().iter().fold(text.to_owned(), |text, cache| cache.client.scrub(&text))
    });
    Workspace {
        // This very program, even if an update has replaced its file.
        runner: Runner { supervisor: "/proc/self/exe".into(), env: environment(settings), scrub },
        state_dir: settings.state_dir.clone(),
        home: login.home().clone(),
        timeout: settings.client.timeout,
    }
}

/// The environment of the attic client and of Nix: what they need of the daemon's
/// own, and never a token.
fn environment(settings: &Settings) -> Vec<(OsString, OsString)> {
    const KEPT: [&str; 11] = [
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "TMPDIR",
        "TZ",
        "USER",
        "LOGNAME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "GIT_SSL_CAINFO",
    ];
    let is_kept = |name: &str| {
        let proxy = name.to_ascii_lowercase();
        KEPT.contains(&name) || name.starts_with("NIX_") || proxy.ends_with("_proxy")
    };
    let mut env: Vec<_> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)).collect();
    let mut set = |name: &str, value: OsString| {
        env.retain(|(n, _)| n != name);
        env.push((name.into(), value));
    };
    // The store that the daemon watches, if it is not the usual one.
    // The client is a program of the host: one in a store below a root could not be run.
    let is_hosts = settings.nix.root.is_none();
    if is_hosts && settings.nix.store_dir.as_os_str() != "/nix/store" {
        set("NIX_STORE_DIR", settings.nix.store_dir.clone().into());
    }
    if is_hosts && settings.nix.state_dir.as_os_str() != "/nix/var/nix" {
        set("NIX_STATE_DIR", settings.nix.state_dir.clone().into());
    }
    set("XDG_CACHE_HOME", settings.state_dir.join("nix-cache").into());
    if std::env::var_os("HOME").is_none() {
        set("HOME", settings.state_dir.clone().into());
    }
    // Nix may be installed in none of the system directories.
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin");
    set("PATH", path);
    env
}
