# services.flywheel: the daemon, its configuration and who may use it.
#
# The daemon's own defaults are used for every setting that is left out. The unit
# with its hardening is the one of systemd/, through systemd.packages; this module
# adds only what depends on options.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  cfg = config.services.flywheel;
  toml = pkgs.formats.toml { };

  # A setting with a place in the manual. A setting that is not set is not written,
  # so that the daemon's own default is the only one.
  setting =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      defaultText = lib.literalMD "the daemon's own";
      inherit example description;
    };

  # Without what was left out, also inside lists.
  written =
    value:
    if builtins.isAttrs value then
      lib.mapAttrs (_: written) (lib.filterAttrs (_: v: v != null) value)
    else if builtins.isList value then
      map written value
    else
      value;
  plain = written cfg.settings;

  # What a running daemon does not change.
  fixed = builtins.intersectAttrs {
    socket = null;
    state_dir = null;
    runtime_dir = null;
    nix = null;
    embedded = null;
    client = null;
  } plain;

  # --- the configuration, checked when the system is built ---------------------

  # The credentials of the unit. For pushing one for all caches, or one for each;
  # for pulling one for each.
  forEach = kind: lib.mapAttrs' (cache: lib.nameValuePair "attic-${kind}-${cache}");
  credentials =
    (
      if cfg.tokenFile == null then
        { }
      else if builtins.isAttrs cfg.tokenFile then
        forEach "token" cfg.tokenFile
      else
        { attic-token = cfg.tokenFile; }
    )
    // forEach "pull-token" cfg.pullTokenFile;

  # The daemon reads no token to check its configuration, only whether there is
  # one: empty files stand in for the credentials.
  checkedConfig =
    pkgs.runCommand "flywheel.toml"
      {
        configuration = toml.generate "flywheel-unchecked.toml" plain;
        credentials = lib.attrNames credentials;
      }
      (
        lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
          mkdir credentials
          for name in $credentials; do
            touch "credentials/$name"
          done
          CREDENTIALS_DIRECTORY=$PWD/credentials \
            ${cfg.package}/bin/flywheeld --check-config --config "$configuration"
        ''
        + ''
          cp "$configuration" "$out"
        ''
      );

  # --- the built-in cache ------------------------------------------------------

  listen = builtins.match "(.*):([0-9]+)" cfg.embedded.listen;
  listenHost = builtins.elemAt listen 0;
  listenPort = lib.toInt (builtins.elemAt listen 1);
  isLoopback = lib.hasPrefix "127." listenHost || listenHost == "[::1]";
  isWildcard = listenHost == "0.0.0.0" || listenHost == "[::]";
  substituter = "http://${
    if isWildcard then "127.0.0.1" else listenHost
  }:${toString listenPort}/${cfg.embedded.cache}";

  # --- the post-build hook -----------------------------------------------------

  ownHook = "${cfg.package}/lib/flywheel/flywheel-hook";
  hook =
    if cfg.hook.chain == null then
      ownHook
    else
      # Ours first: it takes a tenth of a second at most and always succeeds, so
      # that the other one's status is Nix's.
      pkgs.writeShellScript "post-build-hooks" ''
        ${ownHook}
        exec ${lib.escapeShellArg cfg.hook.chain}
      '';
  otherHook = config.nix.settings.post-build-hook or null;

  # --- the runners -------------------------------------------------------------

  # What packaging/ci says for a runner's config.toml; sourced by the job's own
  # shell, so that a script that fails still ends its session.
  gitlabRunner = builtins.head (lib.importTOML ./packaging/ci/gitlab-runner-config.toml).runners;
  gitlabRunners = config.services.gitlab-runner.services;
  isShell = runner: runner.executor == "shell";
  githubRunners = lib.filterAttrs (_: runner: runner.enable) config.services.github-runners;
  githubHooks = {
    ACTIONS_RUNNER_HOOK_JOB_STARTED = "${cfg.package}/share/flywheel/ci/github-hooks/job-started.sh";
    ACTIONS_RUNNER_HOOK_JOB_COMPLETED = "${cfg.package}/share/flywheel/ci/github-hooks/job-completed.sh";
  };

  # Directories beside the service's own, for instance on a larger disk.
  elsewhere = lib.filter (dir: dir != null && !lib.hasPrefix "/var/lib/flywheel/" "${dir}/") [
    (cfg.settings.state_dir or null)
    (cfg.settings.embedded.dir or null)
  ];
  # The GC roots of a store below a root.
  rootsBelow = lib.optional ((cfg.settings.nix.root or null) != null) (
    cfg.settings.nix.gc_roots or "${cfg.settings.nix.root}/nix/var/nix/gcroots/flywheel"
  );
  writable = elsewhere ++ rootsBelow;
  allowedUsers = config.nix.settings.allowed-users or [ "*" ];
  mayUseNix = lib.any (user: lib.elem user allowedUsers) [
    "*"
    "flywheel"
    "@flywheel"
  ];
  usualSocket = "/run/flywheel/control.sock";
  netrc = "/run/flywheel/netrc";

  inStore = file: builtins.isPath file || lib.hasPrefix builtins.storeDir (toString file);
  tokenFiles =
    lib.attrValues credentials
    ++ lib.filter (file: file != null) (
      lib.mapAttrsToList (_: cache: cache.token_file) cfg.settings.caches
    );
