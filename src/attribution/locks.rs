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
    text.lines().filter_map(|line| parse_line(line, "WRITE"))
}

/// Returns inode and holder of each exclusive flock(2) lock of a file on this device.
/// Leaves out lines with `->`, whose processes wait for a lock and hold none.
pub(super) fn parse_device(text: &str, (major, minor): (u32, u32)) -> impl Iterator<Item = (u64, i32)> {
    let device = format!(" {major:02x}:{minor:02x}:");
    let lines = text.lines().filter(move |line| line.contains(&device));
    lines.filter_map(|line| parse_line(line, "WRITE")).filter_map(move |((a, b, inode), pid)| {
        if (a, b) == (major, minor) { Some((inode, pid)) } else { None }
    })
}

fn parse_line(line: &str, wanted: &str) -> Option<(FileId, i32)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (kind, _, mode, pid, file) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    if (kind, mode) != ("FLOCK", wanted) {
        return None;
    }
    let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
    let mut parts = file.split(':');
    let device = |part: Option<&str>| u32::from_str_radix(part?, 16).ok();
    Some(((device(parts.next())?, device(parts.next())?, parts.next()?.parse().ok()?), pid))
}

/// The device of a directory as `/proc/locks` writes it, which is that of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    /// The kernel says so.
    Certain((u32, u32)),
    /// The device that stat(2) reports, which may be another one (btrfs): then no lock
    /// matches, and makers stay unknown.
    ByStat((u32, u32)),
}

/// Returns the device of a directory. The surest way is to lock the directory for a
/// moment, shared, and to look where `/proc/locks` lists that. Where this is not possible,
/// `mountinfo` says it. It does not list every mount: not that of the store in a chroot
/// whose root is not a mount point. Then stat(2) remains, and that is logged once.
pub(super) fn device(proc: &Proc, dir: &Path) -> Option<Device> {
    static SAID: Once = Once::new();
    let opened = std::fs::File::open(dir).ok()?;
    if let Some(device) = own_lock(proc, &opened).or_else(|| listed_device(proc, &opened)) {
        return Some(Device::Certain(device));
    }
    let device = rustix::fs::fstat(&opened).ok()?.st_dev;
    SAID.call_once(|| {
        event!(
            LOCKS_BY_STAT,
            path = %dir.display(),
            "neither /proc/locks nor /proc/self/mountinfo names the device of {}: locks are matched by the device that stat(2) reports; if it is another one, makers of paths stay unknown",
            dir.display()
        );
    });
    Some(Device::ByStat((rustix::fs::major(device), rustix::fs::minor(device))))
}

/// Locks the directory and finds the lock in the table. Nix locks files in the directory
/// and never the directory itself.
fn own_lock(proc: &Proc, opened: &std::fs::File) -> Option<(u32, u32)> {
    let inode = rustix::fs::fstat(opened).ok()?.st_ino;
    let own = i32::try_from(std::process::id()).ok()?;
    rustix::fs::flock(opened, rustix::fs::FlockOperation::NonBlockingLockShared).ok()?;
    let text = proc.read("locks");
    let _ = rustix::fs::flock(opened, rustix::fs::FlockOperation::Unlock);
    let text = text?;
    let text = String::from_utf8_lossy(&text);
    let mut locks = text.lines().filter_map(|line| parse_line(line, "READ"));
    locks
        .find(|((_, _, listed), pid)| (*listed, *pid) == (inode, own))
        .map(|((major, minor, _), _)| (major, minor))
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
        assert_eq!(device(&empty.proc(), dir.path()), Some(Device::ByStat(expected)));
        assert_eq!(device(&empty.proc(), &dir.path().join("none")), None);
    }

    /// On btrfs stat(2) reports another device than the table of locks has.
    #[test]
    fn a_lock_of_our_own_says_the_device() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let fake = crate::attribution::tests::FakeProc::new();
        let (own, inode) = (std::process::id(), dir.path().metadata().unwrap().ino());
        let line = |mode, pid, inode| format!("1: FLOCK  ADVISORY  {mode} {pid} 00:2a:{inode} 0 EOF\n");
        fake.table(
            &[line("WRITE", own, inode), line("READ", own, inode + 1), line("READ", own + 1, inode)].concat(),
        );
        assert!(matches!(device(&fake.proc(), dir.path()), Some(Device::ByStat(_))), "locks of others");
        fake.table(&line("READ", own, inode));
        assert_eq!(device(&fake.proc(), dir.path()), Some(Device::Certain((0, 0x2a))));
    }

    #[test]
    fn our_own_lock_is_found() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("x.lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let Some(Device::Certain((major, minor))) = device(&Proc::default(), dir.path()) else { panic!() };
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
