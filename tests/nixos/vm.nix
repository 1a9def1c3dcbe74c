# The whole story on two machines: an Attic server, and a runner with flywheel
# and two CI users. Part of `nix flake check`; it needs KVM and a nixpkgs to
# build from. Elsewhere only its evaluation is checked, by tests/it/nixos/flake.rs.
{
  lib,
  pkgs,
  module,
  ...
}:

let
  # A chain of outputs, each a second of building, of which one may fail.
  tree = pkgs.writeText "tree.nix" ''
    { name, count, fails ? 0 }:
    let
      coreutils = builtins.storePath "${pkgs.coreutils}";
      output = n: before: derivation {
        name = "''${name}-''${toString n}";
        system = builtins.currentSystem;
        builder = "/bin/sh";
        inherit before;
        args = [
          "-c"
          "''${coreutils}/bin/sleep 1; ''${if n == fails then "exit 1" else "echo $before $name > $out"}"
        ];
      };
    in
    builtins.foldl' (before: n: output n before) "" (builtins.genList (n: n + 1) count)
  '';

  # As a CI job does it: a session, a build, the end. Prints the summary.
  job = pkgs.writeShellScriptBin "job" ''
    cd "$HOME" && rm -f result*
    session=$(flywheelctl session start --label "$1")
    nix-build ${tree} --argstr name "$1" --arg count "$2" --arg fails "''${3:-0}" >&2
    exec flywheelctl --json session end "$session" --push 'result*' --timeout "''${4:-240s}"
  '';

  # The attic client as text alone: not part of the runner's system, so that it
  # has to come out of the cache.
  client = builtins.unsafeDiscardStringContext "${pkgs.attic-client}";
