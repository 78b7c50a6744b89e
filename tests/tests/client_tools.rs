//! Other people's NBD clients, odd ones included, and the command line, on one shared cluster.
//!
//! Invariant: no request, however odd, crashes the server or leaves it stuck; each step ends with a look that it still
//! serves.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options};
use holdfast_tests::history::Survival;
use holdfast_tests::nbd::{Command, Connection};
use holdfast_tests::soak;
use holdfast_tests::steps::Steps;
use holdfast_tests::tool::Tool;
use holdfast_tests::workload::{Counts, Load, Verifier};
use sim::Random;

const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(900);

#[test]
fn every_client_gets_its_bytes_back_and_odd_requests_get_errors() -> anyhow::Result<()> {
    let vdisks = vec![
        ("demo", "4GiB"),
        ("copy", if soak() { "1GiB" } else { "192MiB" }),
        ("image", "64MiB"),
        ("odd", "16MiB"),
        ("load", "1GiB"),
    ];
    let cluster = Cluster::start(Options { vdisks, ..Options::default() })?;
    let mut steps = Steps::default();
    steps.step("nbdinfo lists every feature and every export", || features(&cluster));
    steps.step("nbdcopy in and out compares equal", || nbdcopy(&cluster));
    steps.step("fio verifies mixed sizes, unaligned too, beside trims", || fio(&cluster));
    steps.step("every answer to a random load is allowed", || random_load(&cluster));
    steps.step("qemu-img converts in and out", || qemu_img(&cluster));
    steps.step("qemu-io reads the patterns it wrote, trimmed and zeroed", || qemu_io(&cluster));
    steps.step("64 connections at once, and a flush on one covers all", || many(&cluster));
    steps.step("libnbd's odd requests get errors", || nbdsh(&cluster));
    steps.step("broken handshakes and half requests harm nobody", || broken_clients(&cluster));
    steps.step("a whole 16 TiB vDisk is trimmed in seconds", || huge_trim(&cluster));
    steps.step("vDisks are made, listed, shown, resized, deleted", || vdisk_commands(&cluster));
    steps.step("status tells every process", || status(&cluster));
    steps.step("sync fills all holes", || sync(&cluster));
    steps.step("no process died meanwhile", || nobody_restarted(&cluster));
    steps.done()
}

fn features(cluster: &Cluster) -> anyhow::Result<()> {
    let text = Tool::new("nbdinfo").arg("--json").arg(cluster.uri("demo")).run()?;
    let info: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(info["structured"] == true, "no structured replies: {text}");
    let export = &info["exports"][0];
    for feature in ["cache", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        ensure!(export[format!("can_{feature}")] == true, "no {feature}: {text}");
    }
    ensure!(export["is_read_only"] == false, "{text}");
    ensure!(export["export-size"] == 4_u64 << 30, "{text}");
    let contexts = export["contexts"].to_string();
    ensure!(contexts.contains("base:allocation"), "{text}");
    for key in ["block_size_minimum", "block_size_preferred", "block_size_maximum"] {
        ensure!(export[key].is_number(), "no {key}: {text}");
    }
    let server = format!("nbd://127.0.0.1:{}", cluster.port());
    let list = Tool::new("nbdinfo").args(["--list", "--json"]).arg(server).run()?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let exports = list["exports"].as_array().context("exports")?;
    for name in ["demo", "copy", "image"] {
        ensure!(exports.iter().any(|export| export["export-name"] == name), "no {name}: {list}");
    }
    Ok(())
}

