//! Logs go to standard error, for people or as JSON lines.

use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// Starts logging; `HOLDFAST_LOG` filters (`info` by default, `router=debug,info` …). A second call does nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that a subscriber is set already, as in tests that start several roles in one process.
    let _ = match format {
        LogFormat::Human => base.with_ansi(false).try_init(),
        LogFormat::Json => base.json().try_init(),
    };
}
