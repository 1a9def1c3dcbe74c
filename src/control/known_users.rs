//! Which users the kernel can name to this process (user_namespaces(7)). In a user namespace
//! of its own, all users of the host that the namespace does not map have the same number
//! here, the overflow number, so that one could pass for another. Must not know what a
//! caller asks for.

/// The number that stands for all users who are not mapped, where the kernel does not say.
const OVERFLOW: u32 = 65_534;

/// The users who have a number of their own here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownUsers {
    /// First number inside, and how many follow.
    ranges: Vec<(u32, u32)>,
    overflow: u32,
}

impl KnownUsers {
    /// Reads the map of this process's namespace. Without `/proc` all numbers count as users.
    pub(super) fn here() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).ok();
        let map = read("/proc/self/uid_map").unwrap_or_else(|| "0 0 4294967295".to_owned());
        let overflow = read("/proc/sys/kernel/overflowuid").and_then(|text| text.trim().parse().ok());
        Self::parse(&map, overflow.unwrap_or(OVERFLOW))
    }

    fn parse(map: &str, overflow: u32) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
        };
        Self { ranges: map.lines().filter_map(range).collect(), overflow }
    }

    /// Whether this number is one user, and not all those who have none here.
    pub(super) fn are_told_apart_by(&self, uid: u32) -> bool {
        uid != self.overflow || self.ranges.iter().any(|(first, count)| uid.wrapping_sub(*first) < *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overflow_number_is_a_user_only_where_it_is_mapped() {
        for (map, known) in [
            ("         0          0 4294967295\n", true),
            ("0 1000 1\n", false),
            ("0 1000 1\n1 100000 65535\n", true),
            ("0 1000 1\n1 100000 65533\n", false),
            ("0 1000 1\n65534 100000 1\n", true),
            ("", false),
        ] {
            let users = KnownUsers::parse(map, 65_534);
            assert_eq!(users.are_told_apart_by(65_534), known, "{map:?}");
            assert!(users.are_told_apart_by(0) && users.are_told_apart_by(1000), "{map:?}");
        }
    }
}