/// Random, compressible and zero stretches, a MiB each.
fn make_file(path: &Path, len: usize) -> anyhow::Result<()> {
    let mut random = Random::new(7);
    let mut file = File::create(path)?;
    let mut piece = vec![0; MIB];
    for number in 0..len / MIB {
        match number % 4 {
            0 | 1 => random.fill(&mut piece),
            2 => {
                for (at, line) in piece.chunks_mut(64).enumerate() {
                    let text = format!(
                        "{number:08} {at:08} the quick brown fox jumps over the lazy dog     "
                    );
                    line.copy_from_slice(&text.as_bytes()[..line.len()]);
                }
            }
            _ => piece.fill(0),
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

fn nbdcopy(cluster: &Cluster) -> anyhow::Result<()> {
    let (source, copy) = (cluster.scratch("source"), cluster.scratch("copy"));
    make_file(&source, if soak() { 1024 } else { 192 } * MIB)?;
    let uri = cluster.uri("copy");
    Tool::new("nbdcopy").args(["--flush"]).arg(&source).arg(&uri).within(LONG).run()?;
    Tool::new("nbdcopy").arg(&uri).arg(&copy).within(LONG).run()?;
    Tool::new("cmp").arg(&source).arg(&copy).within(LONG).run()?;
    fs::remove_file(&source)?;
    fs::remove_file(&copy)?;
    Ok(())
}

fn fio(cluster: &Cluster) -> anyhow::Result<()> {
    let size = if soak() { "1G" } else { "96M" };
    let job = |name: &str, args: &[&str]| {
        Tool::new("fio")
            .arg(format!("--name={name}"))
            .args([
                "--verify_state_save=0",
                "--ioengine=nbd",
                "--iodepth=16",
                "--bsrange=512-1M",
                "--bs_unaligned",
            ])
            .arg(format!("--uri={}", cluster.uri("demo")))
            .args(args)
            .within(LONG)
            .run()
    };
    let size = format!("--size={size}");
    let trims = ["--offset=2G", &size, "--bsrange=4k-1M", "--bs_unaligned=0"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", &size, "--rw=randwrite"];
    job("trim", &[&["--rw=randtrim"], trims.as_slice()].concat())?;
    job("write", &[&["--do_verify=1"], verify.as_slice()].concat())?;
    // Beside it, not in it: fio itself doesn't know which of its overlapping trims and writes won.
    job("trimwrite", &[&["--rw=randtrimwrite"], trims.as_slice()].concat())?;
    job("write", &[&["--verify_only=1"], verify.as_slice()].concat()).map(drop)
}

fn random_load(cluster: &Cluster) -> anyhow::Result<()> {
    let verifier = Verifier::new(cluster.target("load"), 11, 64 << 20);
    let seconds = if soak() { 300 } else { 8 };
    verifier.run_for(&Load::default(), Duration::from_secs(seconds))?;
    verifier.check(Survival::Alive)?;
    let counts = verifier.counts();
    ensure!(Counts::get(&counts.errors) == 0, "requests failed: {counts:?}");
    ensure!(100 < Counts::get(&counts.writes) && 10 < Counts::get(&counts.flushes), "{counts:?}");
    Ok(())
}

fn qemu_img(cluster: &Cluster) -> anyhow::Result<()> {
    let (source, copy) = (cluster.scratch("image"), cluster.scratch("image.qcow2"));
    make_file(&source, 64 * MIB)?;
    let uri = cluster.uri("image");
    let raw = ["-f", "raw"];
    let qemu = |args: &[&str]| Tool::new("qemu-img").args(args).within(LONG);
    qemu(&["convert", "-n"]).args(raw).args(["-O", "raw"]).arg(&source).arg(&uri).run()?;
    qemu(&["compare"]).args(raw).args(["-F", "raw"]).arg(&source).arg(&uri).run()?;
    qemu(&["convert"]).args(raw).args(["-O", "qcow2"]).arg(&uri).arg(&copy).run()?;
    qemu(&["compare"]).args(raw).args(["-F", "qcow2"]).arg(&source).arg(&copy).run().map(drop)
}

fn qemu_io(cluster: &Cluster) -> anyhow::Result<()> {
    let commands = [
        "write -P 0x5a 0 1M",
        "write -P 0x6b 513 1023",
        "write -f -P 0x7c 2M 64k",
        "flush",
        "read -P 0x5a 0 513",
        "read -P 0x6b 513 1023",
        "read -P 0x5a 1536 1047040",
        "read -P 0x7c 2M 64k",
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "write -z 131073 5000",
        "read -P 0 131073 5000",
        "read -P 0x5a 136073 1000",
        "write -z -u 256k 128k",
        "read -P 0 256k 128k",
        "aio_write -P 0x11 3M 128k",
        "aio_write -P 0x22 4M 128k",
        "aio_flush",
        "read -P 0x11 3M 128k",
        "read -P 0x22 4M 128k",
    ];
    let mut tool = Tool::new("qemu-io").args(["-f", "raw"]);
    for command in commands {
        tool = tool.args(["-c", command]);
    }
    let outcome = tool.arg(cluster.uri("odd")).outcome()?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(outcome.status.success() && !said.contains("failed"), "{said}");
    Ok(())
}

fn many(cluster: &Cluster) -> anyhow::Result<()> {
    let target = cluster.target("demo");
    let base = 3_u64 << 30;
    let opened: anyhow::Result<Vec<_>> = (0..64).map(|_| Connection::open(&target)).collect();
    let mut connections = opened?;
    for (number, connection) in (0_u8..).zip(&mut connections) {
        ensure!(connection.flags() & 0x100 != 0, "multi-connection is not announced");
        connection.write(base + u64::from(number) * 4096, &[number + 1; 4096])?;
    }
    connections[0].flush()?;
    for (number, connection) in (0_u8..).zip(connections.iter_mut().rev()) {
        let read = connection.read(base + u64::from(number) * 4096, 4096)?;
        ensure!(read == [number + 1; 4096], "connection {number} reads something else");
    }
    Ok(())
}

/// A step of `nbdsh`: what libnbd would refuse by itself is sent all the same.
const ODD_REQUESTS: &str = r#"
import errno
h.set_strict_mode(0)
h.connect_uri(URI)
size = h.get_size()

def refused(what, call, *allowed):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum in allowed, f"{what}: {error}"
        return
    raise AssertionError(f"{what}: was not refused")

refused("read past the end", lambda: h.pread(4096, size), errno.EINVAL)
refused("read across the end", lambda: h.pread(8192, size - 4096), errno.EINVAL)
refused("write past the end", lambda: h.pwrite(b"x" * 4096, size), errno.ENOSPC, errno.EINVAL)
refused("write across the end", lambda: h.pwrite(b"x" * 8192, size - 4096), errno.ENOSPC, errno.EINVAL)
refused("write far beyond", lambda: h.pwrite(b"x" * 512, 2**63 - 512), errno.ENOSPC, errno.EINVAL)
refused("trim past the end", lambda: h.trim(4096, size), errno.EINVAL, errno.ENOSPC)
refused("zero past the end", lambda: h.zero(4096, size), errno.EINVAL, errno.ENOSPC)
refused("status past the end", lambda: h.block_status(4096, size, lambda *a: 0), errno.EINVAL)
assert h.pread(1, 0) is not None

# Unaligned in offset and length, across a cluster's edge.
h.pwrite(b"A" * 4096 * 3, 0)
h.pwrite(b"B" * 5000, 1001)
assert h.pread(12288, 0) == b"A" * 1001 + b"B" * 5000 + b"A" * (12288 - 6001)
h.zero(3, 1)
assert h.pread(5, 0) == b"A\0\0\0A"

# The last byte.
h.pwrite(b"Z", size - 1)
assert h.pread(1, size - 1) == b"Z"

# FUA, cache, allocation.
h.pwrite(b"F" * 512, 512, nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
h.flush()
extents = []
def extent(context, offset, entries, error):
    assert context == "base:allocation"
    extents.extend(entries)
if h.can_meta_context("base:allocation"):
    h.block_status(size, 0, extent)
    assert extents and all(length > 0 for length in extents[::2])
h.shutdown()
"#;

fn nbdsh(cluster: &Cluster) -> anyhow::Result<()> {
    let script = ODD_REQUESTS.replace("URI", &format!("{:?}", cluster.uri("odd")));
    // nbdsh takes the first python3 there is; the system's own has the module.
    let path = std::env::var("PATH").unwrap_or_default();
    Tool::new("nbdsh")
        .env("PATH", format!("/usr/bin:{path}"))
        .args(["-c", "h.add_meta_context('base:allocation')", "-c", &script])
        .run()?;
    serves(cluster)
}

/// A connection still works.
fn serves(cluster: &Cluster) -> anyhow::Result<()> {
    let mut connection = Connection::open(&cluster.target("odd"))?;
    connection.write(8 << 20, &[9; 512])?;
    ensure!(connection.read(8 << 20, 512)? == [9; 512]);
    Ok(())
}

fn broken_clients(cluster: &Cluster) -> anyhow::Result<()> {
    let handshake = {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(option(7, &go("odd")));
        bytes
    };
    let request = |kind: u16, offset: u64, len: u32| {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(77_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let started = |rest: &[u8]| [handshake.as_slice(), rest].concat();
    let huge_option =
        [b"IHAVEOPT".as_slice(), &7_u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let cases: [(&str, Vec<u8>); 10] = [
        ("nothing", vec![]),
        ("half client flags", vec![0, 0]),
        ("unknown client flags", vec![0xff; 4]),
        ("not an option", started(&[])[..4].iter().copied().chain([0xee; 16]).collect()),
        ("an option of 4 GiB", [&3_u32.to_be_bytes()[..], &huge_option].concat()),
        ("half a request", started(&request(0, 0, 512)[..13])),
        ("a request with a wrong magic", started(&[0x11; 28])),
        ("a write without its data", started(&request(1, 0, 4096))),
        ("a write of 4 GiB", started(&request(1, 0, u32::MAX))),
        ("half of a write's data", [started(&request(1, 0, 4096)), vec![5; 100]].concat()),
    ];
    for (name, bytes) in cases {
        let mut stream = connect(cluster)?;
        // The server may close before all is written; that is an answer, too.
        let _refused = stream.write_all(&bytes);
        drop(stream);
        serves(cluster).with_context(|| format!("after {name}"))?;
    }
    unknown_things_are_answered(cluster, &handshake, &request(99, 0, 0))
}

/// An unknown option is refused and the next one works; an unknown command fails and the next one works.
fn unknown_things_are_answered(
    cluster: &Cluster,
    handshake: &[u8],
    unknown: &[u8],
) -> anyhow::Result<()> {
    let mut stream = connect(cluster)?;
    stream.write_all(&handshake[..4])?;
    stream.write_all(&option(4242, b"what"))?;
    let mut reply = [0; 20];
    skip(&mut stream, 18)?;
    stream.read_exact(&mut reply)?;
    let kind = u32::from_be_bytes(reply[12..16].try_into()?);
    ensure!(kind == 0x8000_0001, "an unknown option was answered with {kind:#x}");
    let text_len = u32::from_be_bytes(reply[16..20].try_into()?);
    skip(&mut stream, text_len as usize)?;
    drop(stream);

    let mut stream = connect(cluster)?;
    stream.write_all(handshake)?;
    skip(&mut stream, 18)?;
    loop {
        stream.read_exact(&mut reply)?;
        skip(&mut stream, u32::from_be_bytes(reply[16..20].try_into()?) as usize)?;
        if u32::from_be_bytes(reply[12..16].try_into()?) == 1 {
            break;
        }
    }
    stream.write_all(unknown)?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    let errno = u32::from_be_bytes(answer[4..8].try_into()?);
    ensure!(errno == 22, "an unknown command was answered with {errno}");
    serves(cluster)
}

fn connect(cluster: &Cluster) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn skip(stream: &mut TcpStream, len: usize) -> anyhow::Result<()> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).context("the server closed")
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("short");
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn go(name: &str) -> Vec<u8> {
    let len = u32::try_from(name.len()).expect("short");
    [&len.to_be_bytes(), name.as_bytes(), &0_u16.to_be_bytes()].concat()
}

fn huge_trim(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.holdfast(&["vdisk", "create", "huge", "--size", "16TiB"])?;
    let mut connection = Connection::open_within(&cluster.target("huge"), Duration::from_secs(30))?;
    ensure!(connection.size() == 16 << 40, "{}", connection.size());
    let last = (16_u64 << 40) - 4096;
    connection.write(0, &[1; 4096])?;
    connection.write(last, &[2; 4096])?;
    let began = Instant::now();
    let step = 1_u64 << 31;
    for offset in (0..16_u64 << 40).step_by(usize::try_from(step)?) {
        connection.call(Command::Trim, offset, u32::try_from(step)?, &[])?;
    }
    connection.flush()?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(60), "trimming 16 TiB took {took:?}");
    ensure!(connection.read(0, 4096)? == [0; 4096] && connection.read(last, 4096)? == [0; 4096]);
    drop(connection);
    cluster.holdfast(&["vdisk", "delete", "huge"]).map(drop)
}

fn vdisk_commands(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.holdfast(&["vdisk", "create", "mine", "--size", "10MiB"])?;
    let shown = cluster.json(&["vdisk", "show", "mine"])?;
    ensure!(shown["name"] == "mine" && shown["size"] == 10 << 20, "{shown}");
    ensure!(shown["owner"].is_string() && shown["epoch"].is_u64(), "{shown}");
    let mut connection = Connection::open_within(&cluster.target("mine"), Duration::from_secs(30))?;
    connection.write(0, b"persistent")?;
    drop(connection);
    cluster.holdfast(&["vdisk", "resize", "mine", "--size", "20MiB"])?;
    let mut connection = Connection::open_within(&cluster.target("mine"), Duration::from_secs(30))?;
    ensure!(connection.size() == 20 << 20, "a new connection sees {}", connection.size());
    ensure!(connection.read(0, 10)? == b"persistent");
    drop(connection);
    let listed = cluster.holdfast(&["vdisk", "list"])?;
    ensure!(listed.contains("mine") && listed.contains("20 MiB"), "{listed}");
    let limit = Duration::from_secs(60);
    let refused = [
        (vec!["vdisk", "create", "mine", "--size", "1MiB"], "mine", None),
        (vec!["vdisk", "create", "small", "--size", "0"], "small", Some(2)),
        (vec!["vdisk", "create", "bad/name", "--size", "1MiB"], "bad/name", Some(2)),
        (vec!["vdisk", "show", "nobody"], "nobody", Some(3)),
        (vec!["vdisk", "resize", "mine", "--size", "4KiB"], "mine", None),
    ];
    for (args, named, code) in refused {
        let outcome = cluster.holdfast_outcome(&args, limit)?;
        ensure!(!outcome.status.success(), "{args:?} succeeded");
        ensure!(outcome.stderr.contains(named), "{args:?} says: {}", outcome.stderr);
        if code.is_some() {
            ensure!(outcome.status.code() == code, "{args:?}: {}", outcome.status);
        }
    }
    cluster.holdfast(&["vdisk", "delete", "mine"])?;
    ensure!(Connection::open(&cluster.target("mine")).is_err(), "a deleted vDisk is served");
    let outcome = cluster.holdfast_outcome(&["vdisk", "show", "mine"], limit)?;
    ensure!(outcome.status.code() == Some(3), "show of a deleted vDisk: {}", outcome.status);
    Ok(())
}

fn status(cluster: &Cluster) -> anyhow::Result<()> {
    let processes = cluster.processes()?;
    for (role, count) in [("arakoon", 3), ("asd", 6), ("alba-proxy", 2), ("router", 2), ("edge", 1)]
    {
        let of_role: Vec<_> = processes.iter().filter(|process| process.role == role).collect();
        ensure!(of_role.len() == count, "{role}: {of_role:?}");
        for process in of_role {
            let pid = process.pid.context("a pid")?;
            ensure!(Path::new(&format!("/proc/{pid}")).exists(), "{process:?} doesn't run");
            ensure!(cluster.dir().join(&process.id).is_dir(), "no directory of {process:?}");
        }
    }
    let text = cluster.holdfast(&["status"])?;
    ensure!(text.contains("asd-6") && text.contains("demo"), "{text}");
    cluster.json(&["backend", "show"])?;
    let asds = cluster.json(&["asd", "list"])?.to_string();
    ensure!(asds.contains("asd-1") && asds.contains("asd-6"), "{asds}");
    for role in ["arakoon", "asd", "alba-proxy", "router", "edge"] {
        let example = cluster.holdfast(&["config", "example", role])?;
        ensure!(example.contains("data_dir"), "{role}: {example}");
    }
    Ok(())
}

fn sync(cluster: &Cluster) -> anyhow::Result<()> {
    for vdisk in ["copy", "load"] {
        cluster.holdfast(&["vdisk", "sync", vdisk])?;
    }
    let status = cluster.status()?;
    let holes = holdfast_tests::find(&status, "holes").context("status without holes")?;
    ensure!(holes == 0, "{holes} holes after sync: {status:#}");
    Ok(())
}

fn nobody_restarted(cluster: &Cluster) -> anyhow::Result<()> {
    let logs: Vec<PathBuf> = fs::read_dir(cluster.dir())?
        .filter_map(|entry| Some(entry.ok()?.path().join("log")))
        .collect();
    for log in logs.iter().filter(|log| log.is_file()) {
        let text = fs::read_to_string(log)?;
        ensure!(!text.contains("panicked at"), "{}: {text}", log.display());
    }
    Ok(())
}
