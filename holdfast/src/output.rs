//! Standard output of a command: for people, or one JSON document.

use crate::failure::Failure;
use serde::Serialize;
use std::io::Write;

/// How a command answers.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Format {
    /// Answer as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Prints; a reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// # Errors
/// Never for the types of this program; a failed conversion is told rather than hidden.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        Failure::failed(format!("the answer can't be written as JSON: {error}"))
    })?;
    text.push('\n');
    print(&text);
    Ok(())
}
