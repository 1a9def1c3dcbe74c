# The book of docs/ as HTML.
{
  lib,
  stdenvNoCC,
  mdbook,
}:

stdenvNoCC.mkDerivation {
  pname = "flywheel-book";
  inherit ((lib.importTOML ../../Cargo.toml).package) version;
  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../CHANGELOG.md
      ../../SECURITY.md
      ../../action.yml
      ../../docs
      ../../packaging
      ../../templates
    ];
  };
  nativeBuildInputs = [ mdbook ];
  buildPhase = "mdbook build docs";
  installPhase = ''
    mkdir -p $out/share/doc/flywheel
    cp -r target/book $out/share/doc/flywheel/html
  '';
}
