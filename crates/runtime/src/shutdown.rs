//! One signal that asks every task of a process to end.

use tokio::sync::watch;

/// Clonable; all clones see the trigger.
#[derive(Debug, Clone)]
pub struct Shutdown {
    state: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self { state: watch::Sender::new(false) }
    }

    pub fn trigger(&self) {
        self.state.send_replace(true);
    }

    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.state.borrow()
    }

    /// Returns once triggered, at once when that was before.
    pub async fn wait(&self) {
        let mut seen = self.state.subscribe();
        // The sender lives in `self`, so this can't fail while we wait.
        let _ = seen.wait_for(|triggered| *triggered).await;
    }
}

/// A shutdown that SIGINT and SIGTERM trigger.
///
/// # Panics
/// When signal handlers can't be installed, which only a broken process start causes.
#[must_use]
pub fn on_signals() -> Shutdown {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = Shutdown::new();
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let trigger = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            trigger.trigger();
        }
    });
    shutdown
}
