//! What holds for every file of `/proc` that is read.

use super::{lineage, locks, proc};

/// Reads bytes as each of the files.
pub(crate) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stat) = proc::parse_stat(&text) {
        let state = if stat.zombie { "Z" } else { "S" };
        let (id, zeros) = (stat.id, "0 ".repeat(15));
        let written = format!(
            "{} ({}) {state} {} 0 {} {zeros}{} 0",
            id.pid, stat.comm, stat.ppid, stat.session, id.start
        );
        assert_eq!(proc::parse_stat(&written), Some(stat), "{written}");
    }
    for name in ["Uid:", "Gid:", "NSpid:"] {
        let _ = proc::field(&text, name);
    }
    assert!(proc::parse_cgroup(&text).is_none_or(|path| path != "/" && text.contains(&path)));
    let locks: Vec<_> = locks::parse(&text).collect();
    assert!(locks.len() <= text.lines().count() && locks.iter().all(|(_, pid)| *pid > 0));
    let _ = locks::parse_mounts(&text, "40");
    lineage::fuzz(bytes);
}
