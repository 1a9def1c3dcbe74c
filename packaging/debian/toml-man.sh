#!/bin/sh
# flywheel.toml(5) on standard output, from the example configuration, which
# shows every key with its default.
# Usage: packaging/debian/toml-man.sh FILE
set -eu
cat <<'END'
.TH flywheel.toml 5 "" flywheel "File formats"
.SH NAME
flywheel.toml \- configuration of the flywheel daemon
.SH SYNOPSIS
/etc/flywheel/flywheel.toml
.br
/etc/flywheel/flywheel.toml.d/*.toml
.SH DESCRIPTION
TOML. This is the file as it is installed: every key with its default, or with
an example where there is none.
.PP
.nf
END
# A leading dot or quote would be a request, a backslash an escape, "-" a hyphen.
sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g' "$1"
cat <<'END'
.fi
.SH SEE ALSO
.BR flywheeld (8),
.BR flywheelctl (1)
END
