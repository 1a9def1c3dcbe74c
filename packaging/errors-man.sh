#!/bin/sh
# flywheel-errors(7) on standard output, from the page docs/errors.md.
# Usage: packaging/errors-man.sh FILE
set -eu
cat <<'END'
.TH flywheel-errors 7 "" flywheel "Errors"
.SH NAME
flywheel\-errors \- what each error of flywheel means, and what to do about it
END
awk '
    # A backslash would be an escape, "-" a hyphen, a leading dot or quote a request.
    function plain(text) {
        gsub(/\\/, "\\e", text)
        gsub(/-/, "\\-", text)
        # [text](page) is the text and the page, `word` is bold.
        while (match(text, /\[[^]]*\]\([^)]*\)/)) {
            link = substr(text, RSTART + 1, RLENGTH - 2)
            split(link, parts, /\]\(/)
            text = substr(text, 1, RSTART - 1) parts[1] " (" parts[2] ")" substr(text, RSTART + RLENGTH)
        }
        while (match(text, /`[^`]*`/))
            text = substr(text, 1, RSTART - 1) "\\fB" substr(text, RSTART + 1, RLENGTH - 2) "\\fR" substr(text, RSTART + RLENGTH)
        return text
    }
    function put(text) {
        if (text ~ /^[.'\'']/) text = "\\&" text
        print text
    }
    /^# / { print ".SH DESCRIPTION"; next }
    /^## / {
        text = toupper(substr($0, 4))
        gsub(/`/, "", text)
        print ".SH \"" text "\""
        next
    }
    /^\|[ -]*-/ { next }
    /^\|/ {
        n = split($0, cells, / *\| */)
        if (!in_table) {
            for (i = 2; i < n; i++) heads[i] = cells[i]
            in_table = 1
            next
        }
        print ".TP"
        put("\\fB" plain(cells[2]) "\\fR")
        for (i = 3; i < n; i++) {
            head = heads[i]
            if (i > 3) print ".br"
            put(toupper(substr(plain(head), 1, 1)) substr(plain(head), 2) ": " plain(cells[i]))
        }
        next
    }
    { in_table = 0 }
    /^$/ { print ".PP"; next }
    { put(plain($0)) }
' "$1"
cat <<'END'
.SH "SEE ALSO"
.BR flywheelctl (1),
.BR flywheeld (8),
.BR flywheel.toml (5)
END
