# What `nix flake check` builds.
{
  pkgs,
  flywheel,
  module,
}:

let
  inherit (pkgs) lib;
  # The package's sources and vendored crates with another command to run.
  cargo =
    name: tools: command:
    flywheel.overrideAttrs (old: {
      pname = "flywheel-${name}";
      # The tests also read the documents.
      src = everything;
      nativeBuildInputs = old.nativeBuildInputs ++ tools;
      dontBuild = true;
      doCheck = true;
      checkPhase = ''
        runHook preCheck
        ${command}
        runHook postCheck
      '';
      installPhase = "touch $out";
      postInstall = "";
      dontFixup = true;
    });
  everything = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (_: true) ../..;
  };
  nixFiles = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../..;
  };
  cases = import ../../tests/nixos/cases.nix { };
  good = lib.filterAttrs (_: case: case.fails or [ ] == [ ]) cases;
  configuration =
    case:
    (pkgs.nixos [
      module
      case.module
      {
        # Enough for a system that is evaluated and never started.
        boot.loader.grub.enable = false;
        fileSystems."/".device = "/dev/null";
        system.stateVersion = lib.trivial.release;
      }
    ]).config;
in
{
  package = flywheel;

  book = pkgs.callPackage ./book.nix { };

  # Those of tests/it that need no builds of Nix and no host.
  tests = cargo "tests" [ pkgs.cargo-nextest ] ''
    cargo nextest run --offline -E '
      test(/^(control|embedded|house|observe|ci::log)::/) - test(a_full_disk)'
  '';

  clippy = cargo "clippy" [ pkgs.clippy ] "cargo clippy --offline --all-targets -- -D warnings";

  format = pkgs.runCommand "flywheel-format" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${nixFiles} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';
  format-rust = cargo "format-rust" [ pkgs.rustfmt ] "cargo fmt --check";

  # The table of tests/nixos with the modules of NixOS itself. Building a
  # configuration has flywheeld check it.
  module = pkgs.linkFarm "flywheel-module" (
    lib.mapAttrs (
      name: case:
      let
        built = configuration case;
        failed = lib.filter (a: !a.assertion) built.assertions;
      in
      assert lib.assertMsg (failed == [ ]) "${name}: ${lib.concatMapStrings (a: a.message) failed}";
      built.environment.etc."flywheel/flywheel.toml".source
    ) good
  );

  vm = pkgs.testers.runNixOSTest {
    imports = [ ../../tests/nixos/vm.nix ];
    _module.args = { inherit module; };
  };
}
