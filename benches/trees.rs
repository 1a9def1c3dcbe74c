//! What is built, by real Nix.

use crate::nix::PrivateNix;

/// Outputs of one derivation: Nix holds a lock file open for each.
const OUTPUTS: usize = 250;

/// One small path of its own.
pub fn one(name: &str) -> String {
    PrivateNix::shell(name, &format!("echo {name} > $out"))
}

/// `count` small paths, valid in few transactions: derivations with many
/// outputs. As a list expression; `tag` makes them others than before.
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

/// Builds `count` paths; their names.
pub fn build_many(nix: &PrivateNix, tag: &str, count: usize) -> Vec<String> {
    let expression = format!("builtins.concatMap (d: map (o: d.${{o}}) d.outputs) ({})", many(tag, count));
    nix.build(&expression)
}

/// Builds a path that refers to `count` others; its name.
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

/// What [`build_busy`] builds, in words.
pub const BUSY_IS: &str =
    "20 derivations that compute for some 0.3 s each, as many at once as there are processors";

/// Builds what keeps the processors busy; the names of its outputs.
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
