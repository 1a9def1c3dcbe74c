# flywheel as a package, shared by the flake, its overlay and the NixOS module.
# Nothing of the project's own tree is written twice: units, hooks and examples
# are installed from where they stand.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  nix,
  util-linux,
}:

let
  manifest = lib.importTOML ../../Cargo.toml;
  # A new README causes no new build.
  sources = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../Cargo.toml
      ../../Cargo.lock
      ../../clippy.toml
      ../../rustfmt.toml
      ../../LICENSE-APACHE
      ../../LICENSE-MIT
      ../../benches
      ../../docs/errors.md
      ../../packaging
      ../../src
      ../../systemd
      ../../tests
    ];
  };
in
rustPlatform.buildRustPackage {
  pname = manifest.package.name;
  inherit (manifest.package) version;
  src = sources;
  cargoLock.lockFile = ../../Cargo.lock;

  nativeBuildInputs = [ installShellFiles ];

  # The tests beside the code. Those of tests/it start Nix and want a host of
  # their own: `nix flake check` runs the ones that fit into a build.
  cargoTestFlags = [ "--lib" ];
  # They ask nix-hash for the right answer, and flock for a lock.
  nativeCheckInputs = [
    nix
    util-linux
  ];

  postInstall = ''
    for unit in systemd/*.service systemd/*.socket systemd/*.timer; do
      [ -e "$unit" ] || continue
      install -Dm0644 "$unit" -t $out/lib/systemd/system
    done
    for unit in flywheeld flywheel-verify; do
      substituteInPlace $out/lib/systemd/system/$unit.service \
        --replace-fail /usr/bin/ $out/bin/
    done
    install -Dm0644 systemd/flywheel.sysusers.conf $out/lib/sysusers.d/flywheel.conf
    install -Dm0644 systemd/flywheel.tmpfiles.conf $out/lib/tmpfiles.d/flywheel.conf
    if [ -e systemd/flywheel.catalog ]; then
      install -Dm0644 systemd/flywheel.catalog -t $out/lib/systemd/catalog
    fi

    # Nix runs its post-build hook without arguments: the name says what is meant.
    mkdir -p $out/lib/flywheel
    ln -s ../../bin/flywheelctl $out/lib/flywheel/flywheel-hook

    mkdir -p $out/share/flywheel
    cp -r packaging/ci $out/share/flywheel/ci
    install -Dm0755 packaging/quickstart.sh -t $out/share/flywheel
    install -Dm0644 packaging/flywheel.toml -t $out/share/doc/flywheel
    install -Dm0644 LICENSE-APACHE LICENSE-MIT -t $out/share/licenses/flywheel
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for shell in bash fish zsh; do
      $out/bin/flywheelctl completions $shell > flywheelctl.$shell
    done
    mkdir man
    $out/bin/flywheelctl man man
    $out/bin/flywheeld --man > man/flywheeld.8
    sh packaging/debian/toml-man.sh packaging/flywheel.toml > man/flywheel.toml.5
    sh packaging/errors-man.sh docs/errors.md > man/flywheel-errors.7
    installManPage man/*
    installShellCompletion flywheelctl.bash flywheelctl.fish flywheelctl.zsh
  '';

  meta = {
    inherit (manifest.package) description;
    license = with lib.licenses; [
      asl20
      mit
    ];
    mainProgram = "flywheelctl";
    platforms = lib.platforms.linux;
  };
}
