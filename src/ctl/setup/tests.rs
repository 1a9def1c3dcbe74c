//! Plans: what is there is kept, secrets are not shown, and input is checked.

use super::*;
use ask::{check_server, check_token, check_user};

fn host(root: &Path) -> Host {
    Host { root: root.to_owned(), config: "/etc/flywheel/flywheel.toml".into(), token_file: None }
}

fn wanted() -> Wanted {
    Wanted {
        cache: Some((
            Server::Remote(vec!["https://attic.example.com".into()]),
            CacheName::parse("ci").unwrap(),
        )),
        token: Some(Zeroizing::new("secret-token".to_owned())),
        token_command: Vec::new(),
        users: Vec::new(),
        nix_conf: true,
    }
}

#[test]
fn what_was_done_is_not_done_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let plan = Plan::new(&host, &wanted()).unwrap();
    assert_eq!((plan.steps.len(), plan.kept.len()), (2, 0), "{plan:?}");
    let shown = format!("{plan:?} {:?}", plan.done());
    assert!(!shown.contains("secret-token") && shown.contains("/etc/credstore/attic-token"), "{shown}");
    plan.carry_out(&host).unwrap();
    let credential = dir.path().join("etc/credstore/attic-token");
    assert_eq!(std::fs::read_to_string(&credential).unwrap(), "secret-token\n");
    assert_eq!(std::fs::metadata(&credential).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Plan::new(&host, &wanted()).unwrap();
    assert_eq!((again.steps.len(), again.kept.len()), (0, 2), "{again:?}");
    // Rights that are too wide are mended.
    std::fs::set_permissions(&credential, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Plan::new(&host, &wanted()).unwrap().steps.len(), 1);
}

#[test]
fn the_configuration_is_what_the_daemon_reads() {
    let cache = CacheName::parse("1+a").unwrap();
    let remote = Server::Remote(vec!["https://a".into(), "https://b/\u{e9}".into()]);
    let words = ["/usr/bin/vault", "read", "-field=\"token\""].map(str::to_owned);
    use steps::TokenSetting;
    for (server, token, key) in [
        (&remote, TokenSetting::File(Path::new("/run/token")), Some("token_file")),
        (&remote, TokenSetting::Command(&words), Some("token_command")),
        (&remote, TokenSetting::Credential, None),
        (&Server::BuiltIn, TokenSetting::Credential, None),
    ] {
        let text = steps::configuration(server, &cache, token);
        let read: toml::Table = text.parse().unwrap();
        let table = read["caches"]["1+a"].as_table().unwrap();
        assert_eq!(read["default_cache"].as_str(), Some("1+a"), "{text}");
        let keys: Vec<&str> = table.keys().map(String::as_str).filter(|key| *key != "endpoints").collect();
        assert_eq!(keys, key.into_iter().collect::<Vec<_>>(), "{text}");
        if let Some(command) = table.get("token_command") {
            assert_eq!(command.clone().try_into::<Vec<String>>().unwrap(), words, "{text}");
        }
        assert!(table["endpoints"].is_array() || table["endpoints"].as_str() == Some("embedded"), "{text}");
    }
}

#[test]
fn input_is_checked() {
    for bad in ["", " ", "a b", "tok\u{e9}n", &"x".repeat(20_000)] {
        assert!(check_token(bad).is_err(), "{bad:?}");
    }
    assert_eq!(check_token(" token\n").unwrap().as_str(), "token");
    for bad in
        ["", "attic.example.com", "ftp://a", "https://", "https://me:pw@a", "https://a\nb = 1", "https://\"a"]
    {
        assert!(check_server(bad).is_err(), "{bad:?}");
    }
    assert!(check_server("https://attic.example.com/sub").is_ok());
    for bad in ["", "-G", "a b", "../a", &"x".repeat(40)] {
        assert!(check_user(bad).is_err(), "{bad:?}");
    }
    assert!(check_user("gitlab-runner").is_ok() && check_user("_ci.1").is_ok());
}

#[test]
fn the_version_of_systemd_is_read() {
    for (text, version) in [
        ("systemd 249 (249.11-0ubuntu3.12)\n+PAM +AUDIT", Some(249)),
        ("systemd 258~rc1 (258~rc1)\n", Some(258)),
        ("systemd\n", None),
        ("", None),
    ] {
        assert_eq!(systemd_version(text), version, "{text}");
    }
}
