//! Starts, kills and watches node processes.

use anyhow::{Context, Result, bail, ensure};
use arakoon_client::ArakoonClient;
use bytes::Bytes;
use runtime::config::{NodeEntry, Parsed};
use runtime::peer::Identity;
use runtime::rpc::{Call, Client, ClientOptions};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wire::Role;
use wire::arakoon::{Consistency, Direction, Entries, RaftBatch, RaftMessage, Range, method};

/// Nothing in these tests takes longer on the slowest machine, unless it hangs.
pub const WITHIN: Duration = Duration::from_secs(60);

pub struct Cluster {
    dir: TempDir,
    nodes: Vec<NodeEntry>,
    running: BTreeMap<String, Child>,
    identity: Arc<Identity>,
}

pub fn counter(value: Option<Bytes>) -> i64 {
    value
        .map_or(0, |value| i64::from_le_bytes(value[..].try_into().expect("a counter has 8 bytes")))
}

/// Built by cargo next to the tests.
fn node_program() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir =
        test.parent().and_then(|deps| deps.parent()).context("tests lie in a target directory")?;
    let program = dir.join("examples").join("node");
    ensure!(
        program.exists(),
        "{} is missing; `cargo build -p arakoon --example node`",
        program.display()
    );
    Ok(program)
}

