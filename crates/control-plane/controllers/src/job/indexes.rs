//! Sets of completion indexes as the API writes them: `1,3-5`.

use std::collections::BTreeSet;

/// Malformed parts are left out; at most `count` indexes are read.
pub(super) fn parse(text: &str, count: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(count - 1));
        }
    }
    indexes
}

/// Runs of two are `1,2`, longer ones `1-3`.
pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = indexes.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while rest.next_if(|next| *next == last + 1).is_some() {
            last += 1;
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.push(format!("{first},{last}")),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_read_back_as_they_were_written() {
        for text in ["", "0", "0,1", "0-2,5,7,8,10-12"] {
            assert_eq!(format(&parse(text, 100)), text);
        }
        assert_eq!(format(&parse("0-1000000000,x,-3", 3)), "0-2");
    }
}
