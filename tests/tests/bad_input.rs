//! Wrong configurations, bad certificates, full disks, directories and ports that are taken: a clear message each time,
//! and nothing damaged.
//!
//! Invariant: after each refusal, what was there before still works.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, Options, free_port, plain_holdfast, wait_until};
use holdfast_tests::history::Survival;
use holdfast_tests::nbd::Connection;
use holdfast_tests::pattern::Pattern;
use holdfast_tests::steps::Steps;
use holdfast_tests::tool::{Outcome, Tool};
use holdfast_tests::workload::{Counts, Load, Verifier};

const LIMIT: Duration = Duration::from_secs(90);
const SMALL: [&str; 10] =
    ["--arakoons", "1", "--asds", "3", "--proxies", "1", "--routers", "1", "--policy", "2,1,3,1"];

fn up(dir: &Path, args: &[&str]) -> anyhow::Result<Outcome> {
    plain_holdfast(&["up", "--dir"]).arg(dir).args(args).within(LIMIT).outcome()
}

/// It failed, and said why in these words.
fn refused(outcome: &Outcome, words: &[&str]) -> anyhow::Result<()> {
    let Outcome { status, stdout, stderr } = outcome;
    let said = format!("{stdout}{stderr}");
    ensure!(!status.success(), "it succeeded: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in: {said}");
    }
    Ok(())
}

#[test]
fn wrong_configurations_and_places_are_refused_clearly() -> anyhow::Result<()> {
    let root = tempfile::Builder::new().prefix("hf-").tempdir()?;
    let mut steps = Steps::default();
    let nbd = format!("127.0.0.1:{}", free_port()?);
    steps.step("options that make no cluster", || {
        let dir = root.path().join("none");
        let cases: [(&[&str], &str); 6] = [
            (&["--arakoons", "2"], "arakoons"),
            (&["--asds", "2"], "policy"),
            (&["--policy", "4,2,9,1"], "policy"),
            (&["--vdisk", "demo:12parsecs"], "12parsecs"),
            (&["--nbd", "tls://127.0.0.1:1"], "nbd"),
            (&["--nbd", "127.0.0.1:0"], "port"),
        ];
        for (args, named) in cases {
            let outcome = up(&dir, args)?;
            refused(&outcome, &[named])?;
            ensure!(outcome.status.code() == Some(2), "{args:?}: {}", outcome.status);
            ensure!(!dir.join("cluster.toml").exists(), "{args:?} left a cluster");
        }
        Ok(())
    });
    steps.step("a key that is not known, a value that may not be", || {
        for role in ["arakoon", "asd", "alba-proxy", "router", "edge"] {
            let example = plain_holdfast(&["config", "example", role]).run()?;
            let file = root.path().join(format!("{role}.toml"));
            let name = file.display().to_string();
            for (text, named) in [
                (format!("shoe_size = 42\n{example}"), "shoe_size"),
                (example.replace("listen = \"", "listen = \"nonsense "), "listen"),
                ("= = =".to_owned(), "1"),
            ] {
                fs::write(&file, text)?;
                let run = plain_holdfast(&[role, "--config"]).arg(&file).within(LIMIT);
                refused(&run.outcome()?, &[named, &name])
                    .with_context(|| format!("{role} with a wrong {named}"))?;
            }
        }
        let missing = plain_holdfast(&["asd", "--config", "/nonexistent.toml"]).outcome()?;
        refused(&missing, &["/nonexistent.toml"])
    });
    steps.step("a directory that can't be written", || {
        let dir = root.path().join("read-only");
        fs::create_dir(&dir)?;
        let _mounted = ReadOnly::mount(&dir)?;
        let inside = dir.join("c");
        refused(&up(&inside, &["--nbd", &nbd])?, &[&dir.display().to_string()])
    });
    steps.step("a file in the directory's place", || {
        let file = root.path().join("file");
        fs::write(&file, "mine")?;
        refused(&up(&file, &["--nbd", &nbd])?, &[&file.display().to_string()])?;
        ensure!(fs::read_to_string(&file)? == "mine", "it was overwritten");
        Ok(())
    });
    steps.step("no cluster where one is looked for", || {
        let outcome = plain_holdfast(&["status", "--dir", "/nonexistent"]).outcome()?;
        refused(&outcome, &["/nonexistent", "holdfast up"])
    });
    steps.done()
}

/// A read-only tmpfs: root may write anywhere else.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn mount(at: &'a Path) -> anyhow::Result<Self> {
        Tool::new("mount").args(["-t", "tmpfs", "-o", "ro,size=1m", "none"]).arg(at).run()?;
        Ok(Self(at))
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _unmounted = Tool::new("umount").arg(self.0).outcome();
    }
}

/// h_20.
#[test]
fn taken_ports_directories_and_wrong_certificates_harm_nobody() -> anyhow::Result<()> {
    let options = Options { up: Vec::new(), ..Options::default() }.with(&SMALL);
    let mut cluster = Cluster::start(options.with(&["--transport", "tls", "--dtl", "sync"]))?;
    let data = Pattern { seed: 1, offset: 0, mib: 8 };
    data.write(&cluster.target("demo"))?;
    let mut steps = Steps::default();
    steps.step("a DTL without a second router is missed, and flushes work", || {
        says_of_its_dtl(&cluster, "degraded")
    });
    steps.step("a second up on the directory", || {
        let nbd = format!("127.0.0.1:{}", free_port()?);
        let outcome = up(&cluster.dir(), &["--nbd", &nbd])?;
        refused(&outcome, &[&cluster.dir().display().to_string()])?;
        data.check(&cluster.target("demo")).context("the first goes on")
    });
    steps.step("a port that is taken", || {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let port = taken.local_addr()?.port().to_string();
        let dir = cluster.scratch("second");
        let outcome = up(&dir, &[&SMALL[..], &["--nbd", &format!("127.0.0.1:{port}")]].concat())?;
        refused(&outcome, &[&port])
    });
    steps.step("a certificate that is none", || {
        wrong_certificate(&mut cluster, b"no certificate at all", &["cert.pem"])
    });
    steps.step("a certificate of another role", || {
        let other = fs::read(cluster.dir().join("edge-1").join("cert.pem"))?;
        wrong_certificate(&mut cluster, &other, &["asd-1"])
    });
    steps.step("with the right ones everything is there", || {
        cluster.up()?;
        data.check(&cluster.target("demo"))
    });
    steps.done()
}

