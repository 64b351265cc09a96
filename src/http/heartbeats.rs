//! A daemon's state as a stream for those who watch it: at once, whenever something changes, and from time to time so that
//! silence means something. Nothing is looked for in between.

use crate::http::{Response, sse};
use crate::shutdown::Shutdown;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;

/// The longest silence of the stream.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(2_500);
/// The shortest time between two: a fleet at work changes with every request.
pub const HEARTBEAT_GAP: Duration = Duration::from_millis(100);

/// Tells what `tell` gives, as `event: heartbeat`, until the reader leaves or the daemon drains.
pub fn stream<T: Send + Sync + 'static>(
    mut changes: watch::Receiver<T>,
    shutdown: Shutdown,
    tell: impl Fn() -> Value + Send + Sync + 'static,
) -> Response {
    let (sender, response) = sse::channel();
    tokio::spawn(async move {
        let beats = async {
            loop {
                changes.mark_unchanged();
                if sender.event("heartbeat", &tell().to_string()).await.is_err() {
                    return;
                }
                tokio::time::sleep(HEARTBEAT_GAP).await;
                // The end of what is watched is the daemon's own.
                let _ = tokio::time::timeout(HEARTBEAT_EVERY - HEARTBEAT_GAP, changes.changed()).await;
            }
        };
        tokio::select! {
            () = beats => {}
            () = sender.closed() => {}
            () = shutdown.drained() => {}
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test]
    async fn many_changes_at_once_are_one_beat_and_the_drain_ends_the_stream() {
        let (change, changes) = watch::channel(());
        let shutdown = Shutdown::new();
        let told = Arc::new(AtomicU64::new(0));
        let count = told.clone();
        let tell = move || Value::from(count.fetch_add(1, Ordering::SeqCst));
        let mut body = stream(changes, shutdown.clone(), tell).into_body();
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        assert_eq!(next().await.unwrap(), "event: heartbeat\ndata: 0\n\n");
        (0..100).for_each(|_| {
            change.send_replace(());
        });
        assert_eq!(next().await.unwrap(), "event: heartbeat\ndata: 1\n\n");
        shutdown.drain();
        assert_eq!(next().await, None);
        assert_eq!(told.load(Ordering::SeqCst), 2);
    }
}
