//! The indexes in `docs/TESTING.md`: each hole and each rule of the protocol has its row, and what a row names exists.
//!
//! Invariant: purely textual. A test is `fn its_name(` in some Rust file, a fault a name in the drill's tables; a cell
//! without one says why.

use std::collections::BTreeSet;

use super::Finding;

/// The page that holds the indexes.
pub const PAGE: &str = "docs/TESTING.md";
/// The page that holds the rules.
pub const LAWS: &str = "docs/LAWS.md";
/// How many holes there are.
const HOLES: usize = 23;
/// Instead of names: `none yet: why`.
const EXCUSE: &str = "none yet:";

/// What the indexes may name.
pub struct Known<'a> {
    /// Every Rust file.
    pub rust: &'a [String],
    /// Of the mutation drill.
    pub faults: &'a BTreeSet<String>,
}

/// What names in one column are.
#[derive(Debug, Clone, Copy)]
enum Named {
    Test,
    Fault,
}

impl Named {
    const fn word(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Fault => "fault",
        }
    }
}

/// One table: a row for each of `names`, with things that exist in some columns, counted from 1.
struct Index<'a> {
    what: &'a str,
    names: Vec<String>,
    columns: &'a [(usize, Named)],
}

/// `laws`: [`LAWS`]; `page`: [`PAGE`].
pub fn check(laws: &str, page: &str, known: &Known<'_>) -> Vec<Finding> {
    let holes = (1..=HOLES).map(|number| format!("H-{number:02}")).collect();
    let rules = rules_of(laws);
    let holes = Index { what: "hole", names: holes, columns: &[(3, Named::Test)] };
    let columns = [(2, Named::Test), (3, Named::Fault)];
    let rules = Index { what: "rule", names: rules, columns: &columns };
    [holes, rules].iter().flat_map(|index| index.check(page, known)).collect()
}

/// Rules stand as `- **P1 Record.** …`.
fn rules_of(laws: &str) -> Vec<String> {
    let heads = laws.lines().filter_map(|line| line.strip_prefix("- **P"));
    let names = heads.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    names.filter(|number| !number.is_empty()).map(|number| format!("P{number}")).collect()
}

impl Index<'_> {
    /// Rows look like `| H-01 | what | tests |`; names stand in backquotes.
    fn check(&self, page: &str, known: &Known<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let rows: Vec<Vec<&str>> = page.lines().filter_map(cells).collect();
        for name in &self.names {
            let mut rows = rows.iter().filter(|row| row.get(1) == Some(&name.as_str()));
            let (Some(row), None) = (rows.next(), rows.next()) else {
                let what = format!("{} {name} hasn't exactly one row", self.what);
                findings.push(Finding::new(PAGE, what));
                continue;
            };
            for (column, named) in self.columns {
                let cell = row.get(*column).copied().unwrap_or_default();
                findings.extend(check_cell(name, cell, *named, known));
            }
        }
        findings
    }
}

/// Of a row of a table.
fn cells(line: &str) -> Option<Vec<&str>> {
    line.starts_with("| ").then(|| line.split('|').map(str::trim).collect())
}

fn check_cell(row: &str, cell: &str, named: Named, known: &Known<'_>) -> Vec<Finding> {
    let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    let word = named.word();
    if names.is_empty() && !cell.contains(EXCUSE) {
        return vec![Finding::new(PAGE, format!("{row} names no {word} and no reason"))];
    }
    let exists = |name: &str| match named {
        Named::Test => {
            let function = format!("fn {name}(");
            known.rust.iter().any(|text| text.contains(&function))
        }
        Named::Fault => known.faults.contains(name),
    };
    let missing = names.into_iter().filter(|name| !exists(name));
    missing.map(|name| Finding::new(PAGE, format!("{row}: there is no {word} {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAWS_OF_TWO: &str =
        "# Rules\n- **P1 Record.** A record.\n\n**Logs**\n\n- **P12 Durable.** Says P1.\n";

    fn page(holes: usize, rows: &[&str]) -> String {
        let holes = (1..=holes).map(|number| format!("| H-{number:02} | a hole | `good` |\n"));
        holes.chain(rows.iter().map(|row| format!("{row}\n"))).collect()
    }

    fn whats(page: &str) -> Vec<String> {
        let rust = ["fn good() {}\nfn property(\n    n: u8) {}".to_owned()];
        let faults = BTreeSet::from(["bad-line".to_owned()]);
        let known = Known { rust: &rust, faults: &faults };
        check(LAWS_OF_TWO, page, &known).into_iter().map(|finding| finding.what).collect()
    }

    const RULES: [&str; 2] =
        ["| P1 | `good`, `property` | `bad-line` |", "| P12 | `good` | none yet: no such part |"];

    #[test]
    fn every_hole_has_a_row_and_every_named_test_exists() {
        let with = |row: &str| whats(&page(22, &[&RULES[..], &[row]].concat()));
        assert_eq!(whats(&page(23, &RULES)), [""; 0]);
        assert_eq!(with(""), ["hole H-23 hasn't exactly one row"]);
        assert_eq!(with("| H-22 | again | `good` |").len(), 2, "H-22 twice, H-23 never");
        assert_eq!(with("| H-23 | a hole | `bad` |"), ["H-23: there is no test bad"]);
        assert_eq!(with("| H-23 | a hole | |"), ["H-23 names no test and no reason"]);
        assert_eq!(with("| H-23 | a hole | none yet: no such part |"), [""; 0]);
    }

    #[test]
    fn every_rule_of_the_laws_has_a_row_with_tests_and_faults_that_exist() {
        let with = |row: &str| whats(&page(23, &[RULES[1], row]));
        assert_eq!(with(""), ["rule P1 hasn't exactly one row"]);
        assert_eq!(with("| P1 | `goo` | `bad-line` |"), ["P1: there is no test goo"]);
        assert_eq!(with("| P1 | `good` | `bad` |"), ["P1: there is no fault bad"]);
        assert_eq!(with("| P1 | none yet: why | `bad-line` |"), [""; 0]);
        assert_eq!(
            with("| P1 | | |"),
            ["P1 names no test and no reason", "P1 names no fault and no reason"]
        );
    }
}
