//! An edge and its router in one process, and ways to reach them.

use crate::fake_router::FakeRouter;
use edge::config::NbdAddress;
use edge::{Config, Edge};
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::rpc::{Call, Client, ClientOptions};
use runtime::shutdown::Shutdown;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use wire::Role;
use wire::common::Status;

pub const MIB: u64 = 1 << 20;
/// Whatever takes longer is stuck.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rig {
    pub dir: TempDir,
    pub router: FakeRouter,
    pub edge: Option<RunningEdge>,
}

pub struct RunningEdge {
    pub tcp: SocketAddr,
    pub unix: PathBuf,
    pub status: Endpoint,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl RunningEdge {
    /// Starts an edge called `name`, with `extra` lines of configuration.
    pub async fn start(dir: &Path, name: &str, router: &Endpoint, extra: &str) -> Self {
        let config = configuration(dir, name, router, extra);
        let shutdown = Shutdown::new();
        let edge = Edge::start(config, shutdown.clone()).await.unwrap();
        let addresses = edge.nbd_addresses();
        let [NbdAddress::Tcp(tcp), NbdAddress::Unix(unix)] = &addresses[..] else {
            panic!("one of each was configured: {addresses:?}");
        };
        let (tcp, unix, status) = (*tcp, unix.clone(), edge.status_endpoint());
        Self { tcp, unix, status, shutdown, task: tokio::spawn(edge.run()) }
    }

    /// As at SIGTERM.
    pub async fn stop(self) {
        self.shutdown.trigger();
        self.task.await.unwrap();
    }

    /// As at SIGKILL: nothing is flushed, nothing detached. Its vDisk tasks are gone with their runtime in reality; here
    /// they are left to find out that they were fenced.
    pub fn kill(self) {
        self.task.abort();
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.tcp)
    }

    pub fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.unix.display())
    }

    pub async fn status(&self) -> Status {
        let admin = Identity::new(Role::Admin, "test", "test", None).unwrap();
        let client = Client::new(self.status.clone(), Role::Edge, admin, ClientOptions::default());
        let call = Call::within(PATIENCE);
        let answer = client.call(wire::common::method::STATUS, &(), call).await.unwrap();
        answer.0
    }

    /// A number of the first export.
    pub async fn figure(&self, key: &str) -> u64 {
        let json = self.status().await.details_json;
        let (_, rest) = json.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{json}"));
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
        rest[..end].parse().unwrap()
    }
}

pub fn configuration(dir: &Path, name: &str, router: &Endpoint, extra: &str) -> Config {
    let path = dir.join(format!("{name}.toml"));
    let text = format!(
        "name = '{name}'\ncluster = 'test'\ndata_dir = '{dir}/{name}'\nlisten = '127.0.0.1:0'\n\
         nbd = ['127.0.0.1:0', 'unix:{dir}/{name}.nbd']\nrouters = ['{router}']\n{extra}",
        dir = dir.display()
    );
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

impl Rig {
    /// One edge, one router, one vDisk `demo` of `size` bytes.
    pub async fn start(size: u64, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}/router.sock", dir.path().display());
        let router = FakeRouter::start(&socket, &[("demo", size)]).await;
        let edge = RunningEdge::start(dir.path(), "edge-1", &socket.parse().unwrap(), extra).await;
        Self { dir, router, edge: Some(edge) }
    }

    pub fn edge(&self) -> &RunningEdge {
        self.edge.as_ref().unwrap()
    }

    pub fn router_endpoint(&self) -> Endpoint {
        format!("unix:{}/router.sock", self.dir.path().display()).parse().unwrap()
    }

    pub async fn another_edge(&self, name: &str, extra: &str) -> RunningEdge {
        RunningEdge::start(self.dir.path(), name, &self.router_endpoint(), extra).await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn stop(self) {
        if let Some(edge) = self.edge {
            edge.stop().await;
        }
    }
}

/// What a tool said.
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

/// Runs a tool to its end. Missing is a failure with its remedy.
pub async fn tool(program: &str, args: &[&str]) -> Said {
    let mut command = tokio::process::Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    // The system's own Python has libnbd's module; another one that comes first in the path hasn't.
    command.env("PATH", format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default()));
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("`{program} {}` is stuck", args.join(" ")));
    let output = match output {
        Ok(output) => output,
        Err(error) => panic!("can't run `{program}` ({error}): install it by `make setup`"),
    };
    Said {
        ok: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a tool that must succeed.
pub async fn good(program: &str, args: &[&str]) -> String {
    let said = tool(program, args).await;
    assert!(said.ok, "`{program} {}` failed:\n{}{}", args.join(" "), said.out, said.err);
    said.out
}

/// Runs a script in libnbd's shell, with `uri` set and `errno` imported; `h` is a fresh handle.
pub async fn nbdsh(uri: &str, script: &str) -> String {
    let script = format!("import errno\nuri = '{uri}'\n{script}");
    good("nbdsh", &["-c", &script]).await
}

/// Bytes that look random, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
