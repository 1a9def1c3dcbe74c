# All that tests/run.sh uses, so that it installs nothing itself.
{
  mkShell,
  cargo,
  cargo-deny,
  cargo-nextest,
  clippy,
  dbus,
  git,
  mdbook,
  nginx,
  nix,
  nodejs,
  perl,
  rpm,
  rsync,
  rustc,
  rustfmt,
  shellcheck,
  sqlite,
  util-linux,
}:

mkShell {
  packages = [
    cargo
    cargo-deny
    cargo-nextest
    clippy
    dbus
    git
    mdbook
    nginx
    nix
    nodejs
    perl
    rpm
    rsync
    rustc
    rustfmt
    shellcheck
    sqlite
    util-linux
  ];
}
