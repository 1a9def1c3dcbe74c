//! Whether the Nix database is the one that was read before. Pure.

use crate::store::Mark;

/// Upper bound of the marks that are kept.
const MARKS: usize = 16;
/// The latest marks, which are all kept.
const LATEST: usize = 4;

/// What a look at the database means for the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the one that was read, and goes on from the cursor.
    Same,
    /// It went back to an earlier state, as after a restored snapshot: rows above this
    /// one are not the ones that were read.
    WentBack(i64),
    /// It is another database, and counts from the beginning.
    Another,
}

/// Compares the database with what was read of it. `is_same_file`: it has the identity
/// of the cursor, which stands at the row `last`; `head` is the highest id that the
/// database has given, and `there` has for each mark the row that has its id now. A row
/// that was collected contradicts nothing.
pub(super) fn standing(
    is_same_file: bool,
    last: i64,
    head: i64,
    marks: &[Mark],
    there: &[Option<Mark>],
) -> Standing {
    if !is_same_file {
        return Standing::Another;
    }
    let contradicts = |(mark, now): &(&Mark, &Option<Mark>)| now.as_ref().is_some_and(|now| now != *mark);
    let first_wrong = marks.iter().zip(there).find(contradicts).map(|(mark, _)| mark.id);
    if first_wrong.is_none() && head >= last {
        return Standing::Same;
    }
    let below = first_wrong.unwrap_or(i64::MAX).min(head.saturating_add(1));
    let matching = marks.iter().zip(there).filter(|(mark, now)| now.as_ref() == Some(*mark));
    let from = matching.map(|(mark, _)| mark.id).filter(|id| *id < below).max();
    Standing::WentBack(from.unwrap_or(0))
}

/// Adds the mark of the last row that was read. The latest marks stay, and of the older
/// ones those that lie furthest apart.
pub(super) fn add(marks: &mut Vec<Mark>, mark: Mark) {
    marks.retain(|known| known.id < mark.id);
    marks.push(mark);
    if marks.len() > MARKS {
        let gap = |at: &usize| marks[at + 1].id - marks[at - 1].id;
        if let Some(at) = (1..marks.len() - LATEST).min_by_key(gap) {
            marks.remove(at);
        }
    }
}

/// Returns the marks as text, for the ledger.
pub(super) fn written(marks: &[Mark]) -> String {
    marks.iter().map(|m| format!("{} {} {}\n", m.id, m.registered_at, m.path.base())).collect()
}

/// Parses the text that [`written`] returns. Leaves out lines that it cannot parse.
pub(super) fn read(text: &str) -> Vec<Mark> {
    let mark = |line: &str| {
        let mut words = line.split(' ');
        let (id, registered_at) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Mark { id, registered_at, path: crate::types::StorePath::parse(words.next()?).ok()? })
    };
    text.lines().filter_map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StorePath;

    fn mark(id: i64, what: u32) -> Mark {
        Mark { id, registered_at: id * 10, path: StorePath::parse(&format!("{what:032}-p")).unwrap() }
    }

    #[test]
    fn the_whole_table() {
        let marks = [mark(10, 1), mark(20, 2), mark(30, 3)];
        let same = |n: usize| Some(marks[n].clone());
        let other = |id| Some(mark(id, 9));
        let again = Some(Mark { registered_at: 1, ..mark(30, 3) });
        for (what, is_same, head, there, expected) in [
            ("the same", true, 30, [same(0), same(1), same(2)], Standing::Same),
            ("more rows", true, 99, [same(0), same(1), same(2)], Standing::Same),
            ("collected marks", true, 30, [None, None, None], Standing::Same),
            ("fewer rows", true, 25, [same(0), same(1), None], Standing::WentBack(20)),
            ("fewer rows, the mark collected", true, 25, [same(0), None, None], Standing::WentBack(10)),
            ("ids given again", true, 40, [same(0), same(1), other(30)], Standing::WentBack(20)),
            ("the same path registered again", true, 40, [same(0), same(1), again], Standing::WentBack(20)),
            ("an older row is another", true, 40, [same(0), other(20), same(2)], Standing::WentBack(10)),
            ("nothing matches", true, 5, [other(10), None, None], Standing::WentBack(0)),
            ("another file", false, 99, [same(0), same(1), same(2)], Standing::Another),
        ] {
            assert_eq!(standing(is_same, 30, head, &marks, &there), expected, "{what}");
        }
        assert_eq!(standing(true, 0, 0, &[], &[]), Standing::Same, "nothing was read yet");
    }

    #[test]
    fn marks_are_few_spread_and_include_the_latest() {
        let mut marks = Vec::new();
        for id in 1..=1_000 {
            add(&mut marks, mark(id, 1));
        }
        assert_eq!(marks.len(), MARKS);
        let ids: Vec<i64> = marks.iter().map(|mark| mark.id).collect();
        assert!(ids.is_sorted() && ids[0] == 1 && ids.ends_with(&[997, 998, 999, 1_000]), "{ids:?}");
        assert!(ids.windows(2).all(|pair| pair[1] - pair[0] < 300), "{ids:?}");
        assert_eq!(read(&written(&marks)), marks);
        assert_eq!(read("1 2\nnonsense\n"), []);
        // After the database went back, later marks are of rows that do not exist any more.
        add(&mut marks, mark(500, 2));
        assert_eq!(marks.last(), Some(&mark(500, 2)));
    }
}
