#!/bin/sh
# flywheel with nix-fast-build, which has many builds at a time: the session covers
# all of them, paths are pushed while others build, and the end reports each.
# Arguments are those of nix-fast-build. The status is its own, or, with --strict
# after `run`, also that of the uploads.
exec flywheelctl run -- nix-fast-build --no-nom --skip-cached "$@"
