//! The clients that people use: libnbd's tools, qemu's, fio, and the crate `nbd`.

use crate::rig::{MIB, Rig, good, nbdsh, noise};

#[tokio::test]
async fn nbdinfo_sees_every_feature() {
    let rig = Rig::start(64 * MIB, "").await;
    rig.router.create("other", MIB);
    let info = good("nbdinfo", &[&rig.edge().uri("demo")]).await;
    for feature in [
        "export-size: 67108864",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "base:allocation",
        "block_size_minimum: 1",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
        "structured",
    ] {
        assert!(info.contains(feature), "{feature}:\n{info}");
    }
    for uri in [rig.edge().uri(""), rig.edge().unix_uri("")] {
        let list = good("nbdinfo", &["--list", &uri]).await;
        assert!(list.contains("\"demo\"") && list.contains("\"other\""), "{list}");
    }
    let size = good("nbdinfo", &["--size", &rig.edge().unix_uri("other")]).await;
    assert_eq!(size.trim(), "1048576");
    rig.stop().await;
}

#[tokio::test]
async fn nbdcopy_brings_back_what_it_took() {
    let rig = Rig::start(96 * MIB, "").await;
    let (first, second) = (rig.path("in"), rig.path("out"));
    let mut image = noise(1, 80 << 20);
    image[10 << 20..30 << 20].fill(0);
    image.resize(96 << 20, 0);
    std::fs::write(&first, &image).unwrap();
    let uri = rig.edge().uri("demo");
    good("nbdcopy", &["--flush", first.to_str().unwrap(), &uri]).await;
    let unix = rig.edge().unix_uri("demo");
    good("nbdcopy", &[&unix, second.to_str().unwrap()]).await;
    assert!(std::fs::read(&second).unwrap() == image, "the copy differs");
    let map = good("nbdinfo", &["--map", &uri]).await;
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    assert!(
        rig.router.durable("demo", 0, 4 << 20) == image[..4 << 20],
        "--flush reached the router"
    );
    rig.stop().await;
}

#[tokio::test]
async fn qemu_converts_compares_and_checks_patterns() {
    let rig = Rig::start(32 * MIB, "").await;
    let file = rig.path("image.raw");
    std::fs::write(&file, noise(2, 32 << 20)).unwrap();
    let (file, uri) = (file.to_str().unwrap().to_owned(), rig.edge().uri("demo"));
    good("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &file, &uri]).await;
    let same = good("qemu-img", &["compare", "-f", "raw", "-F", "raw", &file, &uri]).await;
    assert!(same.contains("identical"), "{same}");
    let back = rig.path("back.raw");
    let back = back.to_str().unwrap();
    good("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, back]).await;
    assert!(std::fs::read(back).unwrap() == std::fs::read(&file).unwrap());
    let script = [
        "write -P 0xa5 1234 56789",
        "read -P 0xa5 1234 56789",
        "write -f -P 0x11 8k 64k",
        "write -z 12k 8k",
        "read -P 0 12k 8k",
        "read -P 0x11 8k 4k",
        "discard 16k 1M",
        "read -P 0 16k 1M",
        "write -z -u 2M 4M",
        "read -P 0 2M 4M",
        "aio_write -P 0x77 5000 20000",
        "aio_flush",
        "flush",
        "read -P 0x77 5000 20000",
    ];
    let mut args = vec!["-f", "raw", uri.as_str()];
    for line in &script {
        args.extend(["-c", line]);
    }
    let said = good("qemu-io", &args).await;
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    rig.stop().await;
}

#[tokio::test]
async fn fio_verifies_random_writes_of_mixed_sizes() {
    let rig = Rig::start(64 * MIB, "").await;
    let uri = format!("--uri={}", rig.edge().unix_uri("demo"));
    for (sizes, direction) in
        [("--bsrange=512-1M", "randwrite"), ("--bsrange=4k-64k", "randtrimwrite")]
    {
        let mut args = vec![
            "--name=mix",
            "--ioengine=nbd",
            &uri,
            sizes,
            "--blockalign=512",
            "--iodepth=32",
            "--size=64M",
            "--io_size=48M",
            "--randseed=7",
            "--fsync=50",
        ];
        let rw = format!("--rw={direction}");
        args.push(&rw);
        if direction == "randwrite" {
            args.extend(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        }
        let said = good("fio", &args).await;
        assert!(said.contains("err= 0"), "{said}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn several_connections_are_one_disk_and_one_flush_covers_all() {
    let rig = Rig::start(16 * MIB, "").await;
    let script = r"
other = nbd.NBD()
h.connect_uri(uri)
other.connect_uri(uri)
for at in range(0, 64):
    (h if at % 2 else other).pwrite(bytes([at + 1]) * 5000, at * 5000)
h.flush()
assert other.pread(5000, 5000) == b'\x02' * 5000
assert h.pread(64 * 5000, 0) == b''.join(bytes([at + 1]) * 5000 for at in range(0, 64))
other.shutdown()
h.shutdown()
";
    nbdsh(&rig.edge().uri("demo"), script).await;
    let want: Vec<u8> = (0..64_u8).flat_map(|at| vec![at + 1; 5000]).collect();
    assert!(rig.router.durable("demo", 0, 64 * 5000) == want, "written on both, flushed on one");
    rig.stop().await;
}

#[tokio::test]
async fn block_status_tells_holes_and_data() {
    let rig = Rig::start(16 * MIB, "").await;
    let script = r"
h.add_meta_context('base:allocation')
h.connect_uri(uri)
h.pwrite(b'x' * 4096, 8192)
got = []
def extent(context, offset, entries, err):
    got.append((context, offset, list(entries)))
h.block_status(65536, 0, extent)
assert got == [('base:allocation', 0, [8192, 3, 4096, 0, 53248, 3])], got
got.clear()
h.block_status(65536, 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert got == [('base:allocation', 0, [8192, 3])], got
h.trim(4096, 8192)
got.clear()
h.block_status(16 << 20, 0, extent)
assert got == [('base:allocation', 0, [16 << 20, 3])], got
";
    nbdsh(&rig.edge().uri("demo"), script).await;
    rig.stop().await;
}

#[tokio::test]
async fn the_nbd_crate_is_served_too() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let rig = Rig::start(16 * MIB, "").await;
    let address = rig.edge().tcp;
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let export = nbd::client::handshake(&mut stream, b"demo").unwrap();
        assert_eq!(export.size, 16 * MIB);
        let mut client = nbd::client::NbdClient::new(&mut stream, &export);
        let data = noise(3, 100_000);
        client.seek(SeekFrom::Start(777)).unwrap();
        client.write_all(&data).unwrap();
        client.seek(SeekFrom::Start(777)).unwrap();
        let mut back = vec![0; data.len()];
        client.read_exact(&mut back).unwrap();
        assert!(back == data);
    });
    client.await.unwrap();
    rig.stop().await;
}
