//! Files and environments, good and bad, each with its exact result.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

type Vars<'a> = &'a [(&'a str, &'a str)];

/// Writes these files into a directory and loads its `flywheel.toml`.
fn load_files(files: &[(&str, &str)], vars: Vars<'_>) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = dir.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let vars: HashMap<&str, &str> = vars.iter().copied().collect();
    let env = |name: &str| vars.get(name).map(|value| (*value).to_owned());
    Settings::load(Some(&dir.path().join("flywheel.toml")), &env)
        .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

fn load(text: &str) -> Result<Settings, String> {
    load_files(&[("flywheel.toml", text)], &[])
}

/// A look-up in which no file of this host is found.
fn absent(vars: Vars<'_>) -> Result<Settings, String> {
    let mut vars: HashMap<&str, &str> = vars.iter().copied().collect();
    vars.insert("CONFIGURATION_DIRECTORY", "/nonexistent/flywheel");
    Settings::load(None, &|name| vars.get(name).map(|value| (*value).to_owned())).map_err(|e| e.to_string())
}

#[test]
fn nothing_at_all_is_the_embedded_cache() {
    let s = absent(&[]).unwrap();
    assert_eq!(s.socket, Path::new("/run/flywheel/control.sock"));
    assert_eq!(s.state_dir, Path::new("/var/lib/flywheel"));
    assert_eq!(s.runtime_dir, Path::new("/var/lib/flywheel/run"));
    assert_eq!(
        absent(&[("RUNTIME_DIRECTORY", "/run/flywheel:/run/more")]).unwrap().runtime_dir,
        Path::new("/run/flywheel")
    );
    assert_eq!(
        s.nix,
        Nix {
            root: None,
            lower_state_dir: None,
            store_dir: "/nix/store".into(),
            state_dir: "/nix/var/nix".into(),
            gc_roots: "/nix/var/nix/gcroots/flywheel".into(),
            poll: Duration::from_secs(30),
            netrc: None,
            netrc_group: None,
            netrc_include: vec![],
            protect_max: None,
            min_free: 1 << 30,
        }
    );
    assert_eq!(s.default_cache, "main");
    assert_eq!(s.caches.len(), 1);
    assert_eq!(
        s.caches["main"],
        Cache {
            cache: "main".into(),
            target: Target::Embedded,
            token: Token::None,
            pull_token: None,
            engine: Engine::Native,
            stall_timeout: std::time::Duration::from_secs(60),
            trust_api_endpoint: false,
            upstream_check: Vec::new(),
            network: Network::default()
        }
    );
    let embedded = s.embedded.unwrap();
    assert_eq!(
        (embedded.listen.to_string(), embedded.caches),
        ("127.0.0.1:8742".into(), vec!["main".to_owned()])
    );
    assert_eq!((embedded.dir, embedded.public), (PathBuf::from("/var/lib/flywheel/cache"), true));
    assert_eq!((s.push.jobs, s.push.max_rate, s.push.existing), (Jobs::Auto, None, Existing::No));
    assert_eq!((s.push.recheck_after, s.admins), (Duration::from_secs(600), None));
    assert_eq!((s.drain_timeout.as_secs(), s.history_keep.as_secs()), (90, 30 * 86400));
    assert_eq!((s.routes.len(), s.warnings.len(), s.files.len()), (0, 0, 0));
}

#[test]
fn the_environment_when_no_cache_is_configured() {
    let s = absent(&[
        ("ATTIC_SERVER", "https://attic.example.com/"),
        ("ATTIC_TOKEN", "t"),
        ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"),
        ("NIX_STORE_DIR", "/s/store/"),
        ("NIX_STATE_DIR", "/s/var"),
    ])
    .unwrap();
    assert_eq!(s.state_dir, Path::new("/var/lib/a"));
    assert_eq!(
        s.nix,
        Nix {
            root: None,
            lower_state_dir: None,
            store_dir: "/s/store".into(),
            state_dir: "/s/var".into(),
            gc_roots: "/s/var/gcroots/flywheel".into(),
            poll: Duration::from_secs(30),
            netrc: None,
            netrc_group: None,
            netrc_include: vec![],
            protect_max: None,
            min_free: 1 << 30,
        }
    );
    assert_eq!(s.caches["main"].target, Target::Remote(vec!["https://attic.example.com".into()]));
    assert_eq!(s.caches["main"].token, Token::Env("ATTIC_TOKEN".into()));
    assert_eq!((s.embedded, s.warnings.len()), (None, 0));

    let vars = [("ATTIC_SERVER", "http://attic:8080/base"), ("ATTIC_CACHE", "team+ci"), ("ATTIC_TOKEN", " ")];
    let s = absent(&vars).unwrap();
    assert_eq!((s.default_cache.as_str(), s.caches["team+ci"].cache.as_str()), ("team+ci", "team+ci"));
    assert_eq!(s.caches["team+ci"].token, Token::None);
    let none = "cache team+ci: no token (no token_file, no token_command, no credential \"attic-token\", no $ATTIC_TOKEN); pushing needs one";
    assert_eq!(s.warnings, [none]);

    let s = absent(&[("ATTIC_CACHE", "x"), ("ATTIC_SERVER", "")]).unwrap();
    assert_eq!(
        (s.default_cache.as_str(), s.warnings),
        ("main", vec!["$ATTIC_CACHE is set without $ATTIC_SERVER and is not used".to_owned()])
    );
    // A file that configures no cache leaves this to the environment.
    let s = load_files(&[("flywheel.toml", "[push]\njobs = 4")], &[("ATTIC_SERVER", "https://a")]).unwrap();
    assert_eq!(s.caches["main"].target, Target::Remote(vec!["https://a".into()]));

    for (vars, message) in [
        (
            [("ATTIC_SERVER", "attic.example.com"), ("", "")],
            "$ATTIC_SERVER: found \"attic.example.com\": relative URL without a base, expected a URL like \"https://attic.example.com\"",
        ),
        (
            [("ATTIC_SERVER", "https://a"), ("ATTIC_CACHE", "a b")],
            "$ATTIC_CACHE: found \"a b\", expected up to 50 of A-Z a-z 0-9 - _ +, the first a letter or digit",
        ),
        (
            [("STATE_DIRECTORY", "state"), ("", "")],
            "$STATE_DIRECTORY: found \"state\", expected an absolute path without `..`",
        ),
        (
            [("NIX_STORE_DIR", "/a/../b"), ("", "")],
            "$NIX_STORE_DIR: found \"/a/../b\", expected an absolute path without `..`",
        ),
    ] {
        let message = match message.split_once(": found") {
            // A path says its key too.
            Some((var @ "$STATE_DIRECTORY", rest)) => format!("{var}: state_dir: found{rest}"),
            Some((var @ "$NIX_STORE_DIR", rest)) => format!("{var}: nix.store_dir: found{rest}"),
            _ => message.to_owned(),
        };
        assert_eq!(absent(&vars).unwrap_err(), message);
    }
}

#[test]
fn tokens_are_found_in_their_order() {
    let credentials = tempfile::tempdir().unwrap();
    let dir = credentials.path().to_str().unwrap();
    let text = "[caches.a]\nendpoints = [\"https://a\"]\n[caches.b]\nendpoints = [\"https://b\"]\ntoken_file = \"/t\"\n[caches.main]\nendpoints=\"embedded\"";
    let tokens = || {
        let s =
            load_files(&[("flywheel.toml", text)], &[("CREDENTIALS_DIRECTORY", dir), ("ATTIC_TOKEN", "x")])
                .unwrap();
        assert_eq!(
            (&s.caches["b"].token, &s.caches["main"].token),
            (&Token::File("/t".into()), &Token::None)
        );
        s.caches["a"].token.clone()
    };
    assert_eq!(tokens(), Token::Env("ATTIC_TOKEN".into()));
    std::fs::write(credentials.path().join("attic-token"), "x").unwrap();
    assert_eq!(tokens(), Token::File(credentials.path().join("attic-token")));
    std::fs::write(credentials.path().join("attic-token-a"), "x").unwrap();
    assert_eq!(tokens(), Token::File(credentials.path().join("attic-token-a")));
}

#[test]
fn later_files_win_key_by_key() {
    let s = load_files(
        &[
            ("flywheel.toml", "socket = \"/a\"\n[push]\njobs = 1\nexisting = true\n[caches.main]\nendpoints = [\"https://a\"]\ntoken_file = \"/t\"\n[[route]]\nuser = \"one\"\naction = \"skip\""),
            ("flywheel.toml.d/20-b.toml", "[push]\njobs = 3\n[[route]]\ngroup = \"100\"\ncache = \"two\""),
            ("flywheel.toml.d/10-a.toml", "[push]\njobs = 2\nmax_rate = \"1MiB\"\n[caches.main]\nendpoints = [\"https://b\"]\n[caches.two]\nendpoints = \"embedded\""),
            ("flywheel.toml.d/.#30.toml", "nonsense"),
            ("flywheel.toml.d/40.txt", "nonsense"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(
        (s.push.jobs, s.push.existing, s.push.max_rate),
        (Jobs::Fixed(3), Existing::Yes, Some(1 << 20))
    );
    assert_eq!(s.caches["main"].target, Target::Remote(vec!["https://b".into()]));
    assert_eq!(s.caches["main"].token, Token::File("/t".into()));
    let names: Vec<_> = s.files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["flywheel.toml", "10-a.toml", "20-b.toml"]);

    let groups = [(100, None), (7, Some("wheel".to_owned()))];
    let who = |name| Who {
        user: (1000, name),
        aliases: &[],
        groups: &[],
        label: "",
        complete: true,
        trusted: false,
    };
    assert_eq!(s.route(&who(Some("one"))), Ok(Destination::Skip));
    assert_eq!(s.route(&who(Some("other"))), Ok(Destination::Cache("main")));
    assert_eq!(s.route(&Who { groups: &groups, ..who(None) }), Ok(Destination::Cache("two")));

    // What is wrong in a later file is said with that file's name.
    let files = [("flywheel.toml", "\n\n"), ("flywheel.toml.d/a.toml", "\n[push]\njobs = 0\n")];
    assert_eq!(
        load_files(&files, &[]).unwrap_err(),
        "flywheel.toml.d/a.toml:3:8: push.jobs: found 0, expected \"auto\" or a number from 1 to 256"
    );
    let files = [
        ("flywheel.toml", "\n\n"),
        ("flywheel.toml.d/a.toml", "[[route]]\nuser = \"\"\naction = \"skip\"\n"),
    ];
    assert_eq!(
        load_files(&files, &[]).unwrap_err(),
        "flywheel.toml.d/a.toml:2:8: route.user: found \"\", expected a name, or a number in quotes"
    );
}

#[test]
fn routes_match_all_that_they_set() {
    let s = load("[[route]]\nuser = \"1000\"\nlabel = \"gitlab/*\"\naction = \"skip\"").unwrap();
    let who = |uid, label| Who {
        user: (uid, Some("ci")),
        aliases: &[],
        groups: &[],
        label,
        complete: true,
        trusted: false,
    };
    assert_eq!(s.route(&who(1000, "gitlab/a/b")), Ok(Destination::Skip));
    assert_eq!(s.route(&who(1000, "github/a")), Ok(Destination::Cache("main")));
    assert_eq!(s.route(&who(1001, "gitlab/a/b")), Ok(Destination::Cache("main")));
}

#[test]
fn routes_confine_those_they_match() {
    let s = load(
        "[caches.main]\nendpoints = \"embedded\"\n[caches.two]\nendpoints = \"embedded\"\n[caches.three]\nendpoints = \"embedded\"\n\
         [[route]]\nuser = \"ci\"\ncache = \"two\"\nallow = [\"three\"]\n[[route]]\ngroup = \"7\"\nlabel = \"a*\"\naction = \"skip\"",
    )
    .unwrap();
    let groups = [(7, None)];
    let who = |name| Who {
        user: (1000, Some(name)),
        aliases: &[],
        groups: &groups,
        label: "abc",
        complete: true,
        trusted: false,
    };
    assert_eq!(s.may_use(&who("ci"), "two"), Ok(()));
    assert_eq!(s.may_use(&who("ci"), "three"), Ok(()));
    assert_eq!(
        s.may_use(&who("ci"), "main").unwrap_err().to_string(),
        "cache main is not open to you: [[route]] 1 (user = \"ci\") allows two, three; the administrator can add it to `allow` there"
    );
    assert_eq!(
        s.may_use(&who("other"), "main").unwrap_err().to_string(),
        "cache main is not open to you: [[route]] 2 (group = \"7\", label = \"a*\") allows none; the administrator can add it to `allow` there"
    );
    assert_eq!(s.may_use(&Who { label: "x", ..who("other") }, "main"), Ok(()));
    assert_eq!(s.may_use(&Who { trusted: true, ..who("ci") }, "main"), Ok(()));
}

/// Without an answer of the name service a name decides nothing; a number, a
/// label and what is known do.
#[test]
fn a_route_that_cannot_be_decided_opens_nothing() {
    let load = |routes: &str| {
        let caches = "default_cache = \"main\"\n[caches.main]\nendpoints = \"embedded\"\n[caches.two]\nendpoints = \"embedded\"\n";
        load(&format!("{caches}{routes}")).unwrap()
    };
    let groups = [(100, None)];
    let who =
        Who { user: (1000, None), aliases: &[], groups: &groups, label: "", complete: false, trusted: false };
    let undecided = |route: &str| Err(Undecided { route: route.to_owned() });
    let two = Ok(Destination::Cache("two"));
    let main = Ok(Destination::Cache("main"));
    for (route, expected) in [
        ("user = \"1000\"", two.clone()),
        ("user = \"1001\"", main.clone()),
        ("user = \"ci\"", undecided("[[route]] 1 (user = \"ci\")")),
        ("user = \"ci\"\nlabel = \"x\"", main.clone()),
        ("user = \"ci\"\nlabel = \"*\"", undecided("[[route]] 1 (user = \"ci\", label = \"*\")")),
        ("group = \"100\"", two),
        ("group = \"7\"", undecided("[[route]] 1 (group = \"7\")")),
        ("group = \"domain users\"", undecided("[[route]] 1 (group = \"domain users\")")),
        ("user = \"1001\"\ngroup = \"7\"", main.clone()),
    ] {
        let s = load(&format!("[[route]]\n{route}\ncache = \"two\""));
        assert_eq!(s.route(&who), expected, "{route}");
        assert_eq!(s.may_use(&who, "two").is_ok(), expected.is_ok(), "{route}");
        // Root's paths wait for nobody.
        let root = Who { trusted: true, ..who };
        if expected.is_err() {
            assert_eq!(s.route(&root), main, "{route}");
        }
        assert_eq!(s.may_use(&root, "main"), Ok(()), "{route}");
    }
}

#[test]
fn paths_of_an_unknown_maker_go_where_a_route_says_or_wait() {
    let unknown = "[[route]]\nmaker = \"unknown\"\n";
    let person = "[[route]]\nuser = \"ci\"\naction = \"skip\"\n";
    for (text, expected, warned) in [
        (String::new(), UnknownMaker::Goes(Destination::Cache("main")), false),
        (
            "[[route]]\nlabel = \"a\"\naction = \"skip\"".to_owned(),
            UnknownMaker::Goes(Destination::Cache("main")),
            false,
        ),
        (person.to_owned(), UnknownMaker::Waits, true),
        (format!("{person}{unknown}action = \"skip\""), UnknownMaker::Goes(Destination::Skip), false),
        (format!("{person}{unknown}cache = \"main\""), UnknownMaker::Goes(Destination::Cache("main")), false),
    ] {
        let s = load(&text).unwrap();
        assert_eq!(s.unknown_maker(), expected, "{text}");
        let warning = "route: paths that nobody was seen to make wait until a session names them, because routes confine \
                       users or groups; a [[route]] with maker = \"unknown\" decides where they go";
        assert_eq!(s.warnings.iter().any(|w| w == warning), warned, "{:?}", s.warnings);
        // Such a route is for no person.
        let other =
            Who { user: (1, None), aliases: &[], groups: &[], label: "", complete: true, trusted: false };
        assert_eq!(s.route(&other), Ok(Destination::Cache("main")), "{text}");
    }
}

#[test]
fn a_route_may_have_a_range_of_numbers() {
    let text = "[[route]]\nuser = \"100000-165535\"\naction = \"skip\"\n";
    let s = load(text).unwrap();
    for (uid, skipped) in [(99_999, false), (100_000, true), (165_535, true), (165_536, false)] {
        // Also while the name service does not answer.
        let who =
            Who { user: (uid, None), aliases: &[], groups: &[], label: "", complete: false, trusted: false };
        let expected = if skipped { Destination::Skip } else { Destination::Cache("main") };
        assert_eq!(s.route(&who), Ok(expected), "{uid}");
    }
    let refused = load(&text.replace("165535", "99999")).unwrap_err().to_string();
    assert!(refused.contains("route.user") && refused.contains("first is not above its last"), "{refused}");
    let refused = load("admins = \"1-5\"\n").unwrap_err().to_string();
    assert!(refused.contains("one number in quotes"), "{refused}");
    // Names with such characters are names.
    for name in ["a-1", "1-", "-1", "1-b"] {
        load(&text.replace("100000-165535", name)).unwrap();
    }
}

#[test]
fn a_route_by_label_before_one_that_confines_is_a_warning() {
    let label = "[[route]]\nlabel = \"nightly-*\"\ncache = \"main\"\n";
    let user = "[[route]]\nuser = \"u\"\naction = \"skip\"\n";
    let both = "[[route]]\nuser = \"v\"\nlabel = \"x\"\ncache = \"main\"\n";
    let warning = "[[route]] 1 (label = \"nightly-*\") matches before [[route]] 2 (user = \"u\"): a job chooses its \
                   own label";
    for (routes, warned) in [
        (format!("{label}{user}"), true),
        (format!("{user}{label}"), false),
        (label.to_owned(), false),
        (format!("{both}{user}"), false),
    ] {
        let s = load(&format!("[caches.main]\nendpoints = \"http://a\"\n{routes}")).unwrap();
        assert_eq!(s.warnings.iter().any(|w| w.starts_with(warning)), warned, "{routes}: {:?}", s.warnings);
    }
}

#[test]
fn keys_of_freshness_and_protection() {
    let s = load("admins = \"ops\"\n[push]\nexisting = \"since-boot\"\nrecheck_after = \"5s\"\n[nix]\nprotect_max = \"10GiB\"\nmin_free = 0").unwrap();
    assert_eq!((s.push.existing, s.push.recheck_after), (Existing::SinceBoot, Duration::from_secs(5)));
    assert_eq!((s.nix.protect_max, s.nix.min_free, s.admins.as_deref()), (Some(10 << 30), 0, Some("ops")));
}

/// As Nix has it: `--store /srv/ci` ignores `NIX_STATE_DIR`, and not `NIX_STORE_DIR`.
#[test]
fn a_store_below_a_root() {
    let vars = [("NIX_STATE_DIR", "/x/var"), ("NIX_STORE_DIR", "/x/store")];
    let s = load_files(&[("flywheel.toml", "[nix]\nroot = \"/srv/ci/\"")], &vars).unwrap();
    assert_eq!(s.nix.state_dir, std::path::Path::new("/srv/ci/nix/var/nix"));
    assert_eq!(s.nix.gc_roots, std::path::Path::new("/srv/ci/nix/var/nix/gcroots/flywheel"));
    let store = s.nix.store().unwrap();
    assert_eq!((store.as_str(), store.as_path().to_str()), ("/x/store", Some("/srv/ci/nix/store")));
}

#[test]
fn filters() {
    let s = load("[push]\nfilter = { origins = [\"source\", \"built\", \"built\"], names = [\"a*\", \"!*-doc\"], max_size = \"1kB\" }").unwrap();
    let filter = s.push.filter;
    assert_eq!(filter.origins, [Origin::Built, Origin::Source]);
    for (name, origin, size, left_out) in [
        ("a-1", Origin::Built, 1000, None),
        ("a-1", Origin::Built, 1001, Some("max_size")),
        ("a-1", Origin::Substituted, 1, Some("origins")),
        ("a-1-doc", Origin::Built, 1, Some("names")),
        ("b-1", Origin::Built, 1, Some("names")),
    ] {
        assert_eq!(filter.leaves_out(name, origin, size), left_out, "{name} {origin:?} {size}");
    }
    assert_eq!(absent(&[]).unwrap().push.filter.leaves_out("anything", Origin::Built, u64::MAX), None);
    let drv = absent(&[]).unwrap().push.filter.leaves_out("anything.drv", Origin::Derivation, 1);
    assert_eq!(drv, Some("origins"));
}

#[test]
fn warnings_name_what_is_probably_not_wanted() {
    for (text, warning) in [
        (
            "[embedded]\nlisten = \"0.0.0.0:80\"",
            "embedded.listen: 0.0.0.0:80 is not a loopback address; everyone who reaches it can read",
        ),
        (
            "[embedded]\nlisten = \"[::]:80\"\npublic = false",
            "embedded.listen: [::]:80 is not a loopback address; tokens are sent without encryption",
        ),
        (
            "[caches.main]\nendpoints = [\"http://127.0.0.1:1\", \"http://a\"]\ntoken_file = \"/t\"",
            "cache main: the token is sent to http://a without encryption",
        ),
        (
            "[caches.main]\nendpoints = [\"https://a\"]\ntoken_file = \"/nix/store/x\"",
            "cache main: token_file is in the store, where everyone can read it",
        ),
        (
            "[nix]\nnetrc = \"/run/netrc\"\n[caches.main]\nendpoints = [\"https://a\"]\ntoken_file = \"/t\"",
            "nix.netrc: no cache has a pull_token_file, so that file is empty",
        ),
        (
            "[caches.main]\nendpoints = [\"https://a\"]\ntoken_file = \"/t\"\npull_token_file = \"/p\"",
            "caches.main.pull_token_file is not used without [nix] netrc",
        ),
        (
            "[push]\nengine = \"attic\"\nmax_rate = \"1MiB\"",
            "push.max_rate: the attic client has no such limit; it does not apply to caches with engine = \"attic\"",
        ),
    ] {
        assert_eq!(load(text).unwrap().warnings, [warning]);
    }
}

#[test]
fn a_token_that_every_user_may_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret").unwrap();
    let warned = |mode_of_file: u32, mode_of_dir: u32| {
        let set = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&file, mode_of_file);
        set(dir.path(), mode_of_dir);
        let settings = load(&main_with(&format!("token_file = {file:?}"))).unwrap();
        settings.warnings.iter().any(|w| w.contains("every user of this host may read token_file"))
    };
    assert!(warned(0o644, 0o755));
    assert!(!warned(0o640, 0o755), "others may not read the file");
    assert!(!warned(0o644, 0o700), "others cannot reach the file");
}

/// A file in which `[caches.main]` has these further lines.
fn main_with(lines: &str) -> String {
    format!("[caches.main]\nendpoints = [\"https://a\"]\n{lines}")
}

#[test]
fn what_is_wrong_is_said() {
    let cache_name = "expected up to 50 of A-Z a-z 0-9 - _ +, the first a letter or digit";
    let path = "expected an absolute path without `..`";
    let url = "expected a URL like \"https://attic.example.com\"";
    let cases: Vec<(String, String)> = vec![
        ("sokcet = \"/a\"".into(), "1:1: unknown field `sokcet`, expected one of `socket`, `state_dir`, `default_cache`, `admins`, `nix`, `caches`, `embedded`, `metrics`, `push`, `client`, `drain`, `history`, `route` (did you mean `socket`?)".into()),
        (main_with("token = \"s3cret\""), "3:1: unknown field `token`, expected one of `endpoints`, `cache`, `token_file`, `pull_token_file`, `engine`, `stall_timeout`, `trust_api_endpoint`, `upstream_check`, `ca_file`, `client_cert`, `client_key`, `headers_file`, `token_command`, `token_command_timeout`, `proxy`, `proxy_file`, `http2` (did you mean `token_file`?)".into()),
        ("[drain]\nx = 1".into(), "2:1: unknown field `x`, expected `timeout`".into()),
        ("[limits]".into(), "1:2: unknown field `limits`, expected one of `socket`, `state_dir`, `default_cache`, `admins`, `nix`, `caches`, `embedded`, `metrics`, `push`, `client`, `drain`, `history`, `route`".into()),
        ("socket = 3".into(), "1:10: invalid type: integer `3`, expected a string".into()),
        ("socket".into(), "1:7: key with no value, expected `=`".into()),
        ("socket = \"/a\"\nsocket = \"/b\"".into(), "2:1: duplicate key, expected valid TOML".into()),
        ("socket = \"run/a\"".into(), format!("1:10: socket: found \"run/a\", {path}")),
        (format!("socket = \"/{}\"", "x".repeat(107)), "1:10: socket: found a path of 108 bytes, expected at most 107, as a Unix socket needs".into()),
        ("# ä\nstate_dir = \"/a/../b\"".into(), format!("2:13: state_dir: found \"/a/../b\", {path}")),
        ("[nix]\nroot = \"/\"".into(), "2:8: nix.root: found \"/\", expected a directory below `/`; the store of `/` is watched without this key".into()),
        (format!("[nix]\nroot = \"/srv/ci\"\n{}", main_with("engine = \"attic\"")), "2:8: nix.root: found \"/srv/ci\", and caches.main has engine = \"attic\", which reads the host's store only, expected engine = \"native\"".into()),
        ("[nix]\nlower_state_dir = \"/nix/var/nix/\"".into(), "2:19: nix.lower_state_dir: found \"/nix/var/nix/\", which is nix.state_dir, expected that of the lower store".into()),
        ("[nix]\nstore_dir = \"\"".into(), format!("2:13: nix.store_dir: found \"\", {path}")),
        ("default_cache = \"mian\"".into(), "1:17: default_cache: found \"mian\", expected the name of a cache: \"main\"".into()),
        ("default_cache = \"maim\"".into(), "1:17: default_cache: found \"maim\", expected the name of a cache: \"main\" (did you mean \"main\"?)".into()),
        ("[caches.a]\nendpoints=[\"https://a\"]\n[caches.b]\nendpoints=[\"https://b\"]".into(), "configuration: default_cache: found none, and no cache is named \"main\", expected the name of a cache: \"a\" or \"b\"".into()),
        ("[caches.\"a b\"]\nendpoints=[\"https://a\"]".into(), format!("1:9: caches: found the name \"a b\", {cache_name}")),
        ("[caches.main]\ncache = \"x\"".into(), "1:9: caches.main: found no `endpoints`, expected a list of URLs, or \"embedded\"".into()),
        (main_with("stall_timeout = \"0\""), "3:17: caches.main.stall_timeout: found 0s, expected more than 0".into()),
        ("[caches.main]\nendpoints = 3".into(), "2:13: invalid type: integer `3`, expected a list of URLs, or \"embedded\"".into()),
        ("[caches.main]\nendpoints = []".into(), "2:13: caches.main.endpoints: found 0 of them, expected 1 to 16".into()),
        ("[caches.main]\nendpoints = [\n  \"https://a\",\n  \"ftp://b\"]".into(), format!("4:3: caches.main.endpoints: found \"ftp://b\" with the scheme \"ftp\", {url}")),
        ("[caches.main]\nendpoints = [\"https://u:s3cret@a\"]".into(), format!("2:14: caches.main.endpoints: found a URL with a user name or password in it, {url}")),
        ("[caches.main]\nendpoints = [\"u:s3cret@a\"]".into(), format!("2:14: caches.main.endpoints: found a URL with a user name or password in it, {url}")),
        ("[caches.main]\nendpoints = [\"https://a?b\"]".into(), format!("2:14: caches.main.endpoints: found a URL with a query or fragment, {url}")),
        ("[caches.main]\nendpoints = [\"https://a\", \"https://a/\"]".into(), "2:27: caches.main.endpoints: found \"https://a\" twice, expected each once".into()),
        ("[caches.main]\nendpoints = [\"embedded\", \"https://a\"]".into(), "2:13: caches.main.endpoints: found \"embedded\" beside others, expected \"embedded\" alone, or URLs".into()),
        ("[caches.main]\nendpoints = \"embedded\"\ntoken_file = \"/t\"".into(), "3:14: caches.main.token_file: found a token for the built-in cache, expected none (it makes its own at the first start)".into()),
        (main_with("token_file = \"/t\"\ntoken_command = [\"/c\"]"), "4:17: caches.main.token_command: found a command beside token_file, expected one of the two".into()),
        (main_with("token_command = []"), "3:17: caches.main.token_command: found 0 words, expected a program and its arguments, like [\"/usr/bin/vault\", \"read\", \"…\"]".into()),
        (main_with("token_command = \"/c\""), "3:17: invalid type: string \"/c\", expected a sequence".into()),
        (main_with("token_command = [\"vault read\"]"), "3:17: caches.main.token_command: found one word with white space, expected a program and its arguments, like [\"/usr/bin/vault\", \"read\", \"…\"] (no shell reads it: write each argument as a string of its own)".into()),
        (main_with("token_command = [\"bin/c\"]"), "3:17: caches.main.token_command: found the relative path \"bin/c\", expected an absolute path, or a name that is found in $PATH".into()),
        (main_with("token_command_timeout = \"10s\""), "3:25: caches.main.token_command_timeout: found a time limit without a command, expected token_command too".into()),
        (main_with("token_command = [\"/c\"]\ntoken_command_timeout = \"6m\""), "4:25: caches.main.token_command_timeout: found 6m, expected more than 0 and at most 5m".into()),
        (main_with("headers_file = \"h\""), format!("3:16: caches.main.headers_file: found \"h\", {path}")),
        (main_with("proxy = \"socks5://me:s3cret@p\""), "3:9: caches.main.proxy: found a proxy that cannot be used: it does not begin with http:// or https:// (SOCKS is not supported), expected \"none\", or a URL like \"http://proxy.example.com:3128\"".into()),
        (main_with("proxy = \"none\"\nproxy_file = \"/p\""), "3:9: caches.main.proxy: found a proxy beside proxy_file, expected one of the two".into()),
        ("[caches.main]\nendpoints = \"embedded\"\nheaders_file = \"/h\"".into(), "3:16: caches.main.headers_file: found a setting for connections of the built-in cache, expected none".into()),
        ("[caches.main]\nendpoints = \"embedded\"\nhttp2 = true".into(), "3:9: caches.main.http2: found a setting for connections of the built-in cache, expected none".into()),
        (main_with("cache = \"-x\""), format!("3:9: caches.main.cache: found \"-x\", {cache_name}")),
        (main_with("token_file = \"t\""), format!("3:14: caches.main.token_file: found \"t\", {path}")),
        (main_with("token_file = \"/t\"\npull_token_file = \"/t\""), "4:19: caches.main.pull_token_file: found the file of the push token, expected a token that may only pull (everyone who may read the netrc file could push with it)".into()),
        ("[caches.main]\nendpoints = \"embedded\"\npull_token_file = \"/t\"".into(), "3:19: caches.main.pull_token_file: found a token for the built-in cache, expected none (it makes its own at the first start)".into()),
        ("[nix]\npoll = \"99ms\"".into(), "2:8: nix.poll: found 99ms, expected at least 100ms".into()),
        ("[nix]\nnetrc = \"netrc\"".into(), format!("2:9: nix.netrc: found \"netrc\", {path}")),
        (main_with("[caches.other]\ncache = \"main\"\nendpoints = [\"https://a/\"]"), "3:9: caches.other: found the same endpoints and name on the server as caches.main, expected each cache once (set `cache` to its name on the server)".into()),
        (main_with("engine = \"attic\"\n[client]\nenable = false"), "5:10: client.enable: found false, and caches.main has engine = \"attic\", expected true, or engine = \"native\"".into()),
        ("[push]\nengine = \"nativ\"".into(), "2:10: push.engine: found \"nativ\", expected \"native\" or \"attic\" (did you mean \"native\"?)".into()),
        ("[push]\njobs = \"many\"".into(), "2:8: push.jobs: found \"many\", expected \"auto\" or a number from 1 to 256".into()),
        ("[push]\njobs = 257".into(), "2:8: push.jobs: found 257, expected \"auto\" or a number from 1 to 256".into()),
        ("[push]\nmax_rate = \"fast\"".into(), "2:12: found \"fast\", expected a size like \"10MiB\", \"2GB\" or \"0\"".into()),
        ("[push]\nmax_rate = -1".into(), "2:12: invalid value: integer `-1`, expected a size like \"10MiB\", \"2GB\" or \"0\"".into()),
        ("[push.filter]\norigins = [\"built\", \"drv\"]".into(), "2:21: push.filter.origins: found \"drv\", expected \"built\" or \"substituted\" or \"source\" or \"derivation\"".into()),
        ("[push.filter]\norigins = []".into(), "2:11: push.filter.origins: found an empty list, expected at least one origin (to push only what is asked for, use a [[route]] with action = \"skip\")".into()),
        ("[push.filter]\nnames = [\"![\"]".into(), "2:10: push.filter.names: found \"[\", expected a glob like \"*-doc\" (invalid range pattern at character 1)".into()),
        ("[push.filter]\nnames = [\"!\"]".into(), "2:10: push.filter.names: found \"\", expected a glob like \"*-doc\" (it is empty)".into()),
        ("[embedded]\nlisten = \"8742\"".into(), "2:10: embedded.listen: found \"8742\", expected an address and port like \"127.0.0.1:8742\"".into()),
        ("[metrics]\nlisten = \"9799\"".into(), "2:10: metrics.listen: found \"9799\", expected an address and port like \"127.0.0.1:9799\"".into()),
        ("[metrics]\nlisten = \"0.0.0.0:9799\"".into(), "2:10: metrics.listen: found \"0.0.0.0:9799\", expected a loopback address, because everyone who reaches another one can read the metrics (if that is intended, set allow_remote = true in [metrics])".into()),
        ("[embedded]\npriority = -1".into(), "2:12: embedded.priority: found -1, expected a number from 0 to 4294967295".into()),
        ("[embedded]\ndir = \"c\"".into(), format!("2:7: embedded.dir: found \"c\", {path}")),
        ("[client]\ninstallable = \"--impure\"".into(), "2:15: client.installable: found \"--impure\", expected an installable like \"github:zhaofengli/attic#attic-client\"".into()),
        ("[client]\ntimeout = \"0\"".into(), "2:11: client.timeout: found 0s, expected more than 0".into()),
        ("[drain]\ntimeout = 90".into(), "2:11: invalid type: integer `90`, expected a duration like \"240s\", \"5m\" or \"1h30m\"".into()),
        ("[drain]\ntimeout = \"soon\"".into(), "2:11: found \"soon\", expected a duration like \"240s\", \"5m\" or \"1h30m\"".into()),
        ("[history]\nkeep = \"5m\"".into(), "2:8: history.keep: found \"5m\", expected at least \"1h\" (jobs ask for sessions that have just ended)".into()),
        ("[[route]]\ncache = \"main\"".into(), "1:1: route: found nothing to match, expected `user`, `group`, `label` or `maker`".into()),
        ("[[route]]\nuser = \"a\"".into(), "1:1: route: found neither `cache` nor `action`, expected one of them".into()),
        ("[[route]]\nuser = \"a\"\ncache = \"main\"\naction = \"skip\"".into(), "1:1: route: found `cache` and `action`, expected one of them".into()),
        ("[[route]]\nmaker = \"me\"\naction = \"skip\"".into(), "2:9: route.maker: found \"me\", expected \"unknown\"".into()),
        ("[[route]]\nmaker = \"unknown\"\nuser = \"a\"\naction = \"skip\"".into(), "1:1: route: found `maker` beside `user`, `group` or `label`, expected `maker` alone".into()),
        ("[[route]]\nmaker = \"unknown\"\nallow = []\naction = \"skip\"".into(), "3:9: route.allow: found caches to name for an unknown maker, expected `allow` beside `user`, `group` or `label`".into()),
        ("[[route]]\nuser = \"a\"\nallow = [\"other\"]\naction = \"skip\"".into(), "3:10: route.allow: found \"other\", expected the name of a cache: \"main\"".into()),
        ("admins = \"\"".into(), "1:10: admins: found \"\", expected a name, or a number in quotes".into()),
        ("[push]\nexisting = \"yes\"".into(), "2:12: push.existing: found \"yes\", expected true, false or \"since-boot\"".into()),
        ("[push]\nexisting = 1".into(), "2:12: invalid type: integer `1`, expected true, false or \"since-boot\"".into()),
        ("[push]\nrecheck_after = \"4s\"".into(), "2:17: push.recheck_after: found 4s, expected at least 5s".into()),
        ("[[route]]\nuser = \"a\"\naction = \"drop\"".into(), "3:10: route.action: found \"drop\", expected \"skip\"".into()),
        ("[[route]]\nuser = \"a\"\ncache = \"other\"".into(), "3:9: route.cache: found \"other\", expected the name of a cache: \"main\"".into()),
        ("[[route]]\nlabel = \"a**\"\naction = \"skip\"".into(), "2:9: route.label: found \"a**\", expected a glob like \"*-doc\" (recursive wildcards must form a single path component at character 1)".into()),
    ];
    let mut wrong = Vec::new();
    for (text, message) in &cases {
        let message = if message.starts_with("configuration") {
            message.clone()
        } else {
            format!("flywheel.toml:{message}")
        };
        match load(text) {
            Err(error) if error == message && !error.contains("s3cret") => {}
            other => {
                wrong.push(format!("{text}\n  wanted {message}\n  found  {:?}", other.map(|s| s.caches)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn files_that_cannot_be_read() {
    let message = load_files(&[], &[]).unwrap_err();
    assert_eq!(message, "flywheel.toml: cannot be read: No such file or directory (os error 2)");
    let large = format!("#{}", "x".repeat(1 << 20));
    assert_eq!(
        load(&large).unwrap_err(),
        "flywheel.toml: larger than a configuration file can be, at most 1 MiB are read"
    );
    let many: Vec<(String, &str)> = (0..=256).map(|i| (format!("flywheel.toml.d/{i}.toml"), "")).collect();
    let mut files: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    files.push(("flywheel.toml", ""));
    assert_eq!(
        load_files(&files, &[]).unwrap_err(),
        "flywheel.toml.d: contains too many files, at most 256 are read"
    );
    // A file that is not text.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flywheel.toml");
    std::fs::write(&file, b"socket = \"/\xff\"").unwrap();
    let error = Settings::load(Some(&file), &|_| None).unwrap_err();
    assert_eq!((error.file(), error.position()), (Some(file.as_path()), None));
}

#[test]
fn an_error_has_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flywheel.toml");
    std::fs::write(&file, "\n[push]\njobs = 0").unwrap();
    let error = Settings::load(Some(&file), &|_| None).unwrap_err();
    assert_eq!((error.file(), error.position()), (Some(file.as_path()), Some((3, 8))));
    let ConfigError::Invalid { place, found, expected, hint } = error else { panic!("{error}") };
    assert_eq!(place, Place::File { file, line: 3, column: 8 });
    assert_eq!((found.as_str(), hint), ("push.jobs: found 0", None));
    assert_eq!(expected, "\"auto\" or a number from 1 to 256");
}

const EXAMPLE: &str = include_str!("../../packaging/flywheel.toml");

/// The documented file changes nothing, and with its keys uncommented it shows
/// the defaults that really are.
#[test]
fn the_example_shows_the_defaults() {
    let plain = absent(&[]).unwrap();
    let as_is = load(EXAMPLE).unwrap();
    assert_eq!(Settings { files: vec![], ..as_is }, plain);

    // A comment is "# text", a key is "#key".
    let other_ways = ["#token_command", "#proxy_file"];
    let uncommented: String = EXAMPLE
        .lines()
        // These exclude `token_file` and `proxy`.
        .filter(|line| !other_ways.iter().any(|key| line.starts_with(key)))
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let s = load(&uncommented).unwrap();
    assert_eq!((s.routes.len(), s.caches.len(), s.push.filter.exclude.len()), (3, 2, 2));
    assert_eq!(s.caches["main"].token, Token::File("/run/secrets/attic".into()));
    let mut push = s.push.clone();
    (push.filter.include, push.filter.exclude) = (vec![], vec![]);
    assert_eq!(s.caches["main"].pull_token, Some("/run/secrets/attic-pull".into()));
    assert_eq!(s.nix.netrc, Some("/run/flywheel/netrc".into()));
    assert_eq!(s.metrics.unwrap().to_string(), "127.0.0.1:9799");
    let embedded = Embedded { caches: vec!["main".into()], ..s.embedded.clone().unwrap() };
    assert_eq!(s.nix.netrc_include, [std::path::PathBuf::from("/etc/nix/netrc")]);
    assert_eq!(s.nix.root, Some("/srv/ci".into()));
    assert_eq!(s.nix.lower_state_dir, Some("/base/nix/var/nix".into()));
    let nix = Nix { lower_state_dir: None, ..s.nix.clone() };
    let nix = Nix { root: None, netrc: None, netrc_group: None, netrc_include: vec![], ..nix };
    let examples_aside = Settings {
        caches: plain.caches.clone(),
        embedded: Some(embedded),
        push,
        nix,
        routes: vec![],
        admins: None,
        metrics: None,
        files: vec![],
        ..s
    };
    assert_eq!(examples_aside, plain);
}

/// Every key of the reader is documented.
#[test]
fn the_example_shows_every_key() {
    let raw = include_str!("raw.rs");
    let keys = raw.split("table! {").skip(1).flat_map(|table| {
        let body = table.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap_or(""));
        body.split([',', '\n']).filter_map(|item| item.split_once(": ")).map(|(key, _)| key.trim().to_owned())
    });
    let keys: Vec<String> = keys.collect();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let shown = EXAMPLE.lines().any(|line| {
            line.strip_prefix('#').is_some_and(|l| {
                l.starts_with(&format!("{key} = ")) || l.starts_with('[') && l.contains(&key)
            })
        });
        assert!(shown, "packaging/flywheel.toml does not show `{key}`");
    }
}

#[test]
fn settings_of_connections() {
    let keys = "token_command = [\"vault\", \"read\"]\nheaders_file = \"/h\"\nproxy = \"http://me:s3cret@p:1\"\nhttp2 = true\n";
    let s = load(&main_with(keys)).unwrap();
    let main = &s.caches["main"];
    let words = vec!["vault".to_owned(), "read".to_owned()];
    assert_eq!(main.token, Token::Command(TokenCommand { words, limit: Duration::from_secs(10) }));
    assert_eq!((main.network.headers_file.as_deref(), main.network.http2), (Some(Path::new("/h")), true));
    assert!(!format!("{s:?}").contains("s3cret"), "{s:?}");
    let file = load(&main_with("proxy_file = \"/p\"")).unwrap();
    assert_eq!(file.caches["main"].network.proxy, Proxy::File("/p".into()));
    assert_eq!(load(&main_with("proxy = \"none\"")).unwrap().caches["main"].network.proxy, Proxy::Direct);
    // The attic client uses none of these.
    let keys = format!("{keys}ca_file = \"/a\"\nclient_cert = \"/c\"\nengine = \"attic\"\n");
    let warnings = load(&main_with(&keys)).unwrap().warnings.join("\n");
    assert!(warnings.contains("does not use ca_file, proxy, headers_file, client_cert, http2"), "{warnings}");
}

#[test]
fn a_password_that_everybody_may_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (file, headers) = (dir.path().join("flywheel.toml"), dir.path().join("headers"));
    std::fs::write(&headers, "a: b").unwrap();
    let keys = format!("proxy = \"http://me:s3cret@p:1\"\nheaders_file = \"{}\"\n", headers.display());
    std::fs::write(&file, main_with(&keys)).unwrap();
    let warnings = |mode: u32| {
        for file in [&file, &headers] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let s = Settings::load(Some(&file), &|name| (name == "ATTIC_TOKEN").then(|| "t".to_owned())).unwrap();
        s.warnings.join("\n")
    };
    let open = warnings(0o644);
    assert!(open.contains("every user of this host may read the password of proxy in"), "{open}");
    assert!(
        open.contains("move the URL to a proxy_file") && open.contains("may read headers_file"),
        "{open}"
    );
    assert!(!warnings(0o640).contains("every user"), "{}", warnings(0o640));
}
