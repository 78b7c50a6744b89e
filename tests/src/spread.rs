//! A cluster whose processes live on hosts of their own: arakoons `k1` to `k3`, disks and proxies `b`, routers `r1`…,
//! edges `e1`….
//!
//! One `holdfast up` supervises them all, each within its host's network namespace, as `netns` in `cluster.toml` says. They
//! talk mutual TLS between their own addresses; only NBD is a unix socket, so that the load needs no network.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::cluster::{Cluster, Options};
use crate::find;
use crate::hosts::Network;
use crate::nbd::Target;

const ID: &str = "5be1ec0de0000001";
const ARAKOONS: usize = 3;
const ASDS: usize = 3;
const POLICY: &str = "2,1,2,1";
/// Of each process, on its host's address.
const PORT: usize = 7000;

/// What an edge does its own way.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    pub failover_after: &'static str,
    /// Pushes out another edge.
    pub take_over: bool,
    /// Reads only, beside a writer.
    pub read_only: bool,
}

#[derive(Debug, Clone)]
pub struct Layout {
    pub routers: usize,
    pub edges: Vec<Edge>,
    /// `sync`, `async` or `none`.
    pub dtl: &'static str,
}

/// The cluster and its cables. The processes end before their hosts do.
pub struct Spread {
    pub cluster: Cluster,
    pub network: Network,
}

struct Member {
    id: String,
    role: &'static str,
    host: String,
}

fn members(layout: &Layout) -> Vec<Member> {
    let mut members = Vec::new();
    let mut add = |role: &'static str, count: usize, host: &dyn Fn(usize) -> String| {
        members.extend((1..=count).map(|number| Member {
            id: format!("{role}-{number}"),
            role,
            host: host(number),
        }));
    };
    add("arakoon", ARAKOONS, &|number| format!("k{number}"));
    add("asd", ASDS, &|_| "b".to_owned());
    add("alba-proxy", 1, &|_| "b".to_owned());
    add("router", layout.routers, &|number| format!("r{number}"));
    add("edge", layout.edges.len(), &|number| format!("e{number}"));
    members
}

/// The host of a router: `router-2` runs on `r2`.
#[must_use]
pub fn host_of(router: &str) -> String {
    router.replace("router-", "r")
}

impl Spread {
    /// Starts it and waits until I/O through the first edge works.
    pub fn start(layout: &Layout) -> anyhow::Result<Self> {
        let members = members(layout);
        let mut hosts: Vec<&str> = members.iter().map(|member| member.host.as_str()).collect();
        hosts.dedup();
        let network = Network::new(&hosts)?;
        let options = Options { vdisks: vec![("demo", "1GiB")], up: vec!["--no-restart".into()] };
        let cluster = Cluster::prepare(options)?;
        let mut spread = Self { cluster, network };
        spread.write_files(layout, &members)?;
        spread.cluster.serve_at(&spread.socket(1));
        spread.cluster.up()?;
        Ok(spread)
    }

    fn socket(&self, edge: usize) -> PathBuf {
        self.cluster.dir().join(format!("edge-{edge}")).join("nbd")
    }

    /// Where the edge of this number serves the vDisk.
    pub fn target(&self, edge: usize) -> anyhow::Result<Target> {
        format!("nbd+unix:///demo?socket={}", self.socket(edge).display()).parse()
    }

    /// `holdfast up` makes what is missing: certificates, keys, the other configurations.
    fn write_files(&self, layout: &Layout, members: &[Member]) -> anyhow::Result<()> {
        let dir = self.cluster.dir();
        fs::create_dir_all(&dir)?;
        let mut endpoints = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let address = self.network.address(&member.host)?;
            endpoints.push(format!("tls://{address}:{}", PORT + at));
        }
        let mut text = format!(
            "version = 1\ncluster = '{ID}'\ndir = '{}'\nnbd = 'unix:{}'\n\n[choices]\ntransport = 'tls'\n\
             policy = '{POLICY}'\ncompression = 'adaptive'\nencryption = 'aes-256-gcm'\ndtl = '{}'\n\
             asd_capacity_bytes = {}\n",
            dir.display(),
            self.socket(1).display(),
            layout.dtl,
            2_u64 << 30,
        );
        for (at, (member, endpoint)) in members.iter().zip(&endpoints).enumerate() {
            let Member { id, role, host } = member;
            let netns = self.network.space(host);
            write!(
                text,
                "\n[[members]]\nrole = '{role}'\nid = '{id}'\nendpoint = '{endpoint}'\nnetns = '{netns}'\n"
            )?;
            if *role == "arakoon" {
                writeln!(text, "raft_id = {}", at + 1)?;
            }
        }
        fs::write(dir.join("cluster.toml"), text)?;
        let of = |role: &'static str| {
            members.iter().zip(&endpoints).filter(move |(member, _)| member.role == role)
        };
        let routers: Vec<&str> = of("router").map(|(_, endpoint)| endpoint.as_str()).collect();
        for ((member, endpoint), edge) in of("edge").zip(&layout.edges) {
            self.write_edge(&member.id, endpoint, &routers, edge)?;
        }
        Ok(())
    }

    fn write_edge(
        &self,
        id: &str,
        endpoint: &str,
        routers: &[&str],
        edge: &Edge,
    ) -> anyhow::Result<()> {
        let dir = self.cluster.dir();
        let own = dir.join(id);
        fs::create_dir_all(&own)?;
        let Edge { failover_after, take_over, read_only } = edge;
        let read_only = if *read_only { "['demo']" } else { "[]" };
        let (own_shown, ca) = (own.display(), dir.join("ca").join("cert.pem"));
        let text = format!(
            "name = '{id}'\ncluster = '{ID}'\ndata_dir = '{own_shown}/data'\nlisten = '{endpoint}'\n\
             routers = {routers:?}\nnbd = ['unix:{own_shown}/nbd']\ndetach_after = '3s'\n\
             failover_after = '{failover_after}'\ntake_over = {take_over}\nread_only = {read_only}\n\n\
             [tls]\nca = '{}'\ncert = '{own_shown}/cert.pem'\nkey = '{own_shown}/key.pem'\n",
            ca.display(),
        );
        fs::write(own.join("config.toml"), text).context("write an edge's configuration")
    }

    /// The router that keeps the copy of the owner's log.
    pub fn dtl_target(&self) -> anyhow::Result<String> {
        let shown = self.cluster.json(&["vdisk", "show", "demo"])?;
        let target = find(&shown, "targets").and_then(|targets| targets[0]["router"].as_str());
        let target = target.with_context(|| format!("no DTL target: {shown}"))?;
        let routers = self.cluster.json(&["router", "list"])?;
        let mut routers = routers.as_array().into_iter().flatten();
        let named = routers.find(|router| router["router"].as_str() == Some(target));
        let name = named.and_then(|router| router["id"].as_str());
        Ok(name.context("the target isn't among the routers")?.to_owned())
    }
}
