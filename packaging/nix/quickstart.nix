# The quick start as a program: packaging/quickstart.sh with a built flywheel.
{
  writeShellApplication,
  coreutils,
  gnugrep,
  gnused,
  nix,
  flywheel,
}:

writeShellApplication {
  name = "flywheel-quickstart";
  runtimeInputs = [
    coreutils
    gnugrep
    gnused
    nix
  ];
  text = ''
    export FLYWHEEL_BIN=${flywheel}/bin
    exec ${flywheel}/share/flywheel/quickstart.sh "$@"
  '';
}
