#!/usr/bin/env bash
# Makes the pictures of the README again:
#   docs/quickstart.svg   a terminal in which packaging/quickstart.sh has run; the text is
#                         what the script prints, and nothing is added but the prompt
#   docs/report.png       the report of its first pipeline, as a browser shows it; needs
#                         chromium and pngquant (apt-get install chromium pngquant)
# Usage: docs/picture.sh     (FLYWHEEL_BIN=DIR uses programs that are built already)
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shown=$work/terminal
{
    echo '$ packaging/quickstart.sh'
    REPORT=$work/report.html packaging/quickstart.sh
} >"$shown"

awk '
    { lines[NR] = $0 }
    END {
        step = 18; left = 16; top = 46
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"" top + NR * step "\" role=\"img\">"
        print "<title>packaging/quickstart.sh in a terminal</title>"
        print "<style>text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace;fill:#d6deeb;white-space:pre}" \
            ".prompt{fill:#7fdbca}.head{font-weight:bold;fill:#ffffff}.sum{fill:#addb67}</style>"
        print "<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0b1622\"/>"
        print "<circle cx=\"20\" cy=\"16\" r=\"5\" fill=\"#ff5f57\"/><circle cx=\"38\" cy=\"16\" r=\"5\" fill=\"#febc2e\"/>" \
            "<circle cx=\"56\" cy=\"16\" r=\"5\" fill=\"#28c840\"/>"
        for (i = 1; i <= NR; i++) {
            class = ""
            if (lines[i] ~ /^\$ /) class = " class=\"prompt\""
            else if (lines[i] ~ /^Pipeline |^Everything /) class = " class=\"head\""
            else if (lines[i] ~ /^watch-store pushed /) class = " class=\"sum\""
            gsub(/&/, "\\&amp;", lines[i]); gsub(/</, "\\&lt;", lines[i]); gsub(/>/, "\\&gt;", lines[i])
            if (lines[i] != "")
                print "<text x=\"" left "\" y=\"" top + (i - 1) * step "\"" class " xml:space=\"preserve\">" lines[i] "</text>"
        }
        print "</svg>"
    }
' "$shown" >docs/quickstart.svg

if ! command -v chromium >/dev/null || ! command -v pngquant >/dev/null; then
    echo "docs/report.png stays as it is: chromium or pngquant is missing" >&2
    exit 0
fi
# --no-sandbox: the page is this project's own, and root has no other way.
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$work/profile" \
    --window-size=1100,820 --screenshot="$work/report.png" "file://$work/report.html" >/dev/null 2>&1
pngquant --force --speed 1 --strip --output docs/report.png 32 "$work/report.png"
