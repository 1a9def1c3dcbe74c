//! Reads from `/proc/locks` (proc(5)) which process holds which file lock. Every
//! user may read this file.
//!
//! Must not know: Nix, and about processes more than their numbers.
//!
//! When the holder is in another process namespace, the kernel leaves its lock out
//! or lists it with the process number 0.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Once;

use super::proc::Proc;
use crate::observe::event;

/// A file, as `/proc/locks` names it: major and minor number of the device, inode.
pub(super) type FileId = (u32, u32, u64);

/// Returns the holder of each exclusive flock(2) lock, on all devices.
#[cfg(any(fuzzing, test))]
pub(super) fn parse(text: &str) -> impl Iterator<Item = (FileId, i32)> {
    text.lines().filter_map(parse_line)
}

/// Returns inode and holder of each exclusive flock(2) lock of a file on this device.
/// Leaves out lines with `->`, whose processes wait for a lock and hold none.
pub(super) fn parse_device(text: &str, (major, minor): (u32, u32)) -> impl Iterator<Item = (u64, i32)> {
    let device = format!(" {major:02x}:{minor:02x}:");
    let lines = text.lines().filter(move |line| line.contains(&device));
    lines.filter_map(parse_line).filter_map(
        move |((a, b, inode), pid)| {
            if (a, b) == (major, minor) { Some((inode, pid)) } else { None }
        },
    )
}

fn parse_line(line: &str) -> Option<(FileId, i32)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (kind, _, mode, pid, file) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    if (kind, mode) != ("FLOCK", "WRITE") {
        return None;
    }
    let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
    let mut parts = file.split(':');
    let device = |part: Option<&str>| u32::from_str_radix(part?, 16).ok();
    Some(((device(parts.next())?, device(parts.next())?, parts.next()?.parse().ok()?), pid))
}

/// Returns the device of a directory as `/proc/locks` writes it: that of the
/// superblock, which `mountinfo` has too. On a file system with several devices
/// (btrfs, overlayfs), stat(2) reports another one. If `mountinfo` does not list
/// the mount (the store of a chroot whose root is not a mount point), this returns
/// the device of stat(2) and logs that once. If that device is the wrong one, no
/// lock matches and makers stay unknown.
pub(super) fn device(proc: &Proc, dir: &Path) -> Option<(u32, u32)> {
    static SAID: Once = Once::new();
    let opened = std::fs::File::open(dir).ok()?;
    if let Some(device) = listed_device(proc, &opened) {
        return Some(device);
    }
    let device = rustix::fs::fstat(&opened).ok()?.st_dev;
    SAID.call_once(|| {
        event!(
            LOCKS_BY_STAT,
            path = %dir.display(),
            "the mount of {} is not in /proc/self/mountinfo: locks are matched by the device that stat(2) reports; if it is another one, makers of paths stay unknown",
            dir.display()
        );
    });
    Some((rustix::fs::major(device), rustix::fs::minor(device)))
}

fn listed_device(proc: &Proc, opened: &std::fs::File) -> Option<(u32, u32)> {
    let info = String::from_utf8(proc.read(&format!("self/fdinfo/{}", opened.as_raw_fd()))?).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = proc.read("self/mountinfo")?;
    parse_mounts(&String::from_utf8_lossy(&mounts), mount)
}

pub(super) fn parse_mounts(text: &str, mount: &str) -> Option<(u32, u32)> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(mount))?;
    let (major, minor) = line.split_whitespace().nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn exclusive_flocks_count() {
        let text = "\
1: FLOCK  ADVISORY  WRITE 10420 fe:00:10010895 0 EOF
2: POSIX  ADVISORY  READ 10420 fe:00:10010892 128 128
3: FLOCK  ADVISORY  READ 8576 fe:00:10133506 0 EOF
4: FLOCK  ADVISORY  WRITE 4701 00:2a:10010636 0 EOF
4: -> FLOCK  ADVISORY  WRITE 5965 00:2a:10010636 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:7 0 EOF
6: OFDLCK ADVISORY  WRITE -1 fe:00:8 0 EOF
7: FLOCK  ADVISORY  WRITE nonsense
";
        let expected = [((0xfe, 0, 10_010_895), 10420), ((0, 0x2a, 10_010_636), 4701)];
        assert_eq!(parse(text).collect::<HashMap<_, _>>(), HashMap::from(expected));
        assert_eq!(parse("").count(), 0);
        assert_eq!(parse_device(text, (0xfe, 0)).collect::<Vec<_>>(), [(10_010_895, 10420)]);
        assert_eq!(parse_device(text, (0, 0x2a)).collect::<Vec<_>>(), [(10_010_636, 4701)]);
    }

    #[test]
    fn the_device_is_the_superblocks() {
        let text = "21 1 254:0 / / rw - ext4 /dev/vda rw\n40 21 0:36 /@nix /nix rw - btrfs /dev/vdb rw\n";
        assert_eq!(parse_mounts(text, "40"), Some((0, 36)));
        assert_eq!(parse_mounts(text, "4"), None);
    }

    /// This is the case in a chroot whose root is not a mount point.
    #[test]
    fn a_mount_that_is_not_listed_has_the_device_of_stat() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let empty = crate::attribution::tests::FakeProc::new();
        let expected = dir.path().metadata().unwrap().dev();
        let expected = (rustix::fs::major(expected), rustix::fs::minor(expected));
        assert_eq!(device(&empty.proc(), dir.path()), Some(expected));
        assert_eq!(device(&empty.proc(), &dir.path().join("none")), None);
    }

    #[test]
    fn our_own_lock_is_found() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("x.lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let (major, minor) = device(&Proc::default(), dir.path()).unwrap();
        let id = (major, minor, file.metadata().unwrap().ino());
        let me = i32::try_from(std::process::id()).unwrap();
        let holder = || {
            let text = std::fs::read_to_string("/proc/locks").unwrap();
            parse(&text).find(|(file, _)| *file == id).map(|(_, pid)| pid)
        };
        assert_eq!(holder(), Some(me));
        drop(file);
        assert_eq!(holder(), None);
    }
}
