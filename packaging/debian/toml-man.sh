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
The files are TOML. The first one documents every setting with its default, or
with an example where there is none, and may stay as it is. The others are this
host's settings; they are read afterwards, in the order of their names.
.PP
.B flywheeld \-\-check\-config
checks the files,
.B systemctl reload flywheeld
puts them to use.
.SH SETTINGS
.nf
END
# A leading dot or quote would be a request, a backslash an escape, "-" a hyphen.
sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g' "$1"
cat <<'END'
.fi
.SH EXAMPLES
.PP
One Attic server, with the push token in /etc/credstore/attic\-token:
.PP
.nf
.RS
# /etc/flywheel/flywheel.toml.d/main.toml
[caches.main]
endpoints = ["https://attic.example.com"]
.RE
.fi
.PP
Another cache for jobs that are not trusted, which may not use the first one:
.PP
.nf
.RS
# /etc/flywheel/flywheel.toml.d/untrusted.toml
[caches.untrusted]
endpoints = ["https://attic.example.com"]
token_file = "/etc/flywheel/untrusted\-token"

[[route]]
user = "ci\-untrusted"
cache = "untrusted"
.RE
.fi
.SH FILES
.TP
/etc/credstore/attic\-token
The push token of all caches that have no other.
.TP
/etc/credstore/attic\-token\-NAME
The push token of [caches.NAME]; a drop\-in of the unit has LoadCredential=attic\-token\-NAME.
.SH "SEE ALSO"
.BR flywheeld (8),
.BR flywheelctl (1)
END
