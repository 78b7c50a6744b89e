//! Health out of answers, and the JSON that scripts rely on.

use super::*;
use serde_json::json;
use wire::Role;

const POLICY: &str = "4,2,5,1;2,2,3,1";

fn up(role: ProcessRole, id: &str, details: &Value) -> ProcessReport {
    let status = Status {
        role: Role::Asd,
        name: id.to_owned(),
        pid: 7,
        since_unix_ms: 1_000,
        state: "running".to_owned(),
        details_json: details.to_string(),
    };
    process(role, id, "unix:/x".to_owned(), Ok(status), Absent::default())
}

fn absent(role: ProcessRole, id: &str, absent: Absent) -> ProcessReport {
    process(role, id, "unix:/x".to_owned(), Err(NoStatus::Down("refused".into())), absent)
}

fn down(role: ProcessRole, id: &str) -> ProcessReport {
    absent(role, id, Absent { pid: Some(9), lost: false })
}

fn proxy(id: &str, more: &Value) -> ProcessReport {
    let mut details = json!({"active_policy": "4,2,5,1", "holes": 0, "lost_objects": []});
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        details[key] = value;
    }
    up(ProcessRole::AlbaProxy, id, &details)
}

const GOOD: DiskFacts =
    DiskFacts { state: DiskState::Writable, capacity_bytes: 100, used_bytes: 10, corruptions: 0 };

/// Six ASDs of which the last `missing` don't answer, and these proxies.
fn judge(
    missing: usize,
    proxies: Vec<ProcessReport>,
    holes: Option<u64>,
    disk: DiskFacts,
) -> BackendReport {
    let mut processes = proxies;
    let mut disks = BTreeMap::new();
    for n in 1..=6 {
        let id = format!("asd-{n}");
        if n > 6 - missing {
            processes.push(down(ProcessRole::Asd, &id));
        } else {
            processes.push(up(ProcessRole::Asd, &id, &json!({})));
            disks.insert(id, if n == 1 { disk } else { GOOD });
        }
    }
    backend(&BackendInputs {
        name: "default",
        policy: POLICY.to_owned(),
        processes: &processes,
        disks: &disks,
        holes,
        arakoon: Ok(()),
    })
}

#[test]
fn a_backend_with_everything_is_healthy() {
    let report = judge(0, vec![proxy("p1", &json!({})), proxy("p2", &json!({}))], Some(0), GOOD);
    assert_eq!((report.health, report.alarms.len()), (Health::Healthy, 0));
    assert_eq!(
        (report.osds_up, report.osds_total, report.capacity_bytes, report.used_bytes),
        (6, 6, 600, 60)
    );
    assert_eq!(report.active_policy.as_deref(), Some("4,2,5,1"));
}

#[test]
fn less_protection_than_wanted_is_degraded_and_says_why() {
    let fallback = || vec![proxy("p1", &json!({"active_policy": "2,2,3,1"}))];
    let full = DiskFacts { state: DiskState::Full, ..GOOD };
    let cases = [
        (judge(1, vec![proxy("p", &json!({}))], Some(0), GOOD), "asd-6 is down"),
        (judge(2, fallback(), Some(0), GOOD), "writes use policy 2,2,3,1"),
        (judge(0, vec![proxy("p", &json!({}))], Some(3), GOOD), "3 fragments"),
        (judge(0, vec![proxy("p", &json!({"holes": 4}))], None, GOOD), "4 fragments"),
        (judge(0, vec![proxy("p", &json!({}))], Some(0), full), "asd-1 is full"),
    ];
    for (report, want) in cases {
        assert_eq!(report.health, Health::Degraded, "{want}");
        assert!(
            report.alarms.iter().any(|alarm| alarm.contains(want)),
            "{want}: {:?}",
            report.alarms
        );
    }
}

