//! The drill's own tests; the first one runs in CI for the sake of the tables.

use super::*;

fn workspace() -> PathBuf {
    crate::workspace_root()
}

fn sample(old: &str, new: &str) -> Mutation {
    Mutation {
        name: "sample".to_owned(),
        rule: "P0".to_owned(),
        what: "nothing".to_owned(),
        file: "a.rs".to_owned(),
        old: old.to_owned(),
        new: new.to_owned(),
        run: ["-p", "a", "b"].map(str::to_owned).to_vec(),
    }
}

#[test]
fn every_mutation_still_applies_to_the_sources() {
    let all = load(&workspace().join(TABLES)).unwrap();
    assert!(12 <= all.len(), "only {} mutations are left", all.len());
    let misfits = misfits(&workspace(), &all);
    assert!(misfits.is_empty(), "{}", misfits.join("\n"));
}

#[test]
fn a_mutation_applies_where_its_text_stands_once_and_nowhere_else() {
    assert_eq!(sample("b", "x").apply("abc").unwrap(), "axc");
    for text in ["abcb", "ac"] {
        let error = sample("b", "x").apply(text).unwrap_err().to_string();
        assert!(error.contains("a.rs"), "{error}");
    }
}

#[test]
fn a_table_says_all_or_is_refused() {
    let good = "[[mutation]]\nname = 'n'\nrule = 'P1'\nwhat = 'w'\nfile = 'f'\nold = 'a'\nnew = 'b'\n\
        run = ['-p', 'x', 'y']\n";
    let parsed = table::parse(good).unwrap();
    assert_eq!((parsed.len(), &parsed[0].name[..], parsed[0].run.len()), (1, "n", 3));
    for (from, to) in [
        ("old = 'a'", "old = 'b'"),
        ("rule = 'P1'\n", ""),
        ("what = 'w'", "waht = 'w'"),
        ("['-p', 'x', 'y']", "['-p', 'x']"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(table::parse(&bad).is_err(), "{bad}");
    }
}

#[test]
fn an_unknown_name_is_an_error_that_says_so() {
    let all = [sample("a", "b")];
    assert_eq!(choose(&all, &[]).unwrap().len(), 1);
    assert_eq!(choose(&all, &["sample".to_owned()]).unwrap().len(), 1);
    let error = choose(&all, &["smaple".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("smaple"), "{error}");
}

#[test]
fn a_copy_follows_the_checkout_and_touches_only_what_changed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git = |args: &[&str]| {
        let status = Command::new("git").current_dir(from.path()).args(args).status().unwrap();
        assert!(status.success(), "git {args:?}");
    };
    git(&["init", "--quiet"]);
    std::fs::write(from.path().join("a"), "1").unwrap();
    std::fs::write(from.path().join("b"), "2").unwrap();
    let copy = Copy::refresh(from.path(), to.path()).unwrap();
    assert_eq!(copy.changed, 2);
    std::fs::write(from.path().join("b"), "3").unwrap();
    std::fs::write(to.path().join("left-over"), "x").unwrap();
    assert_eq!(Copy::refresh(from.path(), to.path()).unwrap().changed, 1);
    assert_eq!(std::fs::read_to_string(to.path().join("b")).unwrap(), "3");
    std::fs::remove_file(from.path().join("a")).unwrap();
    assert_eq!(Copy::refresh(from.path(), to.path()).unwrap().changed, 0);
    assert!(!to.path().join("a").exists() && !to.path().join("left-over").exists());
}

#[test]
fn the_summary_names_each_fault_its_rule_and_its_fate() {
    let mutation = sample("a", "b");
    let took = Duration::from_secs(7);
    let text = summary(&[
        Outcome { mutation: &mutation, fate: Fate::Caught, took },
        Outcome { mutation: &mutation, fate: Fate::Survived, took },
    ]);
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("sample") && text.contains("P0") && text.contains("caught"), "{text}");
    assert!(text.contains("SURVIVED") && text.contains("7 s"), "{text}");
}

#[test]
fn the_parts_of_a_drill_are_all_of_it_once() {
    let part = |text: &str| text.parse::<Part>();
    let mut all: Vec<usize> = (1..=3)
        .flat_map(|number| part(&format!("{number}/3")).unwrap().of((0..10).collect()))
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    for wrong in ["0/3", "4/3", "1", "a/b", "1/", ""] {
        assert!(part(wrong).is_err(), "{wrong}");
    }
}
