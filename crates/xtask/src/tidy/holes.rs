//! The index of holes in `docs/TESTING.md`: each hole has its row, and each test that a row names exists.
//!
//! Invariant: purely textual. A test is `fn its_name()` in some Rust file; a row without one says why.

use super::Finding;

/// The page that holds the index.
pub const INDEX: &str = "docs/TESTING.md";
/// How many holes there are.
const HOLES: usize = 23;

/// Rows look like `| H-01 | what | tests |`; tests stand in backquotes.
pub fn check(index: &str, rust: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rows: Vec<&str> = index.lines().filter(|line| line.starts_with("| H-")).collect();
    for number in 1..=HOLES {
        let begin = format!("| H-{number:02} |");
        if rows.iter().filter(|row| row.starts_with(&begin)).count() != 1 {
            findings
                .push(Finding::new(INDEX, format!("hole H-{number:02} hasn't exactly one row")));
        }
    }
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let hole = cells.get(1).copied().unwrap_or_default();
        let shown = cells.get(3).copied().unwrap_or_default();
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !shown.contains("none yet:") {
            findings.push(Finding::new(INDEX, format!("{hole} names no test and no reason")));
        }
        for name in names {
            let function = format!("fn {name}()");
            if !rust.iter().any(|text| text.contains(&function)) {
                findings.push(Finding::new(INDEX, format!("{hole}: there is no test {name}")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(rows: usize, last: &str) -> String {
        let rows = (1..=rows).map(|number| format!("| H-{number:02} | a hole | `good` |\n"));
        rows.chain([last.to_owned()]).collect()
    }

    #[test]
    fn every_hole_has_a_row_and_every_named_test_exists() {
        let whats = |index: &str| {
            let found = check(index, &["fn good() {}".to_owned()]);
            found.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
        };
        assert_eq!(whats(&index(23, "")), [""; 0]);
        assert_eq!(whats(&index(22, "")), ["hole H-23 hasn't exactly one row"]);
        assert_eq!(whats(&index(22, "| H-23 | a hole | `bad` |")), ["H-23: there is no test bad"]);
        let silent = whats(&index(22, "| H-23 | a hole | |"));
        assert_eq!(silent, ["H-23 names no test and no reason"]);
        assert_eq!(whats(&index(22, "| H-23 | a hole | none yet: no such part |")), [""; 0]);
    }
}
