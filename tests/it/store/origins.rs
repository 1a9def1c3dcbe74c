//! The origin of paths, for each way in which a path can come into the store.

use std::fs;
use std::path::Path;
use std::process::Output;

use flywheel::store::{NixDb, Origin};
use flywheel::types::StoreDir;

use crate::support::nix::PrivateNix;

fn succeeds(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Returns all rows as "name origin", sorted.
fn origins(nix: &PrivateNix) -> Vec<(String, Origin)> {
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let rows = NixDb::open(&nix.state_dir(), &dir).unwrap().rows(0, 1000).unwrap();
    let mut found: Vec<_> = rows.iter().map(|row| (row.path.name().to_owned(), row.origin())).collect();
    found.sort();
    found
}

fn expect(nix: &PrivateNix, expected: &[(&str, Origin)]) {
    let expected: Vec<_> = expected.iter().map(|(name, origin)| ((*name).to_owned(), *origin)).collect();
    assert_eq!(origins(nix), expected);
}

const CA: &str = "derivation { name = \"floating\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
                  args = [ \"-c\" \"echo hi > $out\" ]; __contentAddressed = true; \
                  outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }";

/// Makes one path of each kind: a tree, a text, a text that refers to another, a flat
/// file, a build with a reference to the tree, a content-addressed build, and a fixed
/// output.
fn everything(nix: &PrivateNix) -> Vec<String> {
    let tree = nix.work_dir().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("password"), "secret").unwrap();
    fs::write(nix.work_dir().join("flat"), "secret").unwrap();
    succeeds(&nix.run("nix-store", &["--add-fixed", "sha256", "flat"]));
    let built = nix.build(
        "derivation { name = \"built\"; system = builtins.currentSystem; builder = \"/bin/sh\"; src = ./tree; \
         text = builtins.toFile \"text\" \"refers to ${builtins.toFile \"plain\" \"secret\"}\"; \
         args = [ \"-c\" \"echo $src $text > $out\" ]; }",
    );
    let floating = nix.build(CA);
    let fixed = nix.build(
        "derivation { name = \"fixed\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo hi > $out\" ]; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = \"98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4\"; }",
    );
    [built, floating, fixed].concat()
}

/// Leaves out the `.drv` files.
const COPIED: [(&str, Origin); 7] = [
    ("built", Origin::Substituted),
    ("fixed", Origin::Substituted),
    ("flat", Origin::Source),
    ("floating", Origin::Substituted),
    ("plain", Origin::Source),
    ("text", Origin::Source),
    ("tree", Origin::Source),
];

fn flat(nix: &PrivateNix) -> String {
    succeeds(&nix.run(
        "nix-store",
        &[
            "--print-fixed-path",
            "sha256",
            &succeeds(&nix.run("nix-hash", &["--flat", "--type", "sha256", "flat"])),
            "flat",
        ],
    ))
}

#[test]
fn made_on_this_host() {
    let nix = PrivateNix::new();
    everything(&nix);
    expect(
        &nix,
        &[
            ("built", Origin::Built),
            ("built.drv", Origin::Derivation),
            ("fixed", Origin::Built),
            ("fixed.drv", Origin::Derivation),
            ("flat", Origin::Source),
            ("floating", Origin::Built),
            ("floating.drv", Origin::Derivation),
            ("plain", Origin::Source),
            ("text", Origin::Source),
            ("tree", Origin::Source),
        ],
    );
}

/// Nix registers imported paths without content address and signature.
#[test]
fn exported_and_imported() {
    let nix = PrivateNix::new();
    let mut paths = everything(&nix);
    paths.push(flat(&nix));
    let closure = succeeds(&nix.run(
        "nix-store",
        &[&["-qR".to_owned()], &paths[..]].concat().iter().map(String::as_str).collect::<Vec<_>>(),
    ));
    let mut arguments = vec!["--export"];
    arguments.extend(closure.lines());
    let export = nix.run("nix-store", &arguments);
    assert!(export.status.success());
    succeeds(&nix.run("nix-store", &["--gc"]));
    expect(&nix, &[]);
    let file = nix.work_dir().join("export");
    fs::write(&file, &export.stdout).unwrap();
    let import = nix.command("nix-store").arg("--import").stdin(fs::File::open(&file).unwrap()).output();
    succeeds(&import.unwrap());
    expect(&nix, &COPIED);
}

/// The paths are signed, copied to a binary cache, and copied back.
#[test]
fn copied_and_substituted_with_signatures() {
    let nix = PrivateNix::new();
    let mut paths = everything(&nix);
    paths.push(flat(&nix));
    succeeds(&nix.run("nix-store", &["--generate-binary-cache-key", "test-1", "sk", "pk"]));
    let cache = format!("file://{}/cache?secret-key={}/sk", nix.path().display(), nix.work_dir().display());
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    succeeds(&nix.run("nix", &[&["copy", "--to", &cache], &names[..]].concat()));
    succeeds(&nix.run("nix-store", &["--gc"]));
    let from = format!("file://{}/cache", nix.path().display());
    succeeds(&nix.run("nix", &[&["copy", "--no-check-sigs", "--from", &from], &names[..]].concat()));
    expect(&nix, &COPIED);
    // The result is the same when Nix substitutes them.
    succeeds(&nix.run("nix-store", &["--gc"]));
    let key = fs::read_to_string(nix.work_dir().join("pk")).unwrap();
    nix.configure(&format!("substitute = true\nsubstituters = {from}\ntrusted-public-keys = {}", key.trim()));
    for path in &names {
        succeeds(&nix.run("nix-store", &["-r", path]));
    }
    expect(&nix, &COPIED);
}

/// A dump of the Nix database has neither content addresses nor signatures.
#[test]
fn dumped_and_loaded() {
    let nix = PrivateNix::new();
    everything(&nix);
    let dump = nix.run("nix-store", &["--dump-db"]);
    assert!(dump.status.success());
    fs::remove_dir_all(nix.state_dir().join("db")).unwrap();
    let file = nix.work_dir().join("dump");
    fs::write(&file, &dump.stdout).unwrap();
    let load = nix.command("nix-store").arg("--load-db").stdin(fs::File::open(&file).unwrap()).output();
    succeeds(&load.unwrap());
    let mut expected = COPIED.to_vec();
    let derivations = ["built.drv", "fixed.drv", "floating.drv"];
    expected.extend(derivations.map(|name| (name, Origin::Derivation)));
    expected.sort();
    expect(&nix, &expected);
}

#[test]
fn fetched_added_and_profiles() {
    let nix = PrivateNix::new();
    let work = nix.work_dir();
    fs::write(work.join("file"), "secret").unwrap();
    fs::create_dir(work.join("dir")).unwrap();
    fs::write(work.join("dir/flake.nix"), "{ outputs = _: { }; }").unwrap();
    let url = |path: &Path| format!("file://{}", path.display());
    let eval = |expression: &str| {
        succeeds(&nix.run("nix-instantiate", &["--eval", "--strict", "--read-write-mode", "-E", expression]))
    };
    eval(&format!("builtins.fetchurl \"{}\"", url(&work.join("file"))));
    succeeds(&nix.run("nix", &["store", "add-file", "--name", "added-file", "file"]));
    succeeds(&nix.run("nix", &["store", "add-path", "--name", "added-path", "dir"]));
    succeeds(&nix.run("nix", &["flake", "metadata", &format!("path:{}", work.join("dir").display())]));
    eval(&format!("\"${{builtins.path {{ name = \"path\"; path = {}; }}}}\"", work.join("dir").display()));
    let sources = origins(&nix);
    assert_eq!(sources.len(), 5, "{sources:?}");
    assert!(sources.iter().all(|(_, origin)| *origin == Origin::Source), "{sources:?}");
    let profile = nix.path().join("profile");
    let package = nix.build(&PrivateNix::shell("package", "mkdir $out")).remove(0);
    succeeds(&nix.run("nix-env", &["-p", profile.to_str().unwrap(), "-i", &package]));
    let of =
        |name: &str| origins(&nix).into_iter().find(|(found, _)| found == name).map(|(_, origin)| origin);
    assert_eq!(of("package"), Some(Origin::Built));
    assert_eq!(of("user-environment"), Some(Origin::Built));
    assert_eq!(of("env-manifest.nix"), Some(Origin::Source));
}

/// These paths are rewritten from a build and have content addresses. One that refers to
/// another store path cannot have been added from files.
#[test]
fn made_content_addressed() {
    let nix = PrivateNix::new();
    let built = nix.build(
        "let leaf = derivation { name = \"leaf\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo leaf > $out\" ]; }; in derivation { name = \"top\"; system = builtins.currentSystem; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"echo ${leaf} > $out\" ]; }",
    );
    let top = nix.run("nix", &["store", "make-content-addressed", "--json", &built[0]]);
    let said = succeeds(&top);
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let db = NixDb::open(&nix.state_dir(), &dir).unwrap();
    let rows = db.rows(0, 100).unwrap();
    let made: Vec<_> = rows
        .iter()
        .filter(|row| row.ca.is_some() && row.deriver.is_none() && !row.path.is_derivation())
        .collect();
    assert_eq!(made.len(), 2, "{said}");
    let origin = |name: &str| made.iter().find(|row| row.path.name() == name).unwrap().origin();
    assert_eq!(origin("top"), Origin::Substituted);
    // This one cannot be distinguished from an added file, so it is not pushed by itself.
    assert_eq!(origin("leaf"), Origin::Source);
}

/// A build decides the names of its outputs. One that ends in `.drv` is no derivation.
#[test]
fn outputs_whose_names_end_in_drv() {
    let nix = PrivateNix::new();
    // Nix reads it as a derivation.
    let text = r#"Derive([("out","","r:sha256","")],[],[],"s","b",[],[("out","")])"#;
    for (name, more) in [
        ("plain", ""),
        (
            "floating",
            "__contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\";",
        ),
    ] {
        nix.build(&format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/usr/bin/perl\"; \
             outputs = [ \"out\" \"x.drv\" ]; {more} \
             args = [ \"-e\" ''for (qw(out x.drv)) {{ open F, '>', $ENV{{$_}}; print F q({text}); }}'' ]; }}"
        ));
    }
    expect(
        &nix,
        &[
            ("floating", Origin::Built),
            ("floating-x.drv", Origin::Built),
            ("floating.drv", Origin::Derivation),
            ("plain", Origin::Built),
            ("plain-x.drv", Origin::Built),
            ("plain.drv", Origin::Derivation),
        ],
    );
}

