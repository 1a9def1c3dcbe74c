# Configurations of services.flywheel: what each is, and what it says. `fails`
# and `warns` are parts of the messages; none means that it must be silent.
# Evaluated with stubs by tests/it/nixos/module.rs and with all of NixOS by
# `nix flake check`.
{ }:

let
  attic = {
    services.flywheel = {
      enable = true;
      settings.caches.main.endpoints = [ "https://attic.example.com" ];
    };
  };
  key = "main:bKzXeXL8Wtd1jhBrdBAgVhbgFhu0Ly7jQm2vYKJMLMM=";
  # What one configuration adds to the usual one.
  with_ = more: {
    imports = [
      attic
      { services.flywheel = more; }
    ];
  };
  embedded = more: {
    services.flywheel = {
      enable = true;
      embedded = {
        enable = true;
      }
      // more;
    };
  };
  gitlab = runner: {
    services.gitlab-runner = {
      enable = true;
      services.nix = {
        executor = "shell";
        authenticationTokenConfigFile = "/run/secrets/gitlab";
      }
      // runner;
    };
  };
  github = runner: {
    services.github-runners.nix = {
      enable = true;
      url = "https://github.com/example/project";
      tokenFile = "/run/secrets/github";
    }
    // runner;
  };
in
{
  minimal.module = {
    services.flywheel.enable = true;
  };

  token.module = with_ { tokenFile = "/run/secrets/attic"; };

  tokens.module = with_ {
    settings.caches.other.endpoints = [ "https://other.example.com" ];
    tokenFile = {
      main = "/run/secrets/main";
      other = "/run/secrets/other";
    };
  };

  private.module = with_ {
    tokenFile = "/run/secrets/push";
    pullTokenFile.main = "/run/secrets/pull";
  };

  private-elsewhere = {
    module = {
      imports = [ (with_ { pullTokenFile.main = "/run/secrets/pull"; }) ];
      nix.settings.netrc-file = "/etc/nix/netrc";
    };
    fails = [ "/etc/nix/netrc already" ];
  };

  pull-token-in-store = {
    module = with_ {
      pullTokenFile.main = "${builtins.storeDir}/00000000000000000000000000000000-token";
    };
    fails = [ "is in the Nix store" ];
  };

  pull-token-of-no-cache = {
    module = with_ { pullTokenFile.mian = "/run/secrets/pull"; };
    fails = [ "pullTokenFile.mian: there is no such cache" ];
  };

  # Every option, and a setting of each type.
  everything = {
    module = {
      imports = [
        (gitlab { })
        (github { })
      ];
      services.flywheel = {
        enable = true;
        group = "ci";
        members = [ "builder" ];
        settings = {
          socket = "/run/flywheel/control.sock";
          default_cache = "main";
          caches.main = {
            endpoints = [
              "https://attic-review.example.com"
              "https://attic.example.com"
            ];
            cache = "production";
            engine = "native";
            stall_timeout = "30s";
            trust_api_endpoint = true;
            upstream_check = [ "https://cache.nixos.org" ];
          };
          caches.plain = {
            endpoints = "https://plain.example.com";
            token_file = "/var/lib/keys/plain";
            headers_file = "/var/lib/keys/headers";
            ca_file = "/etc/ssl/private-ca.pem";
            client_cert = "/var/lib/keys/client.crt";
            client_key = "/var/lib/keys/client.key";
            proxy = "http://proxy.example.com:3128";
            http2 = true;
          };
          caches.vault = {
            endpoints = "https://vault.example.com";
            token_command = [
              "/run/current-system/sw/bin/vault"
              "read"
            ];
            token_command_timeout = "20s";
            proxy_file = "/var/lib/keys/proxy";
          };
          push = {
            engine = "native";
            jobs = 8;
            existing = true;
            max_rate = "20MiB";
            filter = {
              origins = [
                "built"
                "source"
              ];
              names = [ "!*-doc" ];
              max_size = "4GiB";
              substitutable_only = true;
            };
            recheck_after = "5m";
          };
          nix = {
            netrc_include = [ "/run/keys/netrc" ];
            protect_max = "50GiB";
            min_free = "2GiB";
          };
          admins = "ci-admins";
          client.enable = true;
          drain.timeout = "60s";
          history.keep = "7d";
          embedded.max_size = "50GiB";
          embedded.public = false;
          route = [
            {
              user = "ci-untrusted";
              cache = "local";
              allow = [ "main" ];
            }
            {
              group = "guests";
              label = "scratch/*";
              action = "skip";
            }
          ];
        };
        tokenFile.main = "/run/secrets/attic";
        pullTokenFile.main = "/run/secrets/pull";
        embedded = {
          enable = true;
          cache = "local";
          listen = "[::]:9000";
          socket = true;
          publicKey = key;
        };
        openFirewall = true;
        verify = {
          enable = true;
          sample = 200;
          repair = true;
          calendar = "weekly";
        };
        client.installable = "github:zhaofengli/attic#attic-client";
        hook.enable = true;
        runners.gitlab.enable = true;
        runners.github.enable = true;
      };
    };
  };

  # On a larger disk.
  elsewhere.module = {
    services.flywheel = {
      enable = true;
      settings.state_dir = "/srv/flywheel";
      settings.embedded.dir = "/srv/cache";
    };
  };

  # A store of its own.
  rooted.module = with_ { settings.nix.root = "/srv/ci"; };

  socket-moved = {
    module = with_ { settings.socket = "/srv/flywheel.sock"; };
    warns = [ "flywheelctl look for it at /run/flywheel/control.sock" ];
  };

  # A nix-daemon that is not for everybody.
  nix-restricted = {
    module = {
      imports = [ attic ];
      nix.settings.allowed-users = [ "@wheel" ];
    };
    warns = [ "allowed-users leaves out flywheel" ];
  };

  nix-restricted-and-allowed.module = {
    imports = [ attic ];
    nix.settings.allowed-users = [ "@flywheel" ];
  };

  example.module = ../../docs/examples/gitlab-runner.nix;

  embedded-known.module = embedded { publicKey = key; };

  embedded-unknown = {
    module = embedded { };
    warns = [ "embedded.publicKey" ];
  };

  embedded-closed = {
    module = {
      imports = [ (embedded { publicKey = key; }) ];
      services.flywheel.openFirewall = true;
    };
    warns = [ "openFirewall opens nothing" ];
  };

  hook-chained.module = with_ {
    hook = {
      enable = true;
      chain = "/etc/nix/other hook";
    };
  };

  hook-taken = {
    module = {
      imports = [ (with_ { hook.enable = true; }) ];
      nix.settings.post-build-hook = "/etc/nix/other-hook";
    };
    fails = [
      "/etc/nix/other-hook), and Nix runs only one"
      "hook.chain"
    ];
  };

  hook-taken-in-text = {
    module = {
      imports = [ (with_ { hook.enable = true; }) ];
      nix.extraOptions = "post-build-hook = /etc/nix/other-hook";
    };
    fails = [ "in nix.extraOptions" ];
  };

  token-in-store = {
    module = with_ { tokenFile = "${builtins.storeDir}/00000000000000000000000000000000-token"; };
    fails = [
      "is in the Nix store"
      "Every user of this host could"
    ];
  };

  token-of-one-in-store = {
    module = with_ { tokenFile.main = "${builtins.storeDir}/00000000000000000000000000000000-token"; };
    fails = [ "is in the Nix store" ];
  };

  token-setting-in-store = {
    module = with_ {
      settings.caches.main.token_file = "${builtins.storeDir}/00000000000000000000000000000000-token";
    };
    fails = [ "is in the Nix store" ];
  };

  token-as-path = {
    module = with_ { tokenFile = ./cases.nix; };
    fails = [ "path of the Nix language" ];
  };

  token-of-no-cache = {
    module = with_ { tokenFile.mian = "/run/secrets/attic"; };
    fails = [
      "tokenFile.mian: there is no such cache"
      "main"
    ];
  };

  firewall-for-nothing = {
    module = with_ { openFirewall = true; };
    fails = [ "nothing of flywheel listens" ];
  };

  key-for-nothing = {
    module = with_ { embedded.publicKey = key; };
    fails = [ "publicKey is set without" ];
  };

  gitlab.module = {
    imports = [
      (gitlab { })
      (with_ { runners.gitlab.enable = true; })
    ];
  };

  # Runners that have nothing to do with it stay as they are.
  gitlab-left-alone.module = {
    imports = [
      (gitlab { })
      attic
    ];
  };

  gitlab-containers = {
    module = {
      imports = [
        (gitlab {
          executor = "docker";
          dockerImage = "debian:stable";
        })
        (with_ { runners.gitlab.enable = true; })
      ];
    };
    warns = [ "changes nothing" ];
  };

  gitlab-taken = {
    module = {
      imports = [
        (gitlab { preBuildScript = "/etc/gitlab/pre-build"; })
        (with_ { runners.gitlab.enable = true; })
      ];
    };
    fails = [
      "has a preBuildScript"
      "flywheelctl session start || true"
    ];
  };

  gitlab-absent = {
    module = with_ { runners.gitlab.enable = true; };
    fails = [ "there is no GitLab runner" ];
    warns = [ "changes nothing" ];
  };

  github.module = {
    imports = [
      (github { })
      (with_ { runners.github.enable = true; })
    ];
  };

  github-taken = {
    module = {
      imports = [
        (github { extraEnvironment.ACTIONS_RUNNER_HOOK_JOB_STARTED = "/etc/github/started.sh"; })
        (with_ { runners.github.enable = true; })
      ];
    };
    fails = [ "sets a job hook of its own" ];
  };

  github-absent = {
    module = with_ { runners.github.enable = true; };
    fails = [ "there is no GitHub runner" ];
  };
}
