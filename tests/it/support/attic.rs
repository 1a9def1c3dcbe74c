//! An attic client as the daemon meets one: a flake whose package is a small program that behaves
//! like it (`tests/fake_attic`), built by a real Nix.

use std::path::PathBuf;
use std::process::Output;

use super::cache::CacheView;
use super::daemon::Daemon;
pub use super::daemon::until_some as until;
use super::nix::PrivateNix;

/// A flake that provides the client as `attic-client`.
pub struct FakeAttic {
    dir: PathBuf,
}

impl FakeAttic {
    /// Writes the flake into the private store's directory; nothing is built yet.
    pub fn new(nix: &PrivateNix) -> Self {
        let dir = nix.path().join("attic");
        std::fs::create_dir_all(&dir).unwrap();
        let fake = Self { dir };
        fake.release("1");
        fake
    }

    /// The program itself, which cargo builds with the tests.
    fn program() -> PathBuf {
        let bin = PathBuf::from(env!("CARGO_BIN_EXE_flywheelctl"));
        let program = bin.with_file_name("examples").join("fake-attic");
        assert!(program.is_file(), "{} is missing: `cargo build --examples`", program.display());
        program
    }

    /// Changes the flake to the next version.
    pub fn release(&self, version: &str) {
        let run = format!(
            "FAKE_DIR={} FAKE_VERSION={version} exec {} \"$@\"",
            self.dir.display(),
            Self::program().display()
        );
        self.release_script(version, &run);
    }

    /// Changes the flake to a version that is this shell script.
    pub fn release_script(&self, version: &str, script: &str) {
        let system = format!("{}-linux", std::env::consts::ARCH);
        let text = format!(
            r#"{{ outputs = _: {{ packages.{system}.attic-client = derivation {{
  name = "attic-client-{version}"; system = "{system}"; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
  script = ''
#!/bin/sh
{script}
'';
  args = [ "-c" "mkdir -p $out/bin; printf '%s' \"$script\" > $out/bin/attic; chmod 755 $out/bin/attic" ];
}}; }}; }}"#
        );
        let flake = self.dir.join("flake");
        std::fs::create_dir_all(&flake).unwrap();
        std::fs::write(flake.join("flake.nix"), text).unwrap();
    }

    pub fn reference(&self) -> String {
        format!("path:{}/flake#attic-client", self.dir.display())
    }

    /// The `[client]` table of a daemon's configuration for this flake.
    pub fn config(&self) -> String {
        format!("[client]\ninstallable = \"{}\"\n", self.reference())
    }

    /// The command of a job that builds or substitutes the client.
    pub fn build(&self, nix: &PrivateNix) -> Output {
        nix.run("nix", &["build", "--no-link", &self.reference()])
    }

    /// Runs that command, which must succeed; returns the client's store path.
    pub fn built(&self, nix: &PrivateNix) -> String {
        let out = self.build(nix);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let path = nix.run("nix", &["eval", "--raw", &format!("{}.outPath", self.reference())]);
        String::from_utf8(path.stdout).unwrap().trim().to_owned()
    }

    /// Sets what the program does from the next run on.
    pub fn mode(&self, mode: &str) {
        let new = self.dir.join("mode~");
        std::fs::write(&new, mode).unwrap();
        std::fs::rename(new, self.dir.join("mode")).unwrap();
    }

    /// The runs so far.
    pub fn runs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Makes Nix substitute from this cache and from no other.
pub fn substitute_from(nix: &PrivateNix, cache: &CacheView) {
    nix.configure(&format!(
        "substitute = true\nsubstituters = {}\ntrusted-public-keys = {}\nnarinfo-cache-negative-ttl = 0",
        cache.url(),
        cache.key
    ));
}

/// The environment that makes the daemon use this private Nix.
pub fn environment(nix: &PrivateNix) -> Vec<(String, String)> {
    let own = nix.env().into_iter().filter(|(name, _)| *name != "NIX_STORE_DIR" && *name != "NIX_STATE_DIR");
    own.map(|(name, value)| (name.to_owned(), value.to_str().unwrap().to_owned())).collect()
}

/// Waits until the daemon's client is in this state; returns its whole status.
pub fn until_client(daemon: &Daemon, state: &str) -> serde_json::Value {
    until(&format!("client {state}"), || {
        Some(daemon.status()["client"].clone()).filter(|c| c["state"] == state)
    })
}
