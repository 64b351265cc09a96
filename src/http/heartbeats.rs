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

/// What wakes a stream: a watched value, or several.
pub trait Changes: Send + 'static {
    fn mark_unchanged(&mut self);
    /// The end of what is watched is the daemon's own, and wakes as well.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

impl<T: Send + Sync + 'static> Changes for watch::Receiver<T> {
    fn mark_unchanged(&mut self) {
        watch::Receiver::mark_unchanged(self);
    }

    async fn changed(&mut self) {
        let _ = watch::Receiver::changed(self).await;
    }
}

impl<A: Changes, B: Changes> Changes for (A, B) {
    fn mark_unchanged(&mut self) {
        self.0.mark_unchanged();
        self.1.mark_unchanged();
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.0.changed() => {}
            () = self.1.changed() => {}
        }
    }
}

/// Tells what `tell` gives, as `event: heartbeat`, until the reader leaves or the daemon drains.
pub fn stream(
    mut changes: impl Changes,
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
                // Unchanged for so long, it is told again.
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

    #[tokio::test]
    async fn of_two_that_are_watched_each_wakes_the_stream() {
        const CHANGES: u64 = 10;
        let (one, ones) = watch::channel(0);
        let (other, others) = watch::channel(0);
        let told = (ones.clone(), others.clone());
        let tell = move || Value::from(*told.0.borrow() + *told.1.borrow());
        let mut body = stream((ones, others), Shutdown::new(), tell).into_body();
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        next().await;
        let begun = std::time::Instant::now();
        for number in 1..=CHANGES {
            one.send_replace(number);
            assert_eq!(next().await, format!("event: heartbeat\ndata: {}\n\n", 2 * number - 1));
            other.send_replace(number);
            assert_eq!(next().await, format!("event: heartbeat\ndata: {}\n\n", 2 * number));
        }
        // Each of them would have waited out the silence, had it not woken the stream.
        assert!(begun.elapsed() < HEARTBEAT_EVERY * CHANGES as u32);
    }
}