in
{
  name = "flywheel";

  nodes.cache = {
    services.atticd = {
      enable = true;
      # A secret in the store: only ever for a test.
      environmentFile = pkgs.runCommand "atticd.env" { nativeBuildInputs = [ pkgs.openssl ]; } ''
        secret=$(openssl genrsa -traditional 4096 | base64 -w0)
        echo "ATTIC_SERVER_TOKEN_RS256_SECRET_BASE64=$secret" > $out
      '';
      settings.listen = "[::]:8080";
    };
    environment.systemPackages = [ pkgs.attic-client ];
    networking.firewall.allowedTCPPorts = [ 8080 ];
  };

  nodes.runner = {
    imports = [ module ];
    # A store of its own: what is not valid there is not there.
    virtualisation = {
      useNixStoreImage = true;
      writableStore = true;
      # On the disk: what was built outlives a reboot.
      writableStoreUseTmpfs = false;
    };
    services.flywheel = {
      enable = true;
      settings.caches.main.endpoints = [ "http://cache:8080" ];
      tokenFile = "/var/lib/secrets/push";
      # The cache is private.
      pullTokenFile.main = "/var/lib/secrets/pull";
      members = [
        "alice"
        "bob"
      ];
      client.installable = client;
      hook.enable = true;
    };
    # There is no token before the test has made one.
    systemd.services.flywheeld.wantedBy = lib.mkForce [ ];
    nix.settings = {
      substituters = lib.mkForce [ "http://cache:8080/main" ];
      # The cache's key is made while the test runs.
      require-sigs = false;
      narinfo-cache-negative-ttl = 0;
    };
    users.users = lib.genAttrs [ "alice" "bob" ] (_: {
      isNormalUser = true;
    });
    environment.systemPackages = [
      job
      pkgs.jq
    ];
  };

  testScript = ''
    import json


    def new_token(rights):
        return cache.succeed(f"atticd-atticadm make-token --sub ci --validity 1d {rights}").strip()


    def give(file, token):
        runner.succeed("install -d -m 0700 /var/lib/secrets")
        runner.succeed(f"printf %s '{token}' > /var/lib/secrets/{file}")


    def run(user, name, count, more=""):
        return json.loads(runner.succeed(f"su - {user} -c 'job {name} {count} {more}'"))


    def settled():
        runner.wait_until_succeeds("flywheelctl status --json | jq -e '.queue | .pending + .uploading == 0'")


    def is_state(state):
        runner.wait_until_succeeds(f"flywheelctl status --json | jq -e '.cache[0].state == \"{state}\"'")


    def expect(summary, **counts):
        for key, count in counts.items():
            assert summary[key] == count, f"{key} is not {count}: {summary}"


    start_all()
    cache.wait_for_unit("atticd.service")
    cache.wait_for_open_port(8080)
    push = "--pull main --push main"
    admin = new_token(f"{push} --create-cache main")
    cache.succeed(f"attic login local http://localhost:8080 {admin}", "attic cache create main")
    first = new_token(push)
    give("push", first)
    give("pull", new_token("--pull main"))
    runner.succeed("systemctl start flywheeld.service")
    is_state("online")

    with subtest("an empty cache: no client, and the build streams all the same"):
        runner.fail("test -e ${client}")
        expect(run("alice", "first", 3), outcome="complete", pushed=3, failed=[], pending=0)

    with subtest("the client is in the cache: it is fetched, and nothing is built for it"):
        # There is no upstream cache here that has the rest of its closure.
        cache.succeed("attic push --ignore-upstream-cache-filter main ${client}")
        runner.succeed("flywheelctl reload")
        runner.wait_until_succeeds("flywheelctl client exec -- --version")
        runner.succeed("test -e ${client}")

    with subtest("two jobs at once: each gets a summary of its own paths"):
        runner.succeed(
            "su - alice -c 'job left 4' > left.json & su - bob -c 'job right 5' > right.json & wait"
        )
        left, right = (json.loads(runner.succeed(f"cat {name}.json")) for name in ("left", "right"))
        expect(left, label="left", pushed=4, pending=0)
        expect(right, label="right", pushed=5, pending=0)

    with subtest("output 3 of 5 fails: 1 and 2 are in the cache, and the next job goes on from there"):
        expect(run("alice", "broken", 5, "3"), pushed=2)
        settled()
        runner.succeed("rm -f /home/*/result*", "nix-collect-garbage")
        log = runner.succeed("su - bob -c 'job broken 5' 2>&1 >mended.json")
        assert log.count("copying path") == 2, log
        expect(json.loads(runner.succeed("cat mended.json")), pushed=3, pending=0)

    with subtest("the cache goes away: the job does not fail, and everything arrives later"):
        cache.succeed("systemctl stop atticd.service")
        expect(run("alice", "away", 2, "0 5s"), outcome="pending", pushed=0, pending=2)
        cache.succeed("systemctl start atticd.service")
        settled()
        expect(run("alice", "away", 2), pushed=0, pending=0)

    with subtest("a reboot with paths pending"):
        cache.succeed("systemctl stop atticd.service")
        expect(run("alice", "reboot", 2, "0 5s"), outcome="pending", pending=2)
        runner.shutdown()
        runner.start()
        runner.wait_for_unit("multi-user.target")
        runner.succeed("systemctl start flywheeld.service")
        cache.succeed("systemctl start atticd.service")
        settled()
        runner.succeed("rm -f /home/*/result*", "nix-collect-garbage")
        log = runner.succeed("su - bob -c 'job reboot 2' 2>&1 >/dev/null")
        assert log.count("copying path") == 2, log

    with subtest("another token: a wrong one only makes paths wait"):
        give("push", "wrong")
        runner.succeed("systemctl restart flywheeld.service")
        expect(run("alice", "rotated", 1, "0 5s"), outcome="pending", pending=1)
        is_state("unauthorized")
        give("push", new_token(push))
        runner.succeed("systemctl restart flywheeld.service")
        settled()
        is_state("online")

    with subtest("the token is nowhere but in its file"):
        runner.fail(f"grep -raq '{first}' /var/log/journal /var/lib/flywheel /etc/flywheel")
  '';
}