in
{
  options.services.flywheel = {
    enable = lib.mkEnableOption ''
      flywheel, the service that pushes every path that Nix builds on this host to
      an Attic binary cache while the build is still running, and reports to each CI
      job what became of its paths'';

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./packaging/nix/package.nix { };
      defaultText = lib.literalMD "the package of the flake, or of this directory";
      description = "The flywheel package. Its rustc must be 1.89 or newer.";
    };

    settings = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          caches.main.endpoints = [ "https://attic.example.com" ];
          push.filter.names = [ "*" "!*-doc" ];
        }
      '';
      description = ''
        The daemon's configuration, {file}`flywheel.toml`. Every setting of the
        annotated example (`packaging/flywheel.toml`) can be set, also those that
        have no option of their own here. A setting that is left out has the daemon's
        own default. `flywheeld --check-config` checks the result when the system is
        built, so that a wrong setting stops the build and not the service.
      '';
      type = types.submodule {
        freeformType = toml.type;
        options = {
          default_cache = setting types.str "main" ''
            The cache for paths that no route sends elsewhere.
          '';
          caches = mkOption {
            default = { };
            description = ''
              The caches to which paths are pushed, by their names on this host. Without
              any, the built-in cache is used.
            '';
            type = types.attrsOf (
              types.submodule {
                freeformType = toml.type;
                options = {
                  endpoints =
                    setting (types.either types.str (types.listOf types.str)) [ "https://attic.example.com" ]
                      ''
                        URLs of the Attic server; the first that answers is used. `"embedded"`
                        is the built-in cache.
                      '';
                  cache = setting types.str "main" "The cache's name on the server. Default: the attribute's name.";
                  token_file = setting types.str "/run/keys/attic" ''
                    A file with the push token, which the service's user can read. For a file
                    that only root can read, use {option}`services.flywheel.tokenFile`.
                  '';
                  token_command =
                    setting (types.listOf types.str)
                      [
                        "/run/current-system/sw/bin/vault"
                        "read"
                        "-field=token"
                        "attic/token"
                      ]
                      ''
                        A program and its arguments that print the push token, instead of a
                        file. The service's user runs it, without a shell.
                      '';
                  token_command_timeout = setting types.str "10s" "How long {option}`token_command` may run.";
                  headers_file = setting types.str "/run/keys/attic-headers" ''
                    A file with headers for access proxies, one `Name: value` a line, which
                    the service's user can read.
                  '';
                  proxy = setting types.str "http://proxy.example.com:3128" ''
                    The HTTP proxy, or `"none"`. Settings are in the store, where everyone
                    can read them: a URL with a password belongs in
                    {option}`proxy_file`.
                  '';
                  proxy_file = setting types.str "/run/keys/proxy-url" ''
                    A file with the proxy's URL, which the service's user can read.
                  '';
                  ca_file = setting types.str "/etc/ssl/private-ca.pem" ''
                    The certificates (PEM) of the authorities that are trusted, instead of
                    the system's.
                  '';
                  client_cert = setting types.str "/run/keys/flywheel.crt" ''
                    The certificate (PEM) for servers that ask for one.
                  '';
                  client_key = setting types.str "/run/keys/flywheel.key" "Its private key (PEM).";
                  stall_timeout = setting types.str "60s" ''
                    A request that makes no progress for this long has failed and is retried.
                  '';
                  trust_api_endpoint = setting types.bool true ''
                    Whether tokens may go to the hosts that the server names itself and that are
                    not in {option}`endpoints`.
                  '';
                  upstream_check = setting (types.listOf types.str) [ "https://cache.nixos.org" ] ''
                    Binary caches that are asked whether they have an output that was copied to
                    this host without their signature. What one of them has is not pushed.
                  '';
                  http2 = setting types.bool true ''
                    Whether HTTP/2 is used where the server offers it.
                  '';
                  engine = setting (types.enum [
                    "native"
                    "attic"
                  ]) "native" "What uploads: the daemon itself, or the attic client that it keeps.";
                };
              }
            );
          };
          push = {
            engine = setting (types.enum [
              "native"
              "attic"
            ]) "native" "Who uploads to caches that do not say so themselves.";
            jobs = setting (types.either types.ints.positive (types.enum [ "auto" ])) 8 ''
              The number of uploads at a time.
            '';
            existing = setting (types.either types.bool (types.enum [ "since-boot" ])) true ''
              Whether paths are pushed that were valid before the first start.
              `"since-boot"` means those that were registered since the host booted.
            '';
            recheck_after = setting types.str "10m" ''
              How long the daemon believes a cache's answer that it has a path.
            '';
            max_rate = setting types.str "20MiB" "The rate of all uploads together, in bytes per second; `\"0\"` is no limit.";
            filter = {
              origins = setting (types.listOf (
                types.enum [
                  "built"
                  "substituted"
                  "source"
                  "derivation"
                ]
              )) [ "built" ] "Which paths are pushed of their own accord, by where they come from.";
              names = setting (types.listOf types.str) [ "!*-doc" ] ''
                Globs for the name after the hash. A glob with a leading `!` excludes.
              '';
              max_size = setting types.str "4GiB" "The size of the largest NAR that is pushed without being named.";
              substitutable_only = setting types.bool true ''
                Whether outputs of derivations with `allowSubstitutes = false` are left out.
              '';
            };
          };
          nix = {
            root = setting types.str "/srv/ci" ''
              The directory below which a store of its own is, as in
              `nix build --store /srv/ci`.
            '';
            lower_state_dir = setting types.str "/base/nix/var/nix" ''
              The state directory of the lower store, where the store is a local-overlay
              store: what the lower store has is not new.
            '';
            netrc_include = setting (types.listOf types.str) [ "/run/keys/netrc" ] ''
              Files of other programs whose entries the daemon's netrc file has before its
              own. The service's user must be able to read them.
            '';
            protect_max = setting types.str "50GiB" ''
              The size of all NARs of pending paths that are protected from garbage
              collection; `"0"` is no limit.
            '';
            min_free = setting types.str "1GiB" ''
              The free space of the store's file system below which the oldest pending
              paths lose their protection from garbage collection; `"0"` is no limit.
            '';
          };
          admins = setting types.str "ci-admins" ''
            A group whose members see the sessions and paths of all users, as root does.
          '';
          client.enable = setting types.bool false "Whether the daemon keeps an attic client for jobs.";
          drain.timeout = setting types.str "90s" "How long a stopping daemon continues to upload.";
          history.keep = setting types.str "30d" "How long closed sessions stay in the ledger.";
          route = mkOption {
            default = [ ];
            example = [
              {
                user = "ci-untrusted";
                cache = "untrusted";
                allow = [ "scratch" ];
              }
            ];
            description = ''
              Each route sends the sessions of a user, of a group or with a label (a glob)
              to another cache, or nowhere (`action = "skip"`). The first route that matches
              decides, and its users may use only its cache and those in `allow`. `user` and
              `group` are names, numbers, or ranges of numbers such as `100000-165535`.
            '';
            type = types.listOf (types.attrsOf (types.either types.str (types.listOf types.str)));
          };
        };
      };
    };

    tokenFile = mkOption {
      type = types.nullOr (types.either types.path (types.attrsOf types.path));
      default = null;
      example = lib.literalExpression ''{ main = "/run/secrets/attic-token"; }'';
      description = ''
        The file with the push token: one for all caches, or an attribute set with
        one for each, by the names of `settings.caches`. systemd gives it to the
        service as a credential, so only root needs to be able to read the file, and
        no job sees the token. Write it as a string in quotes: a path of the Nix
        language is copied into the Nix store, where every user of the host can read it.
      '';
    };

    pullTokenFile = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = lib.literalExpression ''{ main = "/run/secrets/attic-pull-token"; }'';
      description = ''
        For private caches, by the names of `settings.caches`: a file with a token
        that may only pull. The daemon writes {file}`/run/flywheel/netrc` from these
        tokens, and {option}`nix.settings` names it, so that this host's Nix can read
        the caches.
      '';
    };

    group = mkOption {
      type = types.str;
      default = "flywheel";
      description = ''
        The group whose members may open sessions and push, for the users that run
        jobs. The module defines it.
      '';
    };

    members = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "buildkite-agent" ];
      description = ''
        Users that become members of the group. Those of
        {option}`services.flywheel.runners` are members already.
      '';
    };

    embedded = {
      enable = lib.mkEnableOption ''
        pushing to the built-in cache, for a single host or to try flywheel out.
        Several hosts need an Attic server'';
      cache = mkOption {
        type = types.str;
        default = "main";
        description = "The name of the built-in cache.";
      };
      listen = mkOption {
        type = types.strMatching ".+:[0-9]+";
        default = "127.0.0.1:8742";
        example = "[::]:8742";
        description = "The address on which the built-in cache serves.";
      };
      socket = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether systemd holds the port from boot on: no other process can take it,
          and a build that reads starts the daemon.
        '';
      };
      publicKey = mkOption {
        type = types.nullOr (types.strMatching "[^:[:space:]]+:[A-Za-z0-9+/]{43}=");
        default = null;
        example = "main:bKzXeXL8Wtd1jhBrdBAgVhbgFhu0Ly7jQm2vYKJMLMM=";
        description = ''
          The public key of the built-in cache. When it is set, this host's Nix uses
          the cache: substituter and key are added to {option}`nix.settings`. The
          daemon makes the key at its first start; {command}`flywheelctl nix-conf`
          prints it.

          The module does not read the key from the daemon. Root trusts everything in
          nix.conf, so a file there that the service can write would give the service's
          user the rights of root.
        '';
      };
    };

    verify = {
      enable = lib.mkEnableOption ''
        verifying every day that the caches can serve what flywheel pushed:
        {command}`flywheelctl verify --sample`, whose findings are in the journal and
        in the metrics'';
      sample = mkOption {
        type = types.ints.between 1 2000;
        default = 50;
        description = "How many paths are fetched and checked, chosen at random.";
      };
      repair = mkOption {
        type = types.bool;
        default = false;
        description = "Whether paths that a cache does not have any more are pushed again.";
      };
      calendar = mkOption {
        type = types.str;
        default = "daily";
        example = "weekly";
        description = "When to verify, in the format of {manpage}`systemd.time(7)`.";
      };
    };

    metrics.listen = mkOption {
      type = types.nullOr (types.strMatching ".+:[0-9]+");
      default = null;
      example = "127.0.0.1:9799";
      description = ''
        Where a Prometheus scrapes the daemon's metrics; nowhere by default. An address
        that other hosts reach also needs
        {option}`services.flywheel.settings.metrics.allow_remote`.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to open the firewall for the built-in cache. No port is opened while
        it listens on the loopback interface.
      '';
    };

    client.installable = mkOption {
      type = types.nullOr (types.either types.package types.str);
      default = null;
      example = lib.literalExpression "pkgs.attic-client";
      description = ''
        Where the daemon gets the attic client: a package, which is then part of the
        system, or a string for {command}`nix build`, which the daemon takes from a
        substituter and never builds.
      '';
    };

    hook = {
      enable = lib.mkEnableOption ''
        the post-build hook, which gives evidence of who built a path. It is not
        needed: the daemon also sees it from the locks that builds hold'';
      chain = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression ''"''${pkgs.my-hook}/bin/hook"'';
        description = ''
          Another post-build hook, which is run after flywheel's with the same
          environment. Nix gets its exit status.
        '';
      };
    };

    runners = {
      gitlab.enable = lib.mkEnableOption ''
        a session around every job of the shell executors in
        {option}`services.gitlab-runner.services`. Pipelines need no change'';
      github.enable = lib.mkEnableOption ''
        a session around every job of {option}`services.github-runners`. Workflows
        need no change'';
    };
  };

  # Each runner's own options are needed to add to them, so the type is extended
  # instead of defining them from themselves.
  options.services.gitlab-runner.services = mkOption {
    type = types.attrsOf (
      types.submodule (
        { config, ... }:
        {
          config = mkIf (cfg.enable && cfg.runners.gitlab.enable && isShell config) {
            registrationFlags = [
              "--pre-build-script ${lib.escapeShellArg gitlabRunner.pre_build_script}"
              "--post-build-script ${lib.escapeShellArg gitlabRunner.post_build_script}"
            ];
          };
        }
      )
    );
  };

  config = mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = map (file: {
          assertion = !inStore file;
          message = ''
            services.flywheel: the token file ${toString file} is in the Nix store, or is a
            path of the Nix language, which is copied there. Every user of this host could
            read it, and it would go wherever the store is copied to. Keep it outside and
            name it as text: tokenFile = "/run/secrets/attic-token";'';
        }) tokenFiles;

        warnings =
          lib.optional (!mayUseNix) ''
            nix.settings.allowed-users leaves out flywheel, which protects pending paths and
            fetches the attic client through the nix-daemon. Add "flywheel" to it.''
          ++ lib.optional ((cfg.settings.socket or usualSocket) != usualSocket) ''
            services.flywheel.settings.socket: the service may not write there, and jobs, the
            post-build hook and flywheelctl look for it at ${usualSocket}. Leave
            it out.'';

        environment = {
          etc."flywheel/flywheel.toml".source = checkedConfig;
          systemPackages = [ cfg.package ];
        };

        users = {
          users.flywheel = {
            isSystemUser = true;
            group = "flywheel";
            home = "/var/lib/flywheel";
            description = "flywheel daemon";
          };
          groups = lib.mkMerge [
            { flywheel = { }; }
            { ${cfg.group} = { inherit (cfg) members; }; }
          ];
        };

        systemd = {
          packages = [ cfg.package ];
          tmpfiles = {
            packages = [ cfg.package ];
            settings.flywheel =
              let
                dir = mode: _: {
                  d = {
                    user = "flywheel";
                    group = "flywheel";
                    inherit mode;
                  };
                };
              in
              lib.genAttrs elsewhere (dir "0700") // lib.genAttrs rootsBelow (dir "0755");
          };
          # What [Install] says is not looked at on NixOS.
          sockets.flywheeld = {
            wantedBy = [ "sockets.target" ];
            socketConfig = lib.optionalAttrs (cfg.group != "flywheel") { SocketGroup = cfg.group; };
          };
          services.flywheeld = {
            wantedBy = [ "multi-user.target" ];
            # The attic client is fetched with Nix.
            path = [ config.nix.package ];
            # A reload is enough for the rest.
            restartTriggers = [ (builtins.hashString "sha256" (builtins.toJSON fixed)) ];
            reloadTriggers = [ checkedConfig ];
            unitConfig = lib.optionalAttrs (writable != [ ]) { RequiresMountsFor = writable; };
            # The unit itself takes attic-token from /etc/credstore, if it is there.
            serviceConfig =
              lib.optionalAttrs (credentials != { }) {
                LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;
              }
              // lib.optionalAttrs (writable != [ ]) { ReadWritePaths = writable; }
              // lib.optionalAttrs (cfg.group != "flywheel") { Group = cfg.group; };
          };
        };
      }

      {
        assertions =
          let
            known =
              option:
              lib.mapAttrsToList (
                cache: _: {
                  assertion = cfg.settings.caches ? ${cache} && cfg.settings.caches.${cache}.endpoints != null;
                  message = ''
                    services.flywheel.${option}.${cache}: there is no such cache. Add
                    services.flywheel.settings.caches.${cache}.endpoints, or correct the name;
                    there are: ${lib.concatStringsSep ", " (lib.attrNames cfg.settings.caches)}.'';
                }
              );
          in
          lib.optionals (builtins.isAttrs cfg.tokenFile) (known "tokenFile" cfg.tokenFile)
          ++ known "pullTokenFile" cfg.pullTokenFile;
      }

      {
        # A cache that cannot be reached must not fail a build, as it would otherwise.
        nix.settings = {
          fallback = lib.mkDefault true;
          connect-timeout = lib.mkDefault 5;
        };
      }

      (mkIf cfg.verify.enable {
        systemd.services.flywheel-verify.environment.FLYWHEEL_VERIFY =
          "--sample=${toString cfg.verify.sample}" + lib.optionalString cfg.verify.repair " --repair";
        systemd.timers.flywheel-verify = {
          wantedBy = [ "timers.target" ];
          # The empty value takes the unit's own away.
          timerConfig.OnCalendar = [
            ""
            cfg.verify.calendar
          ];
        };
      })

      (mkIf (cfg.pullTokenFile != { }) {
        services.flywheel.settings = {
          nix.netrc = netrc;
          caches = lib.mapAttrs (cache: _: {
            # Where systemd puts the credentials of the unit.
            pull_token_file = "/run/credentials/flywheeld.service/attic-pull-token-${cache}";
          }) cfg.pullTokenFile;
        };
        # A file that is set already wins over this default; the assertion reports it.
        nix.settings.netrc-file = lib.mkDefault netrc;
        assertions = [
          {
            assertion = config.nix.settings.netrc-file == netrc;
            message = ''
              services.flywheel.pullTokenFile: nix.settings.netrc-file is
              ${config.nix.settings.netrc-file} already, and Nix reads only one. Leave it out,
              or leave out pullTokenFile and keep the cache's entry there yourself.'';
          }
        ];
      })

      (mkIf (cfg.metrics.listen != null) {
        services.flywheel.settings.metrics.listen = cfg.metrics.listen;
      })

      (mkIf cfg.embedded.enable {
        services.flywheel.settings = {
          caches.${cfg.embedded.cache}.endpoints = lib.mkDefault "embedded";
          embedded.listen = cfg.embedded.listen;
        };
        systemd.sockets.flywheeld-cache = mkIf cfg.embedded.socket {
          wantedBy = [ "sockets.target" ];
          # The empty one takes the address of the unit away.
          socketConfig.ListenStream = [
            ""
            cfg.embedded.listen
          ];
        };
        networking.firewall.allowedTCPPorts = mkIf (cfg.openFirewall && !isLoopback) [ listenPort ];
        nix.settings = mkIf (cfg.embedded.publicKey != null) {
          substituters = [ substituter ];
          trusted-public-keys = [ cfg.embedded.publicKey ];
        };
        warnings =
          lib.optional (cfg.embedded.publicKey == null) ''
            services.flywheel.embedded: this host's Nix does not use the built-in cache yet,
            because its public key is not known. After the first start
            `flywheelctl nix-conf` prints it; set services.flywheel.embedded.publicKey to it.''
          ++ lib.optional (cfg.openFirewall && isLoopback) ''
            services.flywheel.openFirewall opens nothing: the built-in cache listens on
            ${cfg.embedded.listen}, which no other host reaches. Set
            services.flywheel.embedded.listen, for instance to "[::]:${toString listenPort}", or
            leave openFirewall out.'';
      })

      {
        assertions = [
          {
            assertion = cfg.openFirewall -> cfg.embedded.enable;
            message = ''
              services.flywheel.openFirewall: nothing of flywheel listens for other hosts
              without services.flywheel.embedded.enable. Leave openFirewall out.'';
          }
          {
            assertion = cfg.embedded.publicKey != null -> cfg.embedded.enable;
            message = ''
              services.flywheel.embedded.publicKey is set without
              services.flywheel.embedded.enable. Set enable, or leave the key out.'';
          }
        ];
      }

      (mkIf (cfg.client.installable != null) {
        services.flywheel.settings.client.installable = "${cfg.client.installable}";
      })

      (mkIf cfg.hook.enable {
        # A hook that is set already wins over this default; the assertion reports it.
        nix.settings.post-build-hook = lib.mkDefault hook;
        assertions = [
          {
            assertion = "${otherHook}" == "${hook}" && !lib.hasInfix "post-build-hook" config.nix.extraOptions;
            message = ''
              services.flywheel.hook.enable: nix.conf has another post-build-hook already
              (${
                if "${otherHook}" == "${hook}" then "in nix.extraOptions" else "nix.settings: ${otherHook}"
              }), and Nix runs only one. Take it out there and name it
              in services.flywheel.hook.chain: then both are run.'';
          }
        ];
      })

      (mkIf cfg.runners.gitlab.enable {
        services.gitlab-runner.extraPackages = [ cfg.package ];
        systemd.services.gitlab-runner = {
          after = [ "flywheeld.service" ];
          serviceConfig.SupplementaryGroups = [ cfg.group ];
        };
        assertions = [
          {
            assertion = config.services.gitlab-runner.enable;
            message = ''
              services.flywheel.runners.gitlab.enable: there is no GitLab runner on this
              host. Set services.gitlab-runner.enable, or leave this out.'';
          }
        ]
        ++ lib.mapAttrsToList (name: runner: {
          assertion = isShell runner -> (runner.preBuildScript == null && runner.postBuildScript == null);
          message = ''
            services.gitlab-runner.services.${name} has a preBuildScript or postBuildScript of
            its own, and a runner runs one of each: flywheel's would be left out. Leave out
            services.flywheel.runners.gitlab.enable, add the runner's user to
            services.flywheel.members, and call `flywheelctl session start || true` in the
            former and `flywheelctl session end || true` in the latter.'';
        }) gitlabRunners;
        warnings = lib.optional (!lib.any isShell (lib.attrValues gitlabRunners)) ''
          services.flywheel.runners.gitlab.enable changes nothing: no runner of
          services.gitlab-runner.services has executor = "shell", and jobs in containers do
          not reach this host's daemon.'';
      })

      (mkIf cfg.runners.github.enable {
        systemd.services = lib.mapAttrs' (
          name: runner:
          lib.nameValuePair "github-runner-${name}" {
            after = [ "flywheeld.service" ];
            path = [ cfg.package ];
            environment = removeAttrs githubHooks (lib.attrNames runner.extraEnvironment);
            serviceConfig.SupplementaryGroups = [ cfg.group ];
          }
        ) githubRunners;
        assertions = [
          {
            assertion = githubRunners != { };
            message = ''
              services.flywheel.runners.github.enable: there is no GitHub runner on this
              host. Add one to services.github-runners, or leave this out.'';
          }
        ]
        ++ lib.mapAttrsToList (name: runner: {
          assertion = builtins.intersectAttrs githubHooks runner.extraEnvironment == { };
          message = ''
            services.github-runners.${name}.extraEnvironment sets a job hook of its own, and
            a runner has one of each: flywheel's would be left out. Leave out
            services.flywheel.runners.github.enable and call
            ${githubHooks.ACTIONS_RUNNER_HOOK_JOB_STARTED} and
            ${githubHooks.ACTIONS_RUNNER_HOOK_JOB_COMPLETED} from yours.'';
        }) githubRunners;
      })
    ]
  );
}
