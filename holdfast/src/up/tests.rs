//! What a second start finds, and what no start may touch.

use super::*;

fn args() -> UpArgs {
    let nbd = Some(Endpoint::Unix("/nonexistent/holdfast-test-nbd".into()));
    UpArgs { wanted: Wanted { nbd, ..Wanted::default() }, vdisks: Vec::new(), no_restart: false }
}

#[test]
fn a_second_start_finds_the_cluster_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = prepare(&args(), dir.path()).unwrap();
    let second = prepare(&args(), dir.path()).unwrap();
    assert_eq!(first, second);
    let moved = Endpoint::Unix("/nonexistent/elsewhere".into());
    let mut other = args();
    other.wanted.nbd = Some(moved.clone());
    assert_eq!(prepare(&other, dir.path()).unwrap().nbd, moved);
    let edge = std::fs::read_to_string(dir.path().join("edge-1/config.toml")).unwrap();
    assert!(edge.contains("/nonexistent/elsewhere"), "{edge}");
}

#[test]
fn options_that_contradict_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = prepare(&args(), dir.path()).unwrap();
    let mut other = args();
    other.wanted.asds = Some(9);
    let error = prepare(&other, dir.path()).unwrap_err();
    assert!(matches!(&error, Failure::Config(text) if text.contains("--asds 9")), "{error}");
    assert_eq!(Cluster::load(&first.file()).unwrap(), first);
}

#[test]
fn a_directory_with_members_but_no_description_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("asd-2")).unwrap();
    let error = prepare(&args(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("asd-2") && error.contains(FILE), "{error}");
    assert!(!dir.path().join(FILE).exists());
}

#[test]
fn a_moved_directory_says_where_it_belongs() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("a"), root.path().join("b"));
    std::fs::create_dir(&from).unwrap();
    prepare(&args(), &from).unwrap();
    std::fs::rename(&from, &to).unwrap();
    let error = prepare(&args(), &to).unwrap_err().to_string();
    assert!(error.contains(&from.display().to_string()), "{error}");
}

#[test]
fn a_taken_nbd_address_is_found_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut taken = args();
    taken.wanted.nbd = Some(Endpoint::Tcp(listener.local_addr().unwrap()));
    let error = prepare(&taken, dir.path()).unwrap_err().to_string();
    assert!(error.contains("--nbd"), "{error}");
    assert!(!dir.path().join(FILE).exists());
}

#[test]
fn two_at_once_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let _held = DirLock::acquire(dir.path()).unwrap();
    let error = lock_failure(DirLock::acquire(dir.path()).unwrap_err()).to_string();
    assert!(error.contains(&std::process::id().to_string()) && error.contains("--dir"), "{error}");
}
