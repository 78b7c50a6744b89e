//! `holdfast arakoon|asd|alba-proxy|router|edge --config FILE`: one role as a process, and its configuration.

use crate::failure::Failure;
use crate::role::ProcessRole;
use runtime::logging::LogFormat;
use runtime::shutdown::{Shutdown, on_signals};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use std::path::{Path, PathBuf};

/// How a role is started.
#[derive(Debug, clap::Args)]
pub struct RoleArgs {
    /// This process' configuration; `holdfast config example ROLE` prints one with every key explained
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Be killed when the process that started this one ends; with PID, only start while that is the parent
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pub die_with_parent: Option<i32>,

    /// Write logs as one JSON object per line
    #[arg(long)]
    pub log_json: bool,
}

/// The configuration of a role that explains every key.
#[must_use]
pub const fn example(role: ProcessRole) -> &'static str {
    match role {
        ProcessRole::Arakoon => arakoon::config::EXAMPLE,
        ProcessRole::Asd => asd::config::EXAMPLE,
        ProcessRole::AlbaProxy => alba_proxy::config::EXAMPLE,
        ProcessRole::Router => router::config::EXAMPLE,
        ProcessRole::Edge => edge::config::EXAMPLE,
    }
}

/// # Errors
/// What the role itself would say about this configuration.
pub fn check_config(role: ProcessRole, file: &Path) -> Result<(), Failure> {
    let checked = match role {
        ProcessRole::Arakoon => arakoon::config::Config::load(file).map(drop),
        ProcessRole::Asd => asd::config::Config::load(file).map(drop),
        ProcessRole::AlbaProxy => alba_proxy::config::Config::load(file).map(drop),
        ProcessRole::Router => router::config::Config::load(file).map(drop),
        ProcessRole::Edge => edge::config::Config::load(file).map(drop),
    };
    checked.map_err(Failure::config)
}

/// Runs until a signal ends it.
///
/// # Errors
/// Wrong configuration, or what stopped the role.
pub fn run(role: ProcessRole, args: &RoleArgs) -> Result<(), Failure> {
    if let Some(parent) = args.die_with_parent {
        tie_to_parent(parent)?;
    }
    check_config(role, &args.config)?;
    allow_many_files();
    runtime::logging::init(if args.log_json { LogFormat::Json } else { LogFormat::Human });
    runtime::panics::end_the_process();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("can't start the async runtime: {error}")))?;
    let ended = runtime.block_on(async { run_role(role, &args.config, on_signals()).await });
    // Helper threads that hang in a system call must not keep a process that has said it is done.
    runtime.shutdown_background();
    ended
}

async fn run_role(role: ProcessRole, file: &Path, shutdown: Shutdown) -> Result<(), Failure> {
    match role {
        ProcessRole::Arakoon => {
            let config = arakoon::config::Config::load(file).map_err(Failure::config)?;
            arakoon::run(config, shutdown).await.map_err(Failure::failed)
        }
        ProcessRole::Asd => {
            let config = asd::config::Config::load(file).map_err(Failure::config)?;
            asd::run(config, shutdown).await.map_err(Failure::failed)
        }
        ProcessRole::AlbaProxy => {
            let config = alba_proxy::config::Config::load(file).map_err(Failure::config)?;
            alba_proxy::run(config, shutdown).await.map_err(Failure::failed)
        }
        ProcessRole::Router => {
            let config = router::config::Config::load(file).map_err(Failure::config)?;
            router::run(config, shutdown).await.map_err(Failure::failed)
        }
        ProcessRole::Edge => {
            let config = edge::config::Config::load(file).map_err(Failure::config)?;
            edge::run(config, shutdown).await.map_err(Failure::failed)
        }
    }
}

/// As many open files as an administrator allows: shells say 1,024, and each attached vDisk is a connection at its router.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // What can't be raised is as it was; then connections are refused earlier.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Asks the kernel to kill this process with its parent. `expected` is the parent's id, 0 = whoever it is.
fn tie_to_parent(expected: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| {
        Failure::failed(format!("can't be tied to the parent process: {error}"))
    })?;
    // The parent may have ended before the line above; then nobody would ever tell us.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if expected != 0 && parent != expected {
        return Err(Failure::failed(format!(
            "process {expected}, which started this one, is gone"
        )));
    }
    Ok(())
}
