//! Real Nix reads back what was pushed.

use std::path::Path;
use std::process::Command;

use super::{Server, info};
use crate::support::nix::PrivateNix;

/// Builds two paths, one of which refers to the other, and pushes them.
async fn push_from(nix: &PrivateNix, server: &Server) -> (Vec<String>, Vec<Vec<u8>>) {
    let big = "echo hello > $out; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat $out $out > t; mv t $out; done";
    let library = nix.build(&PrivateNix::shell("library", big)).remove(0);
    let expression = PrivateNix::shell(
        "tool",
        &format!("mkdir $out; echo {library} > $out/uses; echo self $out > $out/self; ln -s uses $out/link"),
    );
    // The dependency is a plain string here: Nix needs its context.
    let expression = expression.replace(&library, &format!("${{builtins.storePath \"{library}\"}}"));
    let tool = nix.build(&expression).remove(0);
    let mut nars = Vec::new();
    for path in [&library, &tool] {
        let nar = nix.run("nix-store", &["--dump", path]).stdout;
        let references: Vec<String> =
            String::from_utf8(nix.run("nix-store", &["-q", "--references", path]).stdout)
                .unwrap()
                .lines()
                .map(|l| l.rsplit('/').next().unwrap().to_owned())
                .collect();
        let name = path.rsplit('/').next().unwrap();
        let mut info = info(name, &references, &nar);
        info["store_path"] = path.as_str().into();
        // Nix prints the hash in base 32.
        info["nar_hash"] =
            String::from_utf8(nix.run("nix-store", &["-q", "--hash", path]).stdout).unwrap().trim().into();
        let answer = server.upload(&info, nar.clone()).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        nars.push(nar);
    }
    (vec![library, tool], nars)
}

/// Empties the store; the directory stays the same.
fn wipe(nix: &PrivateNix) {
    let mode = Command::new("chmod").args(["-R", "u+w"]).arg(nix.store_dir()).status().unwrap();
    assert!(mode.success());
    for dir in [nix.store_dir(), nix.path().join("var"), nix.path().join("xdg")] {
        let _ = std::fs::remove_dir_all(&dir);
    }
    std::fs::create_dir_all(nix.store_dir()).unwrap();
    std::fs::create_dir_all(nix.state_dir()).unwrap();
    assert!(nix.run("nix-store", &["--init"]).status.success());
}

fn substitute(
    nix: &PrivateNix,
    server: &Server,
    key: &str,
    path: &str,
    more: &[&str],
) -> std::process::Output {
    let url = server.url("/main");
    let mut args = vec!["--realise", path, "--option", "substituters", &url];
    args.extend(["--option", "trusted-public-keys", key, "--option", "substitute", "true"]);
    args.extend(more);
    nix.run("nix-store", &args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_substitutes_what_was_pushed_and_checks_the_signature() {
    let nix = PrivateNix::new();
    let server = Server::start(|s| {
        s.public = true;
        s.store_dir = nix.store_dir().to_str().unwrap().to_owned();
    })
    .await;
    let (paths, nars) = push_from(&nix, &server).await;
    wipe(&nix);
    let stranger = "main:xypNy/Dr4KQX+Hmg/RCMI1w87ZI2yIebbNd0/YO5IWE=";
    let refused = substitute(&nix, &server, stranger, &paths[1], &[]);
    assert!(!refused.status.success() && !Path::new(&paths[1]).exists());
    let key = server.running.public_keys[0].1.clone();
    let done = substitute(&nix, &server, &key, &paths[1], &[]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for (path, nar) in paths.iter().zip(&nars) {
        assert!(nix.run("nix-store", &["--dump", path]).stdout == *nar, "{path} came back as it was");
    }
    let verified = nix.run("nix", &["store", "verify", "--all", "--option", "trusted-public-keys", &key]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_reads_a_private_cache_with_a_netrc() {
    let nix = PrivateNix::new();
    let server = Server::start(|s| s.store_dir = nix.store_dir().to_str().unwrap().to_owned()).await;
    let (paths, _) = push_from(&nix, &server).await;
    wipe(&nix);
    let key = server.running.public_keys[0].1.clone();
    assert!(!substitute(&nix, &server, &key, &paths[1], &[]).status.success(), "without a token");
    let netrc = nix.path().join("netrc");
    let token = server.token("pull-only").unwrap();
    std::fs::write(&netrc, format!("machine 127.0.0.1 login ci password {token}\n")).unwrap();
    wipe(&nix); // Nix remembers what a cache did not have
    let done =
        substitute(&nix, &server, &key, &paths[1], &["--option", "netrc-file", netrc.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    server.stop().await;
}
