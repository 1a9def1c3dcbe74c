//! The derivations that the benchmarks build, with real Nix.

use crate::nix::PrivateNix;

/// Outputs of one derivation. Nix holds a lock file open for each.
const OUTPUTS: usize = 250;

/// One small path.
pub fn one(name: &str) -> String {
    PrivateNix::shell(name, &format!("echo {name} > $out"))
}

/// A list expression for `count` small paths that become valid in few transactions: derivations
/// with many outputs. Another `tag` makes other paths.
fn many(tag: &str, count: usize) -> String {
    format!(
        r#"builtins.genList (n: derivation {{
            name = "{tag}-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh";
            PATH = "/usr/bin:/bin";
            outputs = builtins.genList (o: if o == 0 then "out" else "o${{toString o}}") {OUTPUTS};
            args = [ "-c" ''for o in $outputs; do eval "echo {tag} $o {filler} > \$$o"; done'' ];
        }}) {}"#,
        count.div_ceil(OUTPUTS),
        filler = "x".repeat(300),
    )
}

/// `count` small paths, each of a derivation of its own.
pub fn each(tag: &str, count: usize) -> String {
    let one = PrivateNix::shell(&format!("{tag}-${{toString n}}"), "echo $name > $out");
    format!("builtins.genList (n: {one}) {count}")
}

/// `count` small paths, each of which needs the one before.
pub fn chain(tag: &str, count: usize) -> String {
    let one = PrivateNix::shell(&format!("{tag}-${{toString n}}"), "echo ${before} > $out");
    format!(
        "builtins.foldl' (all: n: let before = if n == 0 then \"\" else builtins.elemAt all (n - 1); in all ++ [ ({one}) ]) \
         [] (builtins.genList (n: n) {count})"
    )
}

/// One small path that refers to `count` sources, which evaluation adds to the store.
pub fn sources(tag: &str, count: usize) -> String {
    let all = format!(
        "toString (builtins.genList (n: builtins.toFile \"{tag}-${{toString n}}\" \"{tag} ${{toString n}}\") {count})"
    );
    format!(
        "derivation {{ name = \"{tag}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; PATH = \"/usr/bin:/bin\"; \
         needs = {all}; passAsFile = [ \"needs\" ]; args = [ \"-c\" \"cat $needsPath > $out\" ]; }}"
    )
}

/// Builds `count` paths, copies them to a binary cache in `dir`, and removes them from the store
/// again: Nix substitutes them from now on. Returns their names.
pub fn substitutable(nix: &PrivateNix, dir: &std::path::Path, tag: &str, count: usize) -> Vec<String> {
    let url = format!("file://{}", dir.display());
    let mut paths = build_many(nix, tag, count);
    paths.truncate(count);
    let run = |program: &str, args: &[&str]| {
        let out = nix.run(program, args);
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let names: Vec<&str> = paths.iter().map(String::as_str).collect();
    run("nix", &[&["copy", "--to", &format!("{url}?compression=none")], &names[..]].concat());
    run("nix-store", &["--gc", "--quiet"]);
    nix.configure(&format!(
        "max-jobs = 2\nsubstitute = true\nsubstituters = {url}\nrequire-sigs = false\nnarinfo-cache-negative-ttl = 0"
    ));
    paths
}

/// Builds `count` paths; returns their names.
pub fn build_many(nix: &PrivateNix, tag: &str, count: usize) -> Vec<String> {
    let expression = format!("builtins.concatMap (d: map (o: d.${{o}}) d.outputs) ({})", many(tag, count));
    nix.build(&expression)
}

/// Builds a path that refers to `count` others; returns its name.
pub fn build_closure(nix: &PrivateNix, tag: &str, count: usize) -> String {
    let expression = format!(
        r#"derivation {{
            name = "{tag}-root"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
            needs = builtins.concatMap (d: map (o: d.${{o}}) d.outputs) ({});
            passAsFile = [ "needs" ];
            args = [ "-c" "cat $needsPath > $out" ];
        }}"#,
        many(tag, count)
    );
    nix.build(&expression).remove(0)
}

/// A description of what [`build_busy`] builds.
pub const BUSY_IS: &str =
    "20 derivations that compute for some 0.3 s each, as many at once as there are processors";

/// Builds work that keeps the processors busy; returns the names of its outputs.
pub fn build_busy(nix: &PrivateNix, tag: &str) -> Vec<String> {
    let expression = format!(
        r#"builtins.genList (n: derivation {{
            name = "{tag}-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
            args = [ "-c" "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo $i {tag} > $out" ];
        }}) 20"#
    );
    nix.configure("max-jobs = auto");
    nix.build(&expression)
}