#[test]
fn what_cant_be_read_or_written_makes_it_unavailable() {
    let lost = json!({"lost_objects": [{"object": "v/1/2", "problem": "3 of 4 fragments"}]});
    let both = vec![proxy("p1", &lost), proxy("p2", &lost)];
    let report = judge(3, both, Some(0), GOOD);
    assert_eq!(
        (report.health, report.lost_objects),
        (Health::Unavailable, 1),
        "seen by both, counted once"
    );
    assert!(report.alarms.iter().any(|alarm| alarm.contains("v/1/2")));
    let none = judge(4, vec![proxy("p", &json!({"active_policy": null}))], Some(0), GOOD);
    assert_eq!((none.health, none.active_policy), (Health::Unavailable, None));
    assert_eq!(
        judge(0, vec![down(ProcessRole::AlbaProxy, "p")], Some(0), GOOD).health,
        Health::Unavailable
    );
}

#[test]
fn the_proxy_that_sees_worst_counts() {
    let two = vec![proxy("p1", &json!({})), proxy("p2", &json!({"active_policy": "2,2,3,1"}))];
    assert_eq!(judge(0, two, Some(0), GOOD).active_policy.as_deref(), Some("2,2,3,1"));
}

#[test]
fn damage_is_counted_and_doesnt_alarm_by_itself() {
    let proxies = vec![
        proxy("p1", &json!({"corrupt_fragments": 1, "degraded_reads": 5})),
        proxy("p2", &json!({"degraded_reads": 1})),
    ];
    let report = judge(0, proxies, Some(0), DiskFacts { corruptions: 3, ..GOOD });
    assert_eq!(
        (report.corrupt_fragments, report.degraded_reads, report.health),
        (3, 6, Health::Healthy)
    );
}

#[test]
fn a_process_that_doesnt_answer_has_no_pid_unless_it_hangs() {
    assert_eq!(
        (down(ProcessRole::Asd, "a").state.as_str(), down(ProcessRole::Asd, "a").pid),
        ("down", None)
    );
    assert_eq!(absent(ProcessRole::Asd, "a", Absent { pid: None, lost: true }).state, "lost");
    let absent = Absent { pid: Some(9), lost: false };
    let hung = process(ProcessRole::Asd, "a", String::new(), Err(NoStatus::Unresponsive), absent);
    assert_eq!((hung.state.as_str(), hung.pid, hung.since), ("unresponsive", Some(9), None));
}

#[test]
fn json_has_the_fields_that_scripts_rely_on() {
    let report = Report {
        cluster: "c1".into(),
        processes: vec![
            up(ProcessRole::AlbaProxy, "alba-proxy-1", &json!({"puts": 1})),
            down(ProcessRole::Asd, "asd-1"),
        ],
        backend: judge(0, vec![proxy("p", &json!({}))], Some(0), GOOD),
        vdisks: vec![VdiskReport {
            name: "demo".into(),
            size: 4096,
            owner: "router-1".into(),
            epoch: 3,
            state: "serving".into(),
            dtl: Some("in-sync".into()),
        }],
    };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        json["processes"][0],
        json!({
            "role": "alba-proxy", "id": "alba-proxy-1", "pid": 7, "address": "unix:/x", "state": "running",
            "since": "1970-01-01T00:00:01Z", "details": {"puts": 1},
        })
    );
    assert_eq!(json["processes"][1]["pid"], Value::Null);
    assert_eq!(json["processes"][1]["since"], Value::Null);
    assert_eq!(json["backend"]["health"], "healthy");
    assert_eq!(
        json["vdisks"][0],
        json!({
            "name": "demo", "size": 4096, "owner": "router-1", "epoch": 3, "state": "serving",
            "dtl": "in-sync",
        })
    );
}

#[test]
fn moments_are_written_as_rfc_3339() {
    for (unix_ms, want) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400_000, "2000-02-29T00:00:00Z"),
        (1_795_326_088_999, "2026-11-22T05:41:28Z"),
        (4_107_542_399_000, "2100-02-28T23:59:59Z"),
    ] {
        assert_eq!(rfc3339(unix_ms), want);
    }
}
