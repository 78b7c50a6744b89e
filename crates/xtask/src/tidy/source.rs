//! How a file of the repository looks.
//!
//! Rust files begin with their `//!` page, stay short, and hold no promises that aren't kept yet. No file speaks of the
//! machine it was written on.
//!
//! Invariant: purely textual. A rule that needs to understand Rust belongs in clippy.

use super::Finding;

/// The house aims at 500 lines of production code; above this a file must be cut.
const PRODUCTION_LINES_MAX: usize = 700;

/// What must not stand in Rust code, and why. Split, so that this file doesn't find itself.
const BANNED: [(&str, &str); 5] = [
    (concat!("todo", "!("), "a promise that isn't kept yet"),
    (concat!("unimplemented", "!("), "a promise that isn't kept yet"),
    (concat!("dbg", "!("), "left from debugging"),
    (concat!("#[", "ignore"), "a test that doesn't run; long ones read HOLDFAST_SOAK"),
    (concat!("#![", "allow("), "use #[expect(lint, reason)] at the place"),
];

/// Paths that only mean something on one machine.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "farm/"), concat!("../", "shared")];

pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if path != "Cargo.lock" {
        check_machine_paths(path, text, &mut findings);
    }
    if path.ends_with(".rs") {
        check_rust(path, text, &mut findings);
    }
    findings
}

fn check_machine_paths(path: &str, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in text.lines().enumerate() {
        for machine_path in MACHINE_PATHS {
            if line.contains(machine_path) {
                let place = format!("{path}:{}", number + 1);
                findings
                    .push(Finding::new(place, format!("speaks of a machine: `{machine_path}`")));
            }
        }
    }
}

fn check_rust(path: &str, text: &str, findings: &mut Vec<Finding>) {
    if !text.starts_with("//!") {
        findings
            .push(Finding::new(path, "doesn't begin with a `//!` page: what, why so, invariant"));
    }
    if path.rsplit('/').next() == Some("mod.rs") {
        findings.push(Finding::new(path, "is a mod.rs; use foo.rs beside foo/"));
    }
    for (number, line) in text.lines().enumerate() {
        for (banned, why) in BANNED {
            if code_of(line).contains(banned) {
                let place = format!("{path}:{}", number + 1);
                findings.push(Finding::new(place, format!("`{banned}`: {why}")));
            }
        }
    }
    let lines = production_lines(path, text);
    if PRODUCTION_LINES_MAX < lines {
        findings.push(Finding::new(
            path,
            format!("has {lines} lines of production code; cut it (at most {PRODUCTION_LINES_MAX}, aim for 500)"),
        ));
    }
}

/// The line without a trailing comment: prose may name what code may not use.
fn code_of(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _comment)| code)
}

/// Lines before the test module; a file of tests has none.
fn production_lines(path: &str, text: &str) -> usize {
    let is_tests = path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs");
    if is_tests {
        return 0;
    }
    let lines: Vec<&str> = text.lines().collect();
    let tests_begin = lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    });
    tests_begin.unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check(path, text).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_good_file_passes() {
        assert_eq!(whats("asd/src/lib.rs", "//! The disk.\npub fn a() {}\n"), [""; 0]);
    }

    #[test]
    fn a_file_begins_with_its_page() {
        assert_eq!(whats("asd/src/lib.rs", "use a::b;\n//! Late.\n").len(), 1);
        assert_eq!(whats("asd/src/lib.rs", "").len(), 1);
        assert_eq!(whats("README.md", "no page needed"), [""; 0]);
    }

    #[test]
    fn promises_not_kept_are_found_with_their_line() {
        for (banned, _) in BANNED {
            let findings = check("a/src/b.rs", &format!("//! Page.\n\n    {banned}x)\n"));
            assert_eq!(findings.len(), 1, "{banned}");
            assert_eq!(findings[0].place, "a/src/b.rs:3");
        }
        let prose = format!("//! No {}x) here.\n", BANNED[0].0);
        assert_eq!(whats("a/src/b.rs", &prose), [""; 0]);
    }

    #[test]
    fn mod_rs_is_found() {
        assert_eq!(whats("a/src/b/mod.rs", "//! Page.\n").len(), 1);
        assert_eq!(whats("a/src/b/my_mod.rs", "//! Page.\n"), [""; 0]);
    }

    #[test]
    fn machine_paths_are_found_in_any_file_but_the_lock_file() {
        for path in MACHINE_PATHS {
            let text = format!("# heading\nsee {path}here\n");
            assert_eq!(check("docs/a.md", &text)[0].place, "docs/a.md:2");
            assert_eq!(whats("Cargo.lock", &text), [""; 0]);
        }
        assert_eq!(whats("docs/a.md", "the network/ folder, framework/x\n"), [""; 0]);
    }

    #[test]
    fn production_code_is_counted_without_its_tests() {
        let production = format!("//! Page.\n{}", "fn a() {}\n".repeat(PRODUCTION_LINES_MAX));
        let findings = whats("a/src/b.rs", &production);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].contains("701 lines"), "{findings:?}");
        assert_eq!(whats("a/src/b/tests.rs", &production), [""; 0]);
        assert_eq!(whats("tests/src/cluster.rs", &production), [""; 0]);

        let half = PRODUCTION_LINES_MAX / 2;
        let mostly_tests = format!(
            "//! Page.\n{}#[cfg(test)]\nmod tests {{\n{}}}\n",
            "fn a() {}\n".repeat(half),
            "fn b() {}\n".repeat(PRODUCTION_LINES_MAX)
        );
        assert_eq!(whats("a/src/b.rs", &mostly_tests), [""; 0]);
        let declared = format!("//! Page.\n#[cfg(test)]\nmod tests;\n{production}");
        assert_eq!(whats("a/src/b.rs", &declared).len(), 1);
    }
}