/// Nix accepts other hashes than SHA-256 for files. An import has no content address, so that
/// nothing shows what a name was made of.
#[test]
fn files_that_were_added_by_other_hashes_and_imported() {
    let nix = PrivateNix::new();
    fs::write(nix.work_dir().join("flat"), "secret").unwrap();
    fs::create_dir(nix.work_dir().join("tree")).unwrap();
    fs::write(nix.work_dir().join("tree/password"), "secret").unwrap();
    let mut paths = Vec::new();
    for algorithm in ["md5", "sha1", "sha256", "sha512"] {
        for (what, mode) in [("flat", &[][..]), ("tree", &["--recursive"])] {
            let name = format!("{what}-{algorithm}");
            fs::rename(nix.work_dir().join(what), nix.work_dir().join(&name)).unwrap();
            let add = [&["--add-fixed"], mode, &[algorithm, &name]].concat();
            paths.push(succeeds(&nix.run("nix-store", &add)));
            fs::rename(nix.work_dir().join(&name), nix.work_dir().join(what)).unwrap();
        }
    }
    let added: Vec<_> = origins(&nix);
    assert_eq!(added.len(), 8);
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    let export = nix.run("nix-store", &[&["--export"], &names[..]].concat());
    succeeds(&nix.run("nix-store", &["--gc"]));
    let file = nix.work_dir().join("export");
    fs::write(&file, &export.stdout).unwrap();
    let import = nix.command("nix-store").arg("--import").stdin(fs::File::open(&file).unwrap()).output();
    succeeds(&import.unwrap());
    assert_eq!(origins(&nix), added);
    assert!(added.iter().all(|(_, origin)| *origin == Origin::Source), "{added:?}");
}
