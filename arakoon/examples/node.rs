//! Runs one node: `cargo run -p arakoon --example node -- CONFIG`. The `holdfast` binary does the same as a role; this is
//! what the component tests start and kill.

use anyhow::Context;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let path: PathBuf = std::env::args_os().nth(1).context("usage: node CONFIG")?.into();
    runtime::logging::init(runtime::logging::LogFormat::Human);
    let config = arakoon::Config::load(&path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { arakoon::run(config, runtime::shutdown::on_signals()).await })?;
    Ok(())
}
