#!/bin/bash
# Boots a container from the image and stays until it is powered off. What it
# writes is in memory and gone with it; so are its mounts and its control group.
# Told to $NOTIFY_SOCKET: its first process (X_NSPAWN_LEADER_PID=), READY=1.
# Usage: tests/container/boot.sh IMAGE DIRECTORY     an empty directory to mount in
#        tests/container/boot.sh --possible          or one line that says why not
set -euo pipefail

groups=$(findmnt -n -o TARGET -t cgroup2 | head -n 1) || true

if [ "${1:-}" = --possible ]; then
    [ "$(id -u)" = 0 ] || { echo "containers need root"; exit 1; }
    for command in systemd-nspawn nsenter unshare debootstrap dpkg-shlibdeps; do
        command -v "$command" >/dev/null ||
            { echo "$command is not here (apt-get install systemd-container debootstrap dpkg-dev)"; exit 1; }
    done
    grep -qw overlay /proc/filesystems || { echo "the kernel has no overlay file system"; exit 1; }
    probe=$groups/flywheel-probe-$$
    { [ -n "$groups" ] && mkdir "$probe" && rmdir "$probe"; } 2>/dev/null ||
        { echo "no control group (version 2) can be made here"; exit 1; }
    unshare --mount --propagation private mount -t tmpfs tmpfs /mnt 2>/dev/null ||
        { echo "nothing can be mounted here"; exit 1; }
    exit 0
fi

image=$1 top=$2
if [ -z "${FLYWHEEL_TEST_MOUNTED:-}" ]; then
    export FLYWHEEL_TEST_MOUNTED=1
    exec unshare --mount --propagation private "$0" "$image" "$top"
fi

# Ends whatever is in a control group, and the group.
clear_up() {
    { echo 1 >"$1/cgroup.kill"; } 2>/dev/null || true
    for _ in $(seq 100); do
        find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$1" ] || return 0
        sleep 0.05
    done
}
# Whoever was killed could not.
for old in "$groups"/flywheel-test-*; do
    [ ! -d "$old" ] || [ -d "/proc/${old##*-}" ] || clear_up "$old"
done
# Its own place among the control groups: two containers, or anything of this
# host, must not meet there.
group=$groups/flywheel-test-$$
mkdir "$group"
echo $$ >"$group/cgroup.procs"
mount -t tmpfs -o mode=0755 tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay -o "lowerdir=$image,upperdir=$top/upper,workdir=$top/work" overlay "$top/root"
# A file system of its own, as stores often are: an overlay's inode numbers are
# not those of the kernel's list of locks.
cp -a "$image/nix" "$top/nix"

# Outside of it again, so that it can be ended as a whole: also when the test
# is killed, of which its parent's death signal tells.
leave() {
    echo $$ >"$groups/cgroup.procs"
    clear_up "$group"
    rmdir "/run/systemd/nspawn/propagate/fw-$$" 2>/dev/null || true
}
trap 'leave; exit 143' TERM

# 133: it was rebooted, and --keep-unit leaves it to us to boot it again.
status=133
while [ $status = 133 ]; do
    status=0
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --directory="$top/root" --bind="$top/nix:/nix" \
        --boot --register=no --keep-unit --private-network --machine="fw-$$" --console=pipe --notify-ready=yes \
        </dev/null &
    # A trap is run at once while this waits, and not while a command runs.
    wait $! || status=$?
done
leave
exit $status
