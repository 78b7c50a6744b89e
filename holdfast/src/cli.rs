//! The command line: what can be said, and where it goes.

use crate::cluster::{Cluster, Where};
use crate::dtl::{self, DtlCommand};
use crate::edge::{self, EdgeCommand};
use crate::events::{self, EventsArgs};
use crate::failure::{EXIT_CODES, Failure};
use crate::inspect::{self, Check, KvCommand};
use crate::mds::{self, MdsCommand};
use crate::output::{Format, print};
use crate::process::{self, RoleArgs};
use crate::role::ProcessRole;
use crate::router::{self, RouterCommand};
use crate::up::{self, UpArgs};
use crate::vdisk::{self, VdiskCommand};
use clap::{Parser, Subcommand};
use runtime::shutdown::on_signals;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  holdfast up                                  a cluster on this machine, with a vDisk `demo`
  holdfast status                              every process, the backend's health, the vDisks
  holdfast vdisk create db --size 10GiB        another vDisk
  nbdcopy image.raw nbd://127.0.0.1:10809/db   fill it
";

const UP_HELP: &str = "\
The first run makes configuration, certificates and keys below DIR; each process keeps everything in DIR/ID/.
A later run continues with that data, and refuses options that contradict it. `ready URI` is printed on standard output
for each vDisk once reading from it through NBD works. SIGINT or SIGTERM stops everything in order.

Examples:
  holdfast up --dir /srv/holdfast --vdisk db:100GiB --vdisk logs:20GiB
  holdfast up --asds 12 --policy '8,3,10,1;4,2,5,1'
  holdfast up --transport tls --nbd unix:/run/holdfast.sock
";

const EVENTS_HELP: &str = "\
Routers and proxies keep their newest 1,024 events each, in memory: one that was started again
remembers only its own life. Times are those of the process's host.

  serving claimed taken-over handed-over not-handed-over     who owns a vDisk
  contested fenced rebalance not-opened gap loss-accepted    why it moved, or isn't served
  attachment-ended                                           an operator ended one
  map-fetched map-rebuilt map-dropped                        where a page map was taken from
  dtl backend-out backend-back                               where what is written is safe
  session session-unheard session-lost standing              a router
  log-full log-failed                                        its write log
  osd osd-ok object-lost object-found                        disks, as a proxy sees them

Examples:
  holdfast events --since 1h
  holdfast events --follow --vdisk db
  holdfast events --follow --json | while read -r event; do …; done
";

