//! How everything ends. One `Shutdown` a process: a token tree that says "stop", a tracker that knows when all tasks
//! have, and the signals that start it. SIGTERM and SIGINT ask once; a second one says "now".

use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// B50: how long requests in flight may take to finish after a stop was asked for.
pub const DRAIN_MAX: Duration = Duration::from_secs(25);

/// Handed to every task that must end in order. Clones are the same shutdown.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// Stop accepting, finish what runs.
    draining: CancellationToken,
    /// Finish now.
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown::new()
    }
}

impl Shutdown {
    pub fn new() -> Self {
        Shutdown {
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Asks everything to finish what it does and take nothing new.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Asks everything to end now.
    pub fn stop(&self) {
        self.draining.cancel();
        self.stopping.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub async fn drained(&self) {
        self.draining.cancelled().await;
    }

    pub async fn stopped(&self) {
        self.stopping.cancelled().await;
    }

    /// A token that ends with `stop`, for code that takes plain tokens.
    pub fn token(&self) -> CancellationToken {
        self.stopping.child_token()
    }

    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Waits for every task spawned here: up to `grace` after a drain, then tells them to stop and waits for the rest.
    pub async fn finish(&self, grace: Duration) {
        self.tasks.close();
        self.draining.cancel();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(grace) => tracing::warn!(grace_ms = grace.as_millis() as u64, "still busy after the drain; stopping"),
        }
        self.stopping.cancel();
        self.tasks.wait().await;
    }
}

/// Turns signals into the shutdown: the first SIGTERM or SIGINT drains, a second one stops.
pub fn on_signals(shutdown: &Shutdown) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if shutdown.is_draining() { shutdown.stop() } else { shutdown.drain() }
        }
    });
    Ok(())
}