fn says_of_its_dtl(cluster: &Cluster, word: &str) -> anyhow::Result<()> {
    let status = cluster.status()?;
    ensure!(status["vdisks"][0]["dtl"] == word, "not {word}: {status}");
    Connection::open(&cluster.target("demo"))?.flush()
}

/// Stops the cluster, starts it with another certificate for the ASD, and puts the right one back.
fn wrong_certificate(cluster: &mut Cluster, wrong: &[u8], words: &[&str]) -> anyhow::Result<()> {
    // The step before may have left it down.
    let _already_down = cluster.stop();
    let file = cluster.dir().join("asd-1").join("cert.pem");
    let right = fs::read(&file)?;
    fs::write(&file, wrong)?;
    // A cluster that ran before may start without one disk; it must say so.
    let outcome = cluster.up();
    let said = match &outcome {
        Ok(()) => cluster.printed()?,
        Err(error) => format!("{error:#}"),
    };
    if outcome.is_ok() {
        cluster.stop()?;
    }
    fs::write(&file, right)?;
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in: {said}");
    }
    Ok(())
}

/// h_16.
#[test]
fn full_disks_push_back_and_lose_nothing() -> anyhow::Result<()> {
    let log = ["--log-segments", "4", "--log-segment-size", "8MiB"];
    let options = Options::default().with(&SMALL).with(&log).with(&["--asd-capacity", "160MiB"]);
    let mut cluster = Cluster::start(options)?;
    let target = cluster.target("demo");
    let kept = Pattern { seed: 1, offset: 0, mib: 16 };
    kept.write(&target)?;
    cluster.holdfast(&["vdisk", "sync", "demo"])?;
    // Writes into what can't hold it, until an error comes or no progress is made.
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let filler = scope.spawn(|| fill(&cluster, &stop, &written));
        let looked =
            cluster.wait_for(Duration::from_secs(120), "a full disk in status", |status| {
                status["backend"]["alarms"].to_string().contains("full")
            });
        stop.store(true, Ordering::Relaxed);
        let still_serves = kept.check(&target).context("what was flushed before is read");
        // A write that hangs on a full backend ends with its connection.
        let processes = cluster.processes();
        cluster.kill_edge();
        let _error_or_end = filler.join();
        looked?;
        still_serves?;
        let down: Vec<_> = processes?.into_iter().filter(|process| process.pid.is_none()).collect();
        ensure!(down.is_empty(), "a full disk ended {down:?}");
        Ok(())
    })?;
    eprintln!("{} MiB were taken before it was full", written.load(Ordering::Relaxed));
    cluster.kill_all9()?;
    cluster.up().context("start with full disks")?;
    kept.check(&target)
}

fn fill(cluster: &Cluster, stop: &AtomicBool, written: &AtomicU64) -> anyhow::Result<()> {
    let mut connection = Connection::open(&cluster.target("demo"))?;
    let mut random = sim::Random::new(9);
    let mut piece = vec![0; 1 << 20];
    for mib in 32..3000_u64 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        random.fill(&mut piece);
        connection.write(mib << 20, &piece)?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_full_write_log_slows_writes_and_refuses_none() -> anyhow::Result<()> {
    let log = ["--log-segments", "4", "--log-segment-size", "8MiB", "--no-restart"];
    let options = Options { up: Vec::new(), ..Options::default() };
    let cluster = Cluster::start(options.with(&SMALL).with(&log))?;
    // P14: a router alone copies its log to nobody.
    says_of_its_dtl(&cluster, "standalone")?;
    let verifier = Verifier::new(cluster.target("demo"), 3, 64 << 20);
    let going = verifier.start(&Load { connections: 2, ..Load::default() })?;
    wait_until(LIMIT, "some load", || Ok(100 < Counts::get(&verifier.counts().writes)))?;
    // Without a proxy nothing leaves the log; it fills.
    cluster.kill9("alba-proxy-1")?;
    let mut last = 0;
    wait_until(LIMIT, "the load to stand still", || {
        thread::sleep(Duration::from_secs(2));
        let now = Counts::get(&verifier.counts().writes);
        let stands = now == last;
        last = now;
        Ok(stands || going.has_ended())
    })?;
    ensure!(!going.has_ended(), "the load ended instead of waiting: {:?}", going.wait()?);
    let errors = Counts::get(&verifier.counts().errors);
    ensure!(errors == 0, "{errors} requests were refused by a full log");
    let config = cluster.dir().join("alba-proxy-1").join("config.toml");
    let _proxy = plain_holdfast(&["alba-proxy", "--config"]).arg(config).spawn()?;
    wait_until(LIMIT, "the load to go on", || {
        Ok(last + 100 < Counts::get(&verifier.counts().writes) || going.has_ended())
    })?;
    let ended = going.stop()?;
    let errors = Counts::get(&verifier.counts().errors);
    ensure!(errors == 0, "{errors} requests were refused; {ended:?}");
    verifier.check(Survival::Alive)
}