/// Erasure-coded block storage
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, after_help = format!("{EXAMPLES}\n{EXIT_CODES}"))]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub place: Where,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine
    #[command(after_help = format!("{UP_HELP}\n{EXIT_CODES}"))]
    Up(Box<UpArgs>),
    /// Show every process, the backend's health and the vDisks
    #[command(after_help = format!(
        "Example:\n  holdfast status --check || page-somebody\n\n{EXIT_CODES}"
    ))]
    Status {
        #[command(flatten)]
        format: Format,
        #[command(flatten)]
        check: Check,
    },
    /// Make, show, sync, resize and delete vDisks
    #[command(subcommand, after_help = EXIT_CODES)]
    Vdisk(VdiskCommand),
    /// Look at the second copies of the write logs
    #[command(subcommand)]
    Dtl(DtlCommand),
    /// Look at the page maps and their copies
    #[command(subcommand)]
    Mds(MdsCommand),
    /// Look at the backend
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Run one ASD, or list those of the cluster
    Asd(AsdArgs),
    /// Look at arakoon's keys
    #[command(subcommand)]
    Kv(KvCommand),
    /// Print or check a role's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What happened to vDisks, routers and disks, over all processes by time
    #[command(after_help = EVENTS_HELP)]
    Events(EventsArgs),
    /// Run one node of the key-value store
    Arakoon(RoleArgs),
    /// Run one alba-proxy
    AlbaProxy(RoleArgs),
    /// Run one storage router, or list them, hand vDisks over, empty one for maintenance
    Router(RouterArgs),
    /// Run one edge, the NBD server, or see what the edges serve and how their clients fare
    Edge(EdgeArgs),
}

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Health, policies, capacity, alarms
    Show {
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct AsdArgs {
    #[command(subcommand)]
    pub command: Option<AsdCommand>,
    #[command(flatten)]
    pub run: Option<RoleArgs>,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct RouterArgs {
    #[command(subcommand)]
    pub command: Option<RouterCommand>,
    #[command(flatten)]
    pub run: Option<RoleArgs>,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct EdgeArgs {
    #[command(subcommand)]
    pub command: Option<EdgeCommand>,
    #[command(flatten)]
    pub run: Option<RoleArgs>,
}

#[derive(Debug, Subcommand)]
pub enum AsdCommand {
    /// Every ASD of the cluster: state, space, damage
    List {
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a configuration with every key explained
    #[command(after_help = "Example:\n  holdfast config example asd > /etc/holdfast/asd-1.toml")]
    Example { role: ProcessRole },
    /// Say what is wrong with a configuration, if anything
    Check { role: ProcessRole, file: PathBuf },
}

/// # Errors
/// Whatever the command runs into.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { place, command } = cli;
    let done = |result: Result<(), Failure>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Arakoon(args) => done(process::run(ProcessRole::Arakoon, &args)),
        Command::Asd(AsdArgs { command: Some(AsdCommand::List { format }), .. }) => {
            ask(&place, async |cluster| inspect::asd_list(cluster, format).await)
        }
        Command::Asd(AsdArgs { run: Some(args), .. }) => {
            done(process::run(ProcessRole::Asd, &args))
        }
        Command::Asd(AsdArgs { run: None, .. }) => {
            Err(Failure::config("say `holdfast asd --config FILE` or `holdfast asd list`"))
        }
        Command::AlbaProxy(args) => done(process::run(ProcessRole::AlbaProxy, &args)),
        Command::Mds(command) => ask(&place, async |cluster| mds::run(command, cluster).await),
        Command::Router(RouterArgs { command: Some(command), .. }) => {
            ask(&place, async |cluster| router::run(command, cluster).await)
        }
        Command::Router(RouterArgs { run: Some(args), .. }) => {
            done(process::run(ProcessRole::Router, &args))
        }
        Command::Router(RouterArgs { run: None, .. }) => Err(Failure::config(
            "say `holdfast router --config FILE`, or `holdfast router list` and the like; see --help",
        )),
        Command::Edge(EdgeArgs { command: Some(command), .. }) => {
            ask(&place, async |cluster| edge::run(command, cluster).await)
        }
        Command::Edge(EdgeArgs { run: Some(args), .. }) => {
            done(process::run(ProcessRole::Edge, &args))
        }
        Command::Edge(EdgeArgs { run: None, .. }) => {
            Err(Failure::config("say `holdfast edge --config FILE` or `holdfast edge status`"))
        }
        Command::Config(ConfigCommand::Example { role }) => {
            print(process::example(role));
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Check { role, file }) => {
            process::check_config(role, &file)?;
            print(&format!("{} is a configuration of an {role}\n", file.display()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Up(args) => done(block_on(async { up::run(*args, &place, on_signals()).await })?),
        Command::Status { format, check } => {
            let cluster = place.load()?;
            block_on(inspect::status(&cluster, format, check))?
        }
        Command::Vdisk(command) => ask(&place, async |cluster| vdisk::run(command, cluster).await),
        Command::Events(args) => ask(&place, async |cluster| events::run(args, cluster).await),
        Command::Dtl(command) => ask(&place, async |cluster| dtl::run(command, cluster).await),
        Command::Backend(BackendCommand::Show { format }) => {
            ask(&place, async |cluster| inspect::backend_show(cluster, format).await)
        }
        Command::Kv(command) => ask(&place, async |cluster| inspect::kv(command, cluster).await),
    }
}

/// Of a cluster that runs.
fn ask(
    place: &Where,
    work: impl AsyncFnOnce(&Cluster) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let cluster = place.load()?;
    block_on(work(&cluster))?.map(|()| ExitCode::SUCCESS)
}

/// On one thread, as every role runs.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start the async runtime: {error}")))?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_cluster_may_be_named_before_or_after_the_command() {
        for line in [
            "holdfast --dir /d vdisk list",
            "holdfast vdisk list --dir /d",
            "holdfast vdisk --dir /d list",
        ] {
            assert_eq!(parse(line).unwrap().place.directory(), PathBuf::from("/d"), "{line}");
        }
    }

    #[test]
    fn asd_runs_one_or_lists_all() {
        let run = parse("holdfast asd --config /c --die-with-parent").unwrap().command;
        assert!(
            matches!(&run, Command::Asd(AsdArgs { command: None, run: Some(args) }) if args.die_with_parent == Some(0)),
            "{run:?}"
        );
        let list = parse("holdfast asd list --json").unwrap().command;
        assert!(matches!(
            list,
            Command::Asd(AsdArgs {
                command: Some(AsdCommand::List { format: Format { json: true } }),
                ..
            })
        ));
        assert!(parse("holdfast asd").is_err());
        assert!(parse("holdfast asd --config /c list").is_err());
    }

    #[test]
    fn up_takes_the_documented_options() {
        let line = "holdfast up --dir D --arakoons 3 --asds 6 --proxies 2 --routers 2 --policy 4,2,5,1;2,2,3,1 \
                    --compression off --encryption aes-256-gcm --nbd 127.0.0.1:10809 --vdisk demo:4GiB --vdisk b:1GiB \
                    --asd-capacity 10GiB --transport tls --no-restart";
        let Command::Up(args) = parse(line).unwrap().command else { panic!("not up") };
        assert_eq!((args.vdisks.len(), args.no_restart, args.wanted.asds), (2, true, Some(6)));
        for wrong in [
            "--policy 4,2,9,1",
            "--vdisk demo",
            "--nbd 0.0.0.0:1",
            "--asd-capacity lots",
            "--compression maybe",
        ] {
            assert!(parse(&format!("holdfast up {wrong}")).is_err(), "{wrong}");
        }
    }
}