impl Cluster {
    pub fn start(size: usize, snapshot_after: u64) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let nodes: Vec<NodeEntry> = (1..=size)
            .map(|id| {
                let name = format!("n{id}");
                let address =
                    format!("unix:{}", dir.path().join(&name).with_extension("sock").display());
                Ok(NodeEntry { id: u64::try_from(id)?, name, address: Parsed(address.parse()?) })
            })
            .collect::<Result<_>>()?;
        let identity = Identity::new(Role::Router, "test", "c", None)?;
        let mut cluster = Self { dir, nodes, running: BTreeMap::new(), identity };
        for node in cluster.nodes.clone() {
            cluster.write_config(&node, snapshot_after)?;
            cluster.restart(&node.name)?;
        }
        Ok(cluster)
    }

    fn write_config(&self, node: &NodeEntry, snapshot_after: u64) -> Result<()> {
        let data = self.dir.path().join(&node.name);
        let mut text = format!(
            "name = \"{}\"\ncluster = \"c\"\ndata_dir = \"{}\"\nlisten = \"{}\"\nsnapshot_after_entries = {snapshot_after}\n",
            node.name,
            data.display(),
            node.address.0
        );
        for NodeEntry { id, name, address } in &self.nodes {
            write!(
                text,
                "[[arakoon.nodes]]\nid = {id}\nname = \"{name}\"\naddress = \"{}\"\n",
                address.0
            )?;
        }
        std::fs::write(self.config_path(&node.name), text)?;
        Ok(())
    }

    fn config_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.toml"))
    }

    pub fn change_config(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let path = self.config_path(name);
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(path, text.replace(from, to))?;
        Ok(())
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub fn log(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_path(name))?)
    }

    pub fn restart(&mut self, name: &str) -> Result<()> {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(name))?;
        let child = Command::new(node_program()?)
            .arg(self.config_path(name))
            .env("RUST_LOG", "info")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// Starts a second process with that configuration, which must fail; returns what it says.
    pub fn start_another(&self, name: &str) -> Result<String> {
        let output = Command::new(node_program()?).arg(self.config_path(name)).output()?;
        ensure!(!output.status.success(), "it started");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut child = self.running.remove(name).context("not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub fn remove_data(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.dir.path().join(name))?)
    }

    /// That node votes again.
    pub async fn voting(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        while !self.log(name)?.contains("it has caught up") {
            ensure!(Instant::now() < deadline, "{name} doesn't catch up");
            sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }

    /// SIGTERM to all; each must end well.
    pub fn stop_all(mut self) -> Result<()> {
        for child in self.running.values() {
            let pid = child.id().to_string();
            ensure!(Command::new("kill").args(["-TERM", &pid]).status()?.success());
        }
        for (name, mut child) in std::mem::take(&mut self.running) {
            let status = child.wait()?;
            ensure!(status.success(), "{name} ended with {status}: {}", self.log(&name)?);
        }
        Ok(())
    }

    pub fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    pub fn client(&self) -> ArakoonClient {
        ArakoonClient::new(&self.nodes, &self.identity).with_deadline(Duration::from_secs(30))
    }

    /// Facts of every node that answers.
    async fn facts(&self) -> Vec<(String, serde_json::Value)> {
        let status = self.client().status().await;
        let facts = status.into_iter().filter_map(|(name, status)| {
            Some((name, serde_json::from_str(&status.ok()?.details_json).ok()?))
        });
        facts.collect()
    }

    /// Polls until `find` has something to say.
    async fn until<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&[(String, serde_json::Value)]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + WITHIN;
        loop {
            let facts = self.facts().await;
            if let Some(found) = find(&facts) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("{what}: not within {WITHIN:?}; {facts:?}");
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    /// The node that a majority of all follows.
    pub async fn leader(&self) -> Result<String> {
        let needed = self.nodes.len() / 2 + 1;
        self.until("a leader", |facts| {
            let named: Vec<&str> =
                facts.iter().filter_map(|(_, fact)| fact["leader"].as_str()).collect();
            let leader = named
                .iter()
                .max_by_key(|name| named.iter().filter(|other| other == name).count())?;
            let followers = named.iter().filter(|name| *name == leader).count();
            let alive = facts.iter().any(|(name, _)| name == leader);
            (followers >= needed && alive).then(|| (*leader).to_owned())
        })
        .await
    }

    /// All nodes answer and have applied the same.
    pub async fn all_caught_up(&self) -> Result<()> {
        let size = self.nodes.len();
        self.until("all caught up", |facts| {
            let applied: Vec<u64> =
                facts.iter().filter_map(|(_, fact)| fact["applied"].as_u64()).collect();
            (applied.len() == size
                && applied.iter().all(|index| *index == applied[0] && *index > 0))
            .then_some(())
        })
        .await
    }

    /// Some node has applied so many more entries than any has now.
    pub async fn more_applied(&self, entries: u64) -> Result<()> {
        let most = |facts: &[(String, serde_json::Value)]| {
            facts.iter().filter_map(|(_, fact)| fact["applied"].as_u64()).max()
        };
        let now = self.until("a node", most).await?;
        self.until("progress", |facts| (most(facts)? >= now + entries).then_some(())).await
    }

    /// Speaks to `to` as that peer.
    pub async fn raft(&self, to: &str, messages: Vec<RaftMessage>) -> Result<Vec<RaftMessage>> {
        let node = self.nodes.iter().find(|node| node.name == to).context("no such node")?;
        let identity = Identity::new(Role::Arakoon, "a peer", "c", None)?;
        let client =
            Client::new(node.address.0.clone(), Role::Arakoon, identity, ClientOptions::default());
        let batch = RaftBatch { messages };
        let (answer, _): (RaftBatch, Bytes) =
            client.call(method::RAFT, &batch, Call::within(WITHIN)).await?;
        Ok(answer.messages)
    }

    /// What that node has under a prefix, however old; the first page of it.
    pub async fn read_locally(&self, name: &str, start: &str) -> Result<Vec<(Bytes, Bytes)>> {
        let node = self.nodes.iter().find(|node| node.name == name).context("no such node")?;
        let identity = Arc::clone(&self.identity);
        let client =
            Client::new(node.address.0.clone(), Role::Arakoon, identity, ClientOptions::default());
        let range = Range {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: None,
            direction: Direction::Forward,
            limit: 1000,
            consistency: Consistency::Any,
        };
        let (page, _): (Entries, Bytes) =
            client.call(method::RANGE, &range, Call::within(WITHIN)).await?;
        Ok(page.entries)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("logs lie in {}", self.dir.path().display());
        }
    }
}
