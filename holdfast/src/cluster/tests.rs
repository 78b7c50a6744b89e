//! A description survives its file, and a wrong one is refused with file, key and reason.

use super::*;
use crate::up::plan::{Wanted, new_cluster};

fn sample(dir: &Path) -> Cluster {
    let mut port = 7000;
    new_cluster(&Wanted::default(), dir, "c1", &mut || {
        port += 1;
        Ok(port)
    })
    .unwrap()
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = sample(dir.path());
    cluster.members[4].osd = Some(Parsed(OsdId(7)));
    cluster.members[4].initialized = true;
    cluster.choices.asd_capacity_bytes = Some((3 << 30) + 4096);
    cluster.save().unwrap();
    assert_eq!(Cluster::load(&cluster.file()).unwrap(), cluster);
}

#[test]
fn a_wrong_description_names_file_and_problem() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = sample(dir.path());
    cluster.save().unwrap();
    let good = std::fs::read_to_string(cluster.file()).unwrap();
    let cases = [
        (good.replace("version = 1", "version = 9"), "version"),
        (good.replace("id = \"asd-2\"", "id = \"asd-1\""), "twice"),
        (good.replace("raft_id = 2", "raft_id = 1"), "raft_id"),
        (good.replace("role = \"edge\"", "role = \"asd\""), "no edge"),
        (good.replace("id = \"asd-2\"", "id = \"../x\""), "../x"),
        (good.replace("transport", "transprot"), "transprot"),
        (good.replace("policy = \"4,2,5,1;2,2,3,1\"", "policy = \"4,2,9,1\""), "c must lie"),
    ];
    for (text, want) in cases {
        assert_ne!(text, good, "the case for `{want}` changes nothing");
        std::fs::write(cluster.file(), text).unwrap();
        let error = Cluster::load(&cluster.file()).unwrap_err();
        assert!(matches!(error, Failure::Config(_)), "{error}");
        let error = error.to_string();
        assert!(error.contains(want) && error.contains(FILE), "{error}");
    }
}

#[test]
fn a_missing_cluster_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let place = Where { dir: Some(dir.path().join("none")), cluster: None };
    let error = place.load().unwrap_err().to_string();
    assert!(error.contains("holdfast up") && error.contains("none"), "{error}");
}

#[test]
fn only_a_member_that_had_data_can_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = sample(dir.path());
    let asd = cluster.members.iter().position(|member| member.id == "asd-1").unwrap();
    assert!(!cluster.is_lost(&cluster.members[asd]), "it has never run");
    cluster.members[asd].initialized = true;
    assert!(cluster.is_lost(&cluster.members[asd]));
    std::fs::create_dir_all(cluster.data_dir("asd-1")).unwrap();
    assert!(!cluster.is_lost(&cluster.members[asd]));
    let proxy =
        cluster.members.iter().position(|member| member.role == ProcessRole::AlbaProxy).unwrap();
    cluster.members[proxy].initialized = true;
    assert!(!cluster.is_lost(&cluster.members[proxy]), "a proxy has nothing to lose");
}
