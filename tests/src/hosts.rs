//! Hosts on one machine: network namespaces with addresses of their own on one switch, and cables that can be cut.
//!
//! A cut from one host to another is a wrong hardware address for it: what is sent leaves, and nobody takes it, as on a
//! broken wire. No error comes back, established connections are met too, and the other direction is a cut of its own.
//!
//! Invariant: dropping a [`Network`] removes its namespaces, cables and switch; what a killed test left is removed by the
//! next one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Nobody has it.
const NOBODY: &str = "02:00:00:00:00:99";
const SPACE: &str = "hf-";
const SWITCH: &str = "hfb";
/// The last number of the address of the machine itself on the switch.
const OPERATOR: u8 = 254;

/// A switch with hosts.
pub struct Network {
    /// Of this process; part of every name, so that tests don't meet.
    tag: u32,
    hosts: Vec<String>,
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(args).output().context("start ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Network {
    /// What is missing on this machine, if anything is.
    #[must_use]
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        Self::new(&["probe"]).err().map(|error| format!("no network namespaces here: {error:#}"))
    }

    /// A switch with a host of each of these names.
    pub fn new(hosts: &[&str]) -> anyhow::Result<Self> {
        ensure!(hosts.len() < usize::from(OPERATOR), "more hosts than addresses");
        sweep()?;
        let tag = std::process::id();
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let network = Self { tag, hosts };
        network.build()?;
        Ok(network)
    }

