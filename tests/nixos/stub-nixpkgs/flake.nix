# Stands in for nixpkgs where it cannot be had: only names, so that the flake's
# outputs can be evaluated to the end. Nothing of it can be built. A package that
# is used and not listed here is an error, as a misspelt one would be.
{
  description = "what flywheel's flake uses of nixpkgs, as empty shells";

  outputs =
    { self }:
    let
      genAttrs =
        names: make:
        builtins.listToAttrs (
          map (name: {
            inherit name;
            value = make name;
          }) names
        );
      union = builtins.concatLists;
      lib = {
        inherit genAttrs;
        mkDefault = value: value;
        importTOML = file: builtins.fromTOML (builtins.readFile file);
        optionalString = yes: text: if yes then text else "";
        filterAttrs =
          keep: set:
          builtins.removeAttrs set (builtins.filter (name: !keep name set.${name}) (builtins.attrNames set));
        filter = builtins.filter;
        mapAttrs = builtins.mapAttrs;
        concatMapStrings = f: list: builtins.concatStringsSep "" (map f list);
        assertMsg = yes: text: if yes then true else throw text;
        trivial.release = "00.00";
        licenses = {
          asl20 = { };
          mit = { };
        };
        platforms.linux = [ "x86_64-linux" ];
        # Names a set of files by what it holds; each must be there.
        fileset = {
          unions =
            files:
            assert builtins.all (
              file: if builtins.pathExists file then true else throw "${toString file} is not there"
            ) files;
            files;
          fileFilter = _: dir: [ dir ];
          toSource = { root, fileset }: builtins.seq fileset root;
        };
      };

      packages =
        system:
        let
          thing =
            name: more:
            derivation {
              inherit name system;
              builder = "/bin/sh";
            }
            // more;
          # Everything that a build would have at hand.
          named = attrs: map (package: package.name) (attrs.nativeBuildInputs ++ attrs.nativeCheckInputs);
          pkgs =
            genAttrs [
              "attic-client"
              "cacert"
              "cargo"
              "cargo-deny"
              "cargo-nextest"
              "clippy"
              "dbus"
              "coreutils"
              "git"
              "gnugrep"
              "gnused"
              "installShellFiles"
              "mdbook"
              "nginx"
              "nix"
              "nixfmt"
              "nixfmt-tree"
              "nodejs"
              "perl"
              "rpm"
              "rsync"
              "rustc"
              "rustfmt"
              "shellcheck"
              "sqlite"
              "util-linux"
            ] (name: thing name { })
            // {
              inherit lib;
              stdenv = {
                hostPlatform = { inherit system; };
                buildPlatform.canExecute = _: true;
              };
              stdenvNoCC.mkDerivation =
                attrs:
                builtins.deepSeq [ attrs.src attrs.buildPhase attrs.installPhase ] (
                  thing "${attrs.pname}-${attrs.version}" { }
                );
              rustPlatform.buildRustPackage =
                attrs:
                builtins.deepSeq [ attrs.src attrs.postInstall (named attrs) ] (
                  thing "flywheel-${attrs.version}" {
                    inherit (attrs) postInstall meta version;
                    overrideAttrs =
                      change:
                      let
                        changed = attrs // change attrs;
                      in
                      builtins.deepSeq [ changed.checkPhase (named changed) ] (thing changed.pname { });
                  }
                );
              dockerTools.buildLayeredImage =
                attrs: builtins.deepSeq [ attrs.tag attrs.extraCommands attrs.config ] (thing attrs.name { });
              pkgsStatic = pkgs;
              mkShell = attrs: builtins.deepSeq (map (p: p.name) attrs.packages) (thing "shell" { });
              writeShellApplication = attrs: builtins.deepSeq attrs.text (thing attrs.name { });
              writeShellScriptBin = name: text: builtins.deepSeq text (thing name { });
              writeText = name: text: builtins.deepSeq text (thing name { });
              runCommand =
                name: env: script:
                builtins.deepSeq script (thing name { });
              linkFarm = name: entries: builtins.deepSeq (builtins.attrNames entries) (thing name { });
              callPackage =
                file: given:
                let
                  make = import file;
                in
                make (genAttrs (builtins.attrNames (builtins.functionArgs make)) (name: (pkgs // given).${name}));
              nixos = _: {
                config = {
                  assertions = [ ];
                  environment.etc."flywheel/flywheel.toml".source = thing "flywheel.toml" { };
                };
              };
              # The test's script, with all that it names.
              testers.runNixOSTest =
                test:
                let
                  made = import (builtins.head test.imports) (test._module.args // { inherit lib pkgs; });
                in
                builtins.deepSeq made.testScript (thing made.name { script = made.testScript; });
            };
        in
        pkgs;
    in
    {
      inherit lib;
      legacyPackages = genAttrs [ "x86_64-linux" "aarch64-linux" ] packages;
    };
}
