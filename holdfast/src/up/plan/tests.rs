//! Options to clusters, and the contradictions of later options.

use super::*;

fn plan(wanted: &Wanted, dir: &Path) -> Result<Cluster, PlanError> {
    // Every port is offered twice, as the kernel may do.
    let mut calls = 0;
    new_cluster(wanted, dir, "c1", &mut || {
        calls += 1;
        Ok(7000 + calls / 2)
    })
}

#[test]
fn a_cluster_of_defaults_has_fourteen_processes_on_unix_sockets() {
    let cluster = plan(&Wanted::default(), Path::new("/data")).unwrap();
    let ids: Vec<&str> = cluster.members.iter().map(|member| member.id.as_str()).collect();
    assert_eq!(ids.len(), 3 + 6 + 2 + 2 + 1);
    assert_eq!(
        (ids[0], ids[3], ids[9], ids[11], ids[13]),
        ("arakoon-1", "asd-1", "alba-proxy-1", "router-1", "edge-1")
    );
    assert_eq!(cluster.member("asd-6").unwrap().endpoint.0.to_string(), "unix:/data/asd-6/sock");
    assert_eq!(cluster.nbd.to_string(), "127.0.0.1:10809");
    assert_eq!(cluster.arakoon_nodes().iter().map(|node| node.id).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn p14_logs_are_copied_wherever_there_is_a_second_router() {
    for (routers, dtl, made) in [
        (None, None, Dtl::Sync),
        (Some(2), None, Dtl::Sync),
        (Some(3), Some(Dtl::Async), Dtl::Async),
        (Some(2), Some(Dtl::None), Dtl::None),
        (Some(1), None, Dtl::None),
        (Some(1), Some(Dtl::Sync), Dtl::Sync),
    ] {
        let wanted = Wanted { routers, dtl, ..Wanted::default() };
        let cluster = plan(&wanted, Path::new("/data")).unwrap();
        assert_eq!(cluster.choices.dtl, made, "{routers:?} {dtl:?}");
        assert_eq!(contradiction(&wanted, &cluster), None);
    }
}

#[test]
fn ports_are_never_given_twice() {
    for transport in [Transport::Tcp, Transport::Tls] {
        let wanted = Wanted { transport: Some(transport), ..Wanted::default() };
        let cluster = plan(&wanted, Path::new("/data")).unwrap();
        let endpoints: BTreeSet<_> =
            cluster.members.iter().map(|member| member.endpoint.0.to_string()).collect();
        assert_eq!(endpoints.len(), cluster.members.len());
        assert!(
            endpoints
                .iter()
                .all(|endpoint| endpoint.starts_with("tls://") == (transport == Transport::Tls))
        );
    }
}

#[test]
fn a_directory_too_deep_for_sockets_falls_back_to_loopback() {
    let deep = Path::new("/").join("d".repeat(99));
    let cluster = plan(&Wanted::default(), &deep).unwrap();
    assert!(cluster.members.iter().all(|member| matches!(member.endpoint.0, Endpoint::Tcp(_))));
}

#[test]
fn numbers_that_make_no_cluster_are_refused_with_a_remedy() {
    let cases = [
        (Wanted { arakoons: Some(2), ..Wanted::default() }, "1, 3 or 5"),
        (Wanted { asds: Some(0), ..Wanted::default() }, "--asds 0"),
        (Wanted { routers: Some(65), ..Wanted::default() }, "--routers 65"),
        (Wanted { asds: Some(2), ..Wanted::default() }, "--asds"),
    ];
    for (wanted, want) in cases {
        let error = plan(&wanted, Path::new("/data")).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let small =
        Wanted { asds: Some(3), policy: Some("1,2,2,1".parse().unwrap()), ..Wanted::default() };
    assert!(plan(&small, Path::new("/data")).is_ok());
}

#[test]
fn options_left_out_or_repeated_never_contradict() {
    let made = Wanted { asds: Some(8), asd_capacity: Some(ByteSize(1 << 30)), ..Wanted::default() };
    let cluster = plan(&made, Path::new("/data")).unwrap();
    assert_eq!(contradiction(&Wanted::default(), &cluster), None);
    assert_eq!(contradiction(&made, &cluster), None);
    let moved = Wanted { nbd: Some("127.0.0.1:1".parse().unwrap()), ..Wanted::default() };
    assert_eq!(contradiction(&moved, &cluster), None, "the NBD address may change");
}

#[test]
fn an_option_that_differs_is_named_with_both_values() {
    let cluster = plan(&Wanted::default(), Path::new("/data")).unwrap();
    let cases = [
        (Wanted { arakoons: Some(5), ..Wanted::default() }, "--arakoons 5: the cluster had 3"),
        (Wanted { asds: Some(7), ..Wanted::default() }, "--asds 7: the cluster had 6"),
        (Wanted { proxies: Some(1), ..Wanted::default() }, "--proxies 1: the cluster had 2"),
        (Wanted { routers: Some(1), ..Wanted::default() }, "--routers 1: the cluster had 2"),
        (
            Wanted { policy: Some("2,1,2,1".parse().unwrap()), ..Wanted::default() },
            "--policy 2,1,2,1: the cluster had 4,2,5,1;2,2,3,1",
        ),
        (
            Wanted { compression: Some(Compression::Off), ..Wanted::default() },
            "--compression off: the cluster had adaptive",
        ),
        (
            Wanted { encryption: Some(Encryption::Off), ..Wanted::default() },
            "--encryption off: the cluster had aes-256-gcm",
        ),
        (
            Wanted { transport: Some(Transport::Tls), ..Wanted::default() },
            "--transport tls: the cluster had unix",
        ),
        (
            Wanted { asd_capacity: Some(ByteSize(1 << 30)), ..Wanted::default() },
            "--asd-capacity 1GiB: the cluster had the role's own default",
        ),
    ];
    for (wanted, want) in cases {
        let said = contradiction(&wanted, &cluster).unwrap();
        assert!(
            said.starts_with(want) && said.contains("/data") && said.contains("--dir"),
            "{said}"
        );
    }
}

#[test]
fn vdisks_are_given_as_name_and_size() {
    let vdisk: VdiskWanted = "demo:4GiB".parse().unwrap();
    assert_eq!((vdisk.name.as_str(), vdisk.size.0), ("demo", 4 << 30));
    for (text, want) in [
        ("demo", "NAME:SIZE"),
        ("demo:big", "isn't a size"),
        ("a/b:1GiB", "a/b"),
        ("d:0", "multiple"),
        ("d:5", "multiple"),
        (":1GiB", "name"),
    ] {
        let error = text.parse::<VdiskWanted>().unwrap_err();
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn asds_on_one_file_system_share_what_is_free() {
    assert_eq!(fair_share(60 << 30, None), Some(ByteSize(8 << 30)));
    assert_eq!(fair_share(60 << 30, Some(1)), Some(ByteSize(48 << 30)));
    assert_eq!(fair_share(1 << 20, None), None);
}
