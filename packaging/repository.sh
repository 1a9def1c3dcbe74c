#!/usr/bin/env bash
# Makes a signed repository for apt and dnf of a release's packages. Any web server
# can serve the directory; docs/release.md says how it is published, docs/install.md
# how a host uses it.
# Usage: packaging/repository.sh DIRECTORY KEY URL PACKAGE…
#   DIRECTORY   where it is made; must not exist
#   KEY         the secret key of gpg that signs it, by fingerprint or address
#   URL         the address at which the directory is served
#   PACKAGE…    .deb and .rpm files
# Needs apt-ftparchive (apt-utils), createrepo_c (createrepo-c) and gpg.
set -euo pipefail
umask 022
[ $# -ge 4 ] || { sed -n '2,10s/^# //p' "$0" >&2; exit 2; }
to=$1 key=$2 url=${3%/}
shift 3
for command in apt-ftparchive createrepo_c gpg; do
    command -v "$command" >/dev/null || { echo "missing: $command (see the head of this script)" >&2; exit 1; }
done
sign() { gpg --batch --yes --local-user "$key" --armor "$@"; }

mkdir "$to"
mkdir -p "$to/deb/pool" "$to/rpm"
for package in "$@"; do
    case $package in
    *.deb) cp "$package" "$to/deb/pool/" ;;
    *.rpm) cp "$package" "$to/rpm/" ;;
    *) echo "$package is neither a .deb nor a .rpm file" >&2; exit 2 ;;
    esac
done
gpg --batch --armor --export "$key" >"$to/flywheel.asc"
[ -s "$to/flywheel.asc" ] || { echo "gpg has no key $key" >&2; exit 1; }

# --- apt --------------------------------------------------------------------------
cd "$to/deb"
architectures=$(for deb in pool/*.deb; do dpkg-deb -f "$deb" Architecture; done | sort -u | tr '\n' ' ')
for architecture in $architectures; do
    list=dists/stable/main/binary-$architecture
    mkdir -p "$list"
    apt-ftparchive --arch "$architecture" packages pool >"$list/Packages"
    gzip -9nk "$list/Packages"
done
# Before the file is there that it would list.
release=$(apt-ftparchive -o APT::FTPArchive::Release::Origin=flywheel -o APT::FTPArchive::Release::Suite=stable \
    -o APT::FTPArchive::Release::Codename=stable -o APT::FTPArchive::Release::Components=main \
    -o APT::FTPArchive::Release::Architectures="${architectures% }" release dists/stable)
printf '%s\n' "$release" >dists/stable/Release
sign --clearsign --output dists/stable/InRelease dists/stable/Release
sign --detach-sign --output dists/stable/Release.gpg dists/stable/Release
cd - >/dev/null
# apt reads the key in the file itself.
{
    printf 'Types: deb\nURIs: %s/deb\nSuites: stable\nComponents: main\nSigned-By:\n' "$url"
    sed -e 's/^$/./' -e 's/^/ /' "$to/flywheel.asc"
} >"$to/flywheel.sources"

# --- dnf --------------------------------------------------------------------------
createrepo_c --quiet "$to/rpm"
sign --detach-sign --output "$to/rpm/repodata/repomd.xml.asc" "$to/rpm/repodata/repomd.xml"
# The signed list has the checksum of each package.
cat >"$to/flywheel.repo" <<END
[flywheel]
name=flywheel
baseurl=$url/rpm
gpgkey=$url/flywheel.asc
repo_gpgcheck=1
gpgcheck=0
enabled=1
END
echo "$to"
