# The module, evaluated for every case of cases.nix with nixpkgs' real lib and
# stubs for what it needs of NixOS. Gives plain data for tests/it/nixos/module.rs:
#   nix-instantiate --eval --strict --json tests/nixos/eval.nix --argstr nixpkgs DIR
{ nixpkgs }:

let
  lib = import (/. + nixpkgs + "/lib");
  inherit (lib) mkOption types;

  stored = name: "/nix/store/00000000000000000000000000000000-${name}";
  # A thing that can be interpolated; what it was made of stays readable.
  thing =
    name: more:
    {
      type = "derivation";
      inherit name;
      outPath = stored name;
    }
    // more;

  pkgs = {
    formats.toml =
      { }:
      {
        type =
          let
            value =
              with types;
              oneOf [
                bool
                int
                float
                str
                (attrsOf value)
                (listOf value)
              ]
              // {
                description = "TOML value";
              };
          in
          types.attrsOf value;
        generate = name: content: thing name { inherit content; };
      };
    runCommand =
      name: env: script:
      thing name { inherit env script; };
    writeShellScript = name: script: thing name { inherit script; };
    callPackage = _: _: thing "flywheel" { };
    git = thing "git" { };
    stdenv = {
      hostPlatform.system = "x86_64-linux";
      buildPlatform.canExecute = _: true;
    };
  };

  # As a host takes it in: out of the flake, which sets the package.
  flake = (import ../../flake.nix).outputs {
    self = flake;
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs lib.systems.flakeExposed (_: pkgs);
    };
  };

  option = type: default: mkOption { inherit type default; };
  lists = types.listOf types.raw;
  atom =
    with types;
    oneOf [
      bool
      int
      str
      path
      package
    ];

  # What the module reads of NixOS, and where it writes to.
  surroundings = {
    options = {
      assertions = option lists [ ];
      warnings = option (types.listOf types.str) [ ];
      environment.etc = option (types.attrsOf (types.attrsOf types.raw)) { };
      environment.systemPackages = option lists [ ];
      networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
      nix.package = option types.package (thing "nix" { });
      nix.extraOptions = option types.lines "";
      nix.settings = option (types.attrsOf (types.either atom (types.listOf atom))) { };
      services.gitlab-runner = {
        enable = option types.bool false;
        extraPackages = option lists [ ];
        services = mkOption {
          default = { };
          type = types.attrsOf (
            types.submodule {
              options = {
                executor = option types.str "docker";
                dockerImage = option (types.nullOr types.str) null;
                authenticationTokenConfigFile = option (types.nullOr types.path) null;
                registrationFlags = option (types.listOf types.str) [ ];
                preBuildScript = option (types.nullOr types.path) null;
                postBuildScript = option (types.nullOr types.path) null;
              };
            }
          );
        };
      };
      services.github-runners = mkOption {
        default = { };
        type = types.attrsOf (
          types.submodule {
            options = {
              enable = option types.bool false;
              url = mkOption { type = types.str; };
              tokenFile = mkOption { type = types.path; };
              extraEnvironment = option types.attrs { };
            };
          }
        );
      };
      systemd.packages = option lists [ ];
      systemd.tmpfiles.packages = option lists [ ];
      systemd.tmpfiles.settings = option (types.attrsOf (types.attrsOf types.raw)) { };
      systemd.services = option (types.attrsOf (
        types.submodule {
          options = {
            after = option (types.listOf types.str) [ ];
            wantedBy = option (types.listOf types.str) [ ];
            path = option lists [ ];
            restartTriggers = option lists [ ];
            reloadTriggers = option lists [ ];
            environment = option (types.attrsOf types.str) { };
            serviceConfig = option (types.attrsOf types.raw) { };
            unitConfig = option (types.attrsOf types.raw) { };
          };
        }
      )) { };
      systemd.sockets = option (types.attrsOf (
        types.submodule {
          options = {
            wantedBy = option (types.listOf types.str) [ ];
            socketConfig = option (types.attrsOf types.raw) { };
          };
        }
      )) { };
      systemd.timers = option (types.attrsOf (
        types.submodule {
          options = {
            wantedBy = option (types.listOf types.str) [ ];
            timerConfig = option (types.attrsOf types.raw) { };
          };
        }
      )) { };
      users.users = option (types.attrsOf types.raw) { };
      users.groups = option (types.attrsOf (
        types.submodule { options.members = option (types.listOf types.str) [ ]; }
      )) { };
    };
  };

  evaluate =
    case:
    let
      inherit
        (lib.evalModules {
          modules = [
            flake.nixosModules.default
            surroundings
            case.module
          ];
          specialArgs = { inherit pkgs; };
        })
        config
        ;
      checked = config.environment.etc."flywheel/flywheel.toml".source;
    in
    {
      fails = case.fails or [ ];
      warns = case.warns or [ ];
      failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
      warned = config.warnings;
      configuration = checked.env.configuration.content;
      check = checked.script;
      credentials = checked.env.credentials;
      etc = lib.attrNames config.environment.etc;
      packages = config.systemd.packages;
      tmpfiles = config.systemd.tmpfiles.packages;
      directories = lib.attrNames config.systemd.tmpfiles.settings.flywheel;
      inherit (config.systemd) services sockets timers;
      inherit (config.users) users groups;
      ports = config.networking.firewall.allowedTCPPorts;
      nix = config.nix.settings;
      hook = (config.nix.settings.post-build-hook or { }).script or null;
      gitlab = lib.mapAttrs (_: runner: runner.registrationFlags) config.services.gitlab-runner.services;
    };

  module = lib.evalModules {
    modules = [
      flake.nixosModules.default
      surroundings
    ];
    specialArgs = { inherit pkgs; };
  };
in
{
  cases = lib.mapAttrs (_: evaluate) (import ./cases.nix { });
  # What the manual would say.
  manual =
    map
      (o: {
        inherit (o) name;
        description = o.description or null;
      })
      (
        lib.filter (o: lib.hasPrefix "services.flywheel." o.name && !lib.hasInfix "._module." o.name) (
          lib.optionAttrSetToDocList module.options
        )
      );
  # Switched off it does nothing at all.
  off = {
    inherit (module.config) assertions warnings;
    services = module.config.systemd.services;
    etc = module.config.environment.etc;
  };
  overlay = lib.attrNames (flake.overlays.default pkgs pkgs);
}
