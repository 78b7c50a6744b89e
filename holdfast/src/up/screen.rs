//! What a person sees while `up` runs: what is being done, what happened, and a calm picture of the cluster.
//!
//! On a terminal the picture is redrawn in place on standard error, and events scroll by above it. Without a terminal
//! there are only event lines. `ready` lines go to standard output, alone, so that scripts can wait for them.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

const SPIN: Duration = Duration::from_millis(120);

pub struct Screen {
    bar: ProgressBar,
    terminal: bool,
    shown: RefCell<String>,
}

impl Screen {
    #[must_use]
    pub fn new() -> Self {
        // Draws on standard error, and nothing at all when that is no terminal.
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(SPIN);
        Self { bar, terminal: std::io::stderr().is_terminal(), shown: RefCell::default() }
    }

    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// What is under way.
    pub fn step(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// What happened.
    pub fn event(&self, line: &str) {
        if self.terminal { self.bar.println(line) } else { eprintln!("{line}") }
    }

    /// The one line per vDisk that scripts wait for.
    pub fn ready(&self, uri: &str) {
        self.bar.suspend(|| {
            let mut out = std::io::stdout().lock();
            // Whoever closed our output doesn't want to know.
            let _ = writeln!(out, "ready {uri}").and_then(|()| out.flush());
        });
    }

    /// From here on there is a picture instead of a spinner.
    pub fn begin_picture(&self) {
        self.bar.disable_steady_tick();
        self.bar.set_message("");
        self.bar.set_style(ProgressStyle::with_template("{msg}").expect("a constant template"));
    }

    /// Drawn again only when it differs: a cluster at rest is a screen at rest.
    pub fn picture(&self, text: &str) {
        if *self.shown.borrow() != text {
            text.clone_into(&mut self.shown.borrow_mut());
            self.bar.set_message(text.trim_end().to_owned());
        }
    }

    /// Takes spinner or picture away, leaving what scrolled by.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
