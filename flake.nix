{
  description = "flywheel: streams every path Nix builds to an Attic binary cache, and reports to CI jobs what became of their paths";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      # Of each system: what it has, made by `what` from its packages.
      each =
        what:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: what system nixpkgs.legacyPackages.${system}
        );
      flywheel = system: self.packages.${system}.flywheel;
    in
    {
      packages = each (
        system: pkgs: {
          default = flywheel system;
          book = pkgs.callPackage ./packaging/nix/book.nix { };
          container = pkgs.callPackage ./packaging/nix/container.nix {
            flywheel = self.packages.${system}.static;
          };
          flywheel = pkgs.callPackage ./packaging/nix/package.nix { };
          # Programs that need no libraries, for other distributions and for the container.
          static = pkgs.pkgsStatic.callPackage ./packaging/nix/package.nix { };
        }
      );

      overlays.default = final: _: {
        flywheel = final.callPackage ./packaging/nix/package.nix { };
      };

      nixosModules.default =
        { pkgs, ... }:
        {
          imports = [ ./nixos-module.nix ];
          # Built with the nixpkgs of flake.lock, whose rustc is new enough.
          services.flywheel.package = lib.mkDefault (flywheel pkgs.stdenv.hostPlatform.system);
        };

      # `nix run .`: the quick start, with what it needs.
      apps = each (
        system: pkgs: {
          default = {
            type = "app";
            program = "${
              pkgs.callPackage ./packaging/nix/quickstart.nix { flywheel = flywheel system; }
            }/bin/flywheel-quickstart";
            meta.description = "Real Nix builds stream into the built-in cache and come back out of it";
          };
        }
      );

      devShells = each (_: pkgs: { default = pkgs.callPackage ./packaging/nix/shell.nix { }; });

      checks = each (
        system: pkgs:
        import ./packaging/nix/checks.nix {
          inherit pkgs;
          flywheel = flywheel system;
          module = self.nixosModules.default;
        }
      );

      formatter = each (_: pkgs: pkgs.nixfmt-tree);
    };
}
