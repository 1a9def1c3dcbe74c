# The daemon as an OCI image: `nix build .#container`, then `podman load -i result`.
# docs/containers.md says what such a container needs of its host.
{
  dockerTools,
  cacert,
  # Static: the host's store is mounted over the image's own /nix.
  flywheel,
}:

dockerTools.buildLayeredImage {
  name = "flywheel";
  tag = flywheel.version;
  # Files and no links into the store, for the same reason.
  extraCommands = ''
    mkdir -p bin etc/ssl/certs etc/flywheel run/flywheel var/lib/flywheel
    cp ${flywheel}/bin/flywheeld ${flywheel}/bin/flywheelctl bin/
    cp ${cacert}/etc/ssl/certs/ca-bundle.crt etc/ssl/certs/ca-certificates.crt
    echo 'root:x:0:0:root:/:/sbin/nologin' >etc/passwd
    echo 'flywheel:x:970:970:flywheel daemon:/var/lib/flywheel:/sbin/nologin' >>etc/passwd
    printf 'root:x:0:\nflywheel:x:970:\n' >etc/group
    mkdir -m 1777 tmp
  '';
  config = {
    Entrypoint = [ "/bin/flywheeld" ];
    User = "0:970";
    StopSignal = "SIGTERM";
    Env = [
      "PATH=/bin"
      "STATE_DIRECTORY=/var/lib/flywheel"
      "RUNTIME_DIRECTORY=/run/flywheel"
    ];
  };
}
