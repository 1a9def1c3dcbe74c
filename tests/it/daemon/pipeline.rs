//! Three pipelines: outputs stream into the cache while Nix builds, survive a failed build and the
//! loss of the store, and are substituted and verified.

use crate::support::daemon::Daemon;

const OUTPUTS: usize = 12;
const FAILING: usize = 9;

/// An expression for a chain of outputs, each of which needs the one before. The builder number
/// `fails` fails.
fn tree(fails: usize) -> String {
    format!(
        r#"let
  output = n: needs: derivation {{
    name = "output-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
    inherit needs;
    args = [ "-c" (if n == {fails} then "exit 1" else "echo ${{toString n}} $needs > $out; head -c 20000 /dev/urandom >> $out") ];
  }};
in builtins.foldl'
  (made: n: made ++ [ (output n (if made == [ ] then [ ] else [ (builtins.elemAt made (n - 2)) ])) ])
  [ ] (builtins.genList (n: n + 1) {OUTPUTS})"#
    )
}

fn outputs(daemon: &Daemon) -> Vec<String> {
    let drvs = daemon.nix.run("nix-instantiate", &["-E", &tree(0)]);
    let drvs = String::from_utf8(drvs.stdout).unwrap();
    drvs.lines()
        .map(|drv| {
            let out = daemon.nix.run("nix-store", &["-q", "--outputs", drv.split('!').next().unwrap()]);
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        })
        .collect()
}

fn count(log: &[u8], start: &str) -> usize {
    String::from_utf8_lossy(log).lines().filter(|l| l.starts_with(start)).count()
}

#[test]
fn a_failed_pipeline_a_lost_store_and_a_second_one() {
    let daemon = Daemon::embedded();
    let paths = outputs(&daemon);
    assert_eq!(paths.len(), OUTPUTS);
    let good = FAILING - 1;

    let first = daemon.session(&["--label", "pipeline 1"]);
    let build = daemon.nix.run("nix-build", &["--no-out-link", "--keep-going", "-E", &tree(FAILING)]);
    assert!(!build.status.success());
    let summary = daemon.end(&first, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    assert_eq!(summary["pushed"], good, "{summary}");
    assert_eq!(summary["label"], "pipeline 1");
    let cache = daemon.main();
    let expected: Vec<bool> = (0..OUTPUTS).map(|n| n < good).collect();
    assert_eq!(cache.having(&paths), expected);
    assert_eq!(cache.all().len(), good, "and nothing else: {:?}", cache.names());
    cache.assert_closed();

    daemon.nix.wipe();
    let second = daemon.session(&["--label", "pipeline 2"]);
    let url = cache.url();
    let options = ["--option", "substitute", "true", "--option", "substituters", &url, "--option"];
    let keyed =
        [&options[..], &["trusted-public-keys", &cache.key, "--option", "narinfo-cache-negative-ttl", "0"]];
    let tree = tree(0);
    let build = daemon.nix.run("nix-build", &[&["-E", &tree][..], &keyed.concat()].concat());
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    assert_eq!(count(&build.stderr, "copying path "), good);
    assert_eq!(count(&build.stderr, "building "), OUTPUTS - good);
    let summary = daemon.end(&second, &["--push", "result*"]);
    assert_eq!(summary["pushed"], OUTPUTS - good, "{summary}");
    assert_eq!(summary["already_cached"], good, "{summary}");
    assert_eq!(summary["outcome"], "complete");
    assert_eq!(cache.having(&paths), [true; OUTPUTS]);

    daemon.nix.wipe();
    let build = daemon.nix.run("nix-build", &[&["-E", &tree][..], &keyed.concat()].concat());
    assert_eq!((count(&build.stderr, "building "), build.status.success()), (0, true));
    cache.assert_nix_takes(&daemon.nix, &paths);
}
