# A host whose GitLab jobs build with Nix: a shell runner, and flywheel around
# every job. Checked with the module; the names of files and servers are yours.
{ pkgs, ... }:
{
  services.flywheel = {
    enable = true;
    settings = {
      caches = {
        main.endpoints = [ "https://attic.example.com" ];
        # For what nobody has reviewed.
        untrusted = {
          endpoints = [ "https://attic.example.com" ];
          cache = "ci-untrusted";
        };
      };
      route = [
        {
          label = "*/forks/*";
          cache = "untrusted";
        }
      ];
      push.filter.names = [
        "*"
        "!nixos-system-*"
      ];
    };
    # Files that only root reads; made by sops-nix, agenix or by hand.
    tokenFile = {
      main = "/run/secrets/attic-push-main";
      untrusted = "/run/secrets/attic-push-untrusted";
    };
    runners.gitlab.enable = true;
  };

  services.gitlab-runner = {
    enable = true;
    services.nix = {
      executor = "shell";
      # CI_SERVER_URL=… and CI_SERVER_TOKEN=…
      authenticationTokenConfigFile = "/run/secrets/gitlab-runner";
    };
    extraPackages = [ pkgs.git ];
  };

  # The other half: what was pushed comes back.
  nix.settings = {
    experimental-features = [
      "nix-command"
      "flakes"
    ];
    substituters = [ "https://attic.example.com/main" ];
    trusted-public-keys = [ "main:bKzXeXL8Wtd1jhBrdBAgVhbgFhu0Ly7jQm2vYKJMLMM=" ];
    # Nix remembers for an hour that a cache lacks a path; other hosts push all the time.
    narinfo-cache-negative-ttl = 0;
  };
}