    fn build(&self) -> anyhow::Result<()> {
        let switch = self.switch();
        ip(&["link", "add", &switch, "type", "bridge"])?;
        ip(&["link", "set", &switch, "up"])?;
        let operator = format!("{}/24", self.numbered(OPERATOR));
        ip(&["addr", "add", &operator, "dev", &switch])?;
        for host in &self.hosts {
            let (space, cable) = (self.space(host), self.cable(host)?);
            ip(&["netns", "add", &space])?;
            let peer = ["peer", "name", "eth0", "netns", &space];
            ip(&[&["link", "add", &cable, "type", "veth"][..], &peer].concat())?;
            ip(&["link", "set", &cable, "master", &switch, "up"])?;
            let address = format!("{}/24", self.address(host)?);
            ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn number(&self, host: &str) -> anyhow::Result<u8> {
        let at = self.hosts.iter().position(|known| known == host);
        let at = at.with_context(|| format!("there is no host {host}"))?;
        Ok(u8::try_from(at + 1)?)
    }

    fn numbered(&self, number: u8) -> String {
        let [.., high, low] = self.tag.to_be_bytes();
        // Of 10.128.0.0/9, where hardly anybody is.
        format!("10.{}.{low}.{number}", 128 | high)
    }

    pub fn address(&self, host: &str) -> anyhow::Result<String> {
        Ok(self.numbered(self.number(host)?))
    }

    /// The name of its network namespace.
    #[must_use]
    pub fn space(&self, host: &str) -> String {
        format!("{SPACE}{}-{host}", self.tag)
    }

    fn switch(&self) -> String {
        format!("{SWITCH}{}", self.tag)
    }

    fn cable(&self, host: &str) -> anyhow::Result<String> {
        Ok(format!("{}v{}", self.switch(), self.number(host)?))
    }

    /// From now on nothing that `from` sends arrives at `to`.
    pub fn cut_one_way(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (space, address) = (self.space(from), self.address(to)?);
        let nobody = ["lladdr", NOBODY, "nud", "permanent", "dev", "eth0"];
        ip(&[&["-n", &space, "neigh", "replace", &address][..], &nobody].concat()).map(drop)
    }

    pub fn mend_one_way(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (space, address) = (self.space(from), self.address(to)?);
        ip(&["-n", &space, "neigh", "del", &address, "dev", "eth0"]).map(drop)
    }

    /// Nothing arrives between these two.
    pub fn cut(&self, one: &str, other: &str) -> anyhow::Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    pub fn mend(&self, one: &str, other: &str) -> anyhow::Result<()> {
        self.mend_one_way(one, other)?;
        self.mend_one_way(other, one)
    }

    /// Pulls the host's plug at the switch: nothing comes or goes.
    pub fn unplug(&self, host: &str) -> anyhow::Result<()> {
        ip(&["link", "set", &self.cable(host)?, "nomaster"]).map(drop)
    }

    pub fn plug(&self, host: &str) -> anyhow::Result<()> {
        ip(&["link", "set", &self.cable(host)?, "master", &self.switch()]).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = remove(self.tag) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes what the process of this id made. A namespace takes its end of the cable along, and that the other.
fn remove(tag: u32) -> anyhow::Result<()> {
    let mine = format!("{SPACE}{tag}-");
    for space in spaces()?.iter().filter(|space| space.starts_with(&mine)) {
        ip(&["netns", "del", space])?;
    }
    let switch = format!("{SWITCH}{tag}");
    if Path::new("/sys/class/net").join(&switch).exists() {
        ip(&["link", "del", &switch])?;
    }
    Ok(())
}

fn spaces() -> anyhow::Result<Vec<String>> {
    let listed = ip(&["netns", "list"])?;
    Ok(listed.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect())
}

/// Removes what processes left that are gone.
fn sweep() -> anyhow::Result<()> {
    let mut tags = std::collections::BTreeSet::new();
    for space in spaces()? {
        tags.extend(
            space.strip_prefix(SPACE).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok()),
        );
    }
    let Ok(devices) = std::fs::read_dir("/sys/class/net") else { bail!("no /sys/class/net") };
    for device in devices.flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        tags.extend(name.strip_prefix(SWITCH).and_then(|tag| tag.parse::<u32>().ok()));
    }
    let gone =
        |tag: &u32| *tag == std::process::id() || !Path::new(&format!("/proc/{tag}")).exists();
    for tag in tags.into_iter().filter(gone) {
        remove(tag)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    /// Connects from the machine itself; `None` = no answer.
    fn reaches(address: &str) -> Option<ErrorKind> {
        let address = format!("{address}:9").parse().unwrap();
        match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(_) => Some(ErrorKind::AlreadyExists),
            Err(error) if error.kind() == ErrorKind::TimedOut => None,
            Err(error) => Some(error.kind()),
        }
    }

    /// Whether a connection from one host to another is refused, which takes a way there and one back.
    fn talks(network: &Network, from: &str, to: &str) -> bool {
        let address = network.address(to).unwrap();
        let script = format!("exec 3<>/dev/tcp/{address}/9");
        let mut command = Command::new("ip");
        let inside = ["netns", "exec", &network.space(from), "timeout", "0.5"];
        command.args(inside).args(["bash", "-c", &script]).stderr(Stdio::null());
        // `timeout` says 124 when nothing came back.
        command.status().unwrap().code() == Some(1)
    }

    #[test]
    fn cables_are_cut_one_way_and_both_and_nothing_is_left_behind() {
        if let Some(missing) = Network::missing() {
            eprintln!("SKIPPED: {missing}");
            return;
        }
        let network = Network::new(&["a", "b", "c"]).unwrap();
        let a = network.address("a").unwrap();
        assert_eq!(reaches(&a), Some(ErrorKind::ConnectionRefused));
        assert!(talks(&network, "a", "b") && talks(&network, "c", "b"));
        network.cut_one_way("b", "a").unwrap();
        assert!(!talks(&network, "a", "b"), "answers don't arrive");
        assert!(talks(&network, "c", "b") && talks(&network, "a", "c"), "others are untouched");
        network.mend_one_way("b", "a").unwrap();
        assert!(talks(&network, "a", "b"));
        network.unplug("a").unwrap();
        assert!(!talks(&network, "b", "a") && reaches(&a).is_none());
        network.plug("a").unwrap();
        assert!(talks(&network, "b", "a"));
        let (space, switch) = (network.space("a"), network.switch());
        drop(network);
        assert!(!spaces().unwrap().contains(&space));
        assert!(!Path::new("/sys/class/net").join(switch).exists());
    }
}
