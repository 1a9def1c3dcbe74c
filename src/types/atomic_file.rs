//! Replacing a file as a whole.

use std::fs::{File, OpenOptions, Permissions, remove_file, rename};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

/// Replaces `file` with `content`, so that a reader sees the old file or the
/// new one and never a part, also after a power cut: the content and the
/// directory entry are on the disk when this returns.
///
/// `mode` holds whatever the umask is, and from the first moment on. `group`
/// is the number of the group that the file is to belong to; none leaves it to
/// the directory. The old file stays as it is when anything fails.
pub fn replace_file(file: &Path, content: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let new = file.with_file_name(format!(".{name}.{}~", std::process::id()));
    let written = (|| {
        let _ = remove_file(&new);
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(content)?;
        if group.is_some() {
            fchown(&out, None, group)?;
        }
        out.set_permissions(Permissions::from_mode(mode))?;
        out.sync_all()?;
        rename(&new, file)
    })();
    if written.is_err() {
        let _ = remove_file(&new);
        return written;
    }
    sync_dir(file.parent().unwrap_or(Path::new(".")))
}

/// Puts a directory's entries on the disk: a file that was made or renamed in
/// it is there after a power cut. A file system that cannot do this for a
/// directory says so with `EINVAL`, which counts as done.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    match File::open(dir)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_rights_from_the_beginning_and_nothing_else_is_left() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("netrc");
        let group = rustix::process::getegid().as_raw();
        replace_file(&file, b"one", 0o640, Some(group)).unwrap();
        replace_file(&file, b"two", 0o640, None).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode, std::fs::read(&file).unwrap().as_slice()), (0o640, &b"two"[..]));
        assert!(replace_file(&top.path().join("no/netrc"), b"x", 0o640, None).is_err());
        assert!(replace_file(top.path(), b"x", 0o640, None).is_err(), "a directory stays one");
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 1);
    }
}
