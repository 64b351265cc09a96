//! Passing another server's answer on, frame by frame, without buffering it. The source is always drained into a bounded
//! buffer: a client that stops reading is dropped after a while, so it can hold up neither the link nor a worker's slot.

use crate::http::Response;
use crate::http::reply::{BoxError, HOP_BY_HOP};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;

/// Frames that wait for a client.
pub const FRAMES_PENDING_MAX: usize = 256;
/// Frames that are taken over at once, when an answer begins.
pub const FRAMES_AT_ONCE_MAX: usize = 16;
/// How long a client may leave that buffer full.
pub const STALL_MAX: Duration = Duration::from_secs(30);

type Item = Result<Frame<Bytes>, BoxError>;

/// What watches a relayed body: it sees every piece, and says what to add when the source breaks off.
pub trait Watcher: Send + 'static {
    fn piece(&mut self, bytes: &Bytes);
    /// The last bytes for the client when the source broke; `None` cuts the client off too, so that it sees a failure.
    fn broken(&mut self, error: &BoxError) -> Option<Bytes>;
}

/// Only passes on.
#[derive(Debug)]
pub struct Unwatched;

impl Watcher for Unwatched {
    fn piece(&mut self, _: &Bytes) {}
    fn broken(&mut self, _: &BoxError) -> Option<Bytes> {
        None
    }
}

/// The answer with its body passing through; `held` (a slot, a count) is let go when the last frame has been taken over.
pub fn relay<B, W, H>(answer: http::Response<B>, watcher: W, held: H) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Send,
    W: Watcher,
    H: Send + 'static,
{
    relay_within(STALL_MAX, answer, watcher, held)
}

fn relay_within<B, W, H>(stall_max: Duration, answer: http::Response<B>, mut watcher: W, held: H) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Send,
    W: Watcher,
    H: Send + 'static,
{
    let (mut head, mut body) = answer.into_parts();
    for name in &HOP_BY_HOP {
        head.headers.remove(name);
    }
    head.version = http::Version::default();
    head.extensions.clear();
    let mut there = VecDeque::new();
    // A short answer is there as a whole: it goes on with its head in one write, and tells its length.
    let rest = match take_what_is_there(&mut body, &mut there, &mut watcher) {
        true => None,
        false => {
            let (sender, frames) = mpsc::channel(FRAMES_PENDING_MAX);
            let is_whole = Arc::new(AtomicBool::new(false));
            let rest = Rest { frames, is_whole: is_whole.clone() };
            tokio::spawn(async move {
                // Said before the sender goes: an end without it is none.
                if pass(body, &sender, watcher, stall_max).await {
                    is_whole.store(true, Ordering::Release);
                }
                drop(sender);
                drop(held);
            });
            Some(rest)
        }
    };
    Response::from_parts(head, Relayed { there, rest }.boxed_unsync())
}

/// Takes over what needs no waiting. Tells whether that was all.
fn take_what_is_there<B>(body: &mut B, there: &mut VecDeque<Item>, watcher: &mut impl Watcher) -> bool
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    while there.len() < FRAMES_AT_ONCE_MAX {
        // Whoever waits for what is still to come asks again.
        match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => return false,
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref() {
                    watcher.piece(bytes);
                }
                there.push_back(Ok(frame));
            }
            Poll::Ready(Some(Err(error))) => {
                there.push_back(last_word(error.into(), watcher));
                return true;
            }
        }
        if body.is_end_stream() {
            return true;
        }
    }
    false
}

/// What a client is told when the source broke off: in good order why, and that no [DONE] follows, or just as broken.
fn last_word(error: BoxError, watcher: &mut impl Watcher) -> Item {
    match watcher.broken(&error) {
        Some(bytes) => Ok(Frame::data(bytes)),
        None => Err(error),
    }
}

/// Tells whether the client was given all, the source's end included.
async fn pass<B>(
    mut body: B,
    client: &mpsc::Sender<Item>,
    mut watcher: impl Watcher,
    stall_max: Duration,
) -> bool
where
    B: http_body::Body<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError> + Send,
{
    loop {
        let frame = tokio::select! {
            () = client.closed() => return false,
            frame = body.frame() => frame,
        };
        let item = match frame {
            None => return true,
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    watcher.piece(bytes);
                }
                Ok(frame)
            }
            Some(Err(error)) => {
                return client.send_timeout(last_word(error.into(), &mut watcher), stall_max).await.is_ok();
            }
        };
        if client.send_timeout(item, stall_max).await.is_err() {
            return false;
        }
        if body.is_end_stream() {
            return true;
        }
    }
}

/// An answer on its way to a client.
struct Relayed {
    /// What was there when it began.
    there: VecDeque<Item>,
    /// What was not, if that was not all.
    rest: Option<Rest>,
}

struct Rest {
    frames: mpsc::Receiver<Item>,
    /// All has been put into `frames`. Without it their end is where this relay gave up.
    is_whole: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer was not read for {} s, and was given up", STALL_MAX.as_secs())]
struct GivenUp;

impl http_body::Body for Relayed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if let Some(item) = self.there.pop_front() {
            return Poll::Ready(Some(item));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        rest.frames.poll_recv(cx).map(|item| match item {
            // A clean end would have the client take a part for the whole.
            None if !rest.is_whole.load(Ordering::Acquire) => Some(Err(GivenUp.into())),
            item => item,
        })
    }

    /// Known early, the end goes with the last piece.
    fn is_end_stream(&self) -> bool {
        let is_over = |rest: &Rest| {
            rest.frames.is_closed() && rest.frames.is_empty() && rest.is_whole.load(Ordering::Acquire)
        };
        self.there.is_empty() && self.rest.as_ref().is_none_or(is_over)
    }

    fn size_hint(&self) -> SizeHint {
        let data = |item: &Item| item.as_ref().ok()?.data_ref().map(|bytes| bytes.len() as u64);
        let whole = match self.rest {
            None => self.there.iter().map(data).sum::<Option<u64>>(),
            Some(_) => None,
        };
        whole.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    /// A source that ends in order when its sender goes.
    fn whole(frames: mpsc::Receiver<Item>) -> Relayed {
        let rest = Rest { frames, is_whole: Arc::new(AtomicBool::new(true)) };
        Relayed { there: VecDeque::new(), rest: Some(rest) }
    }

    struct Held(Arc<AtomicBool>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_frees_what_was_held_though_the_source_is_silent() {
        let (source, frames) = mpsc::channel::<Item>(1);
        let freed = Arc::new(AtomicBool::new(false));
        let response = relay(http::Response::new(whole(frames)), Unwatched, Held(freed.clone()));
        drop(response);
        source.closed().await;
        while !freed.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_there_already_goes_on_at_once_and_frees_what_was_held() {
        let (source, frames) = mpsc::channel::<Item>(2);
        source.try_send(Ok(Frame::data(Bytes::from_static(b"whole")))).unwrap();
        drop(source);
        let freed = Arc::new(AtomicBool::new(false));
        let body = relay(http::Response::new(whole(frames)), Unwatched, Held(freed.clone())).into_body();
        assert!(freed.load(Ordering::SeqCst) && !body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
    }

    #[tokio::test]
    async fn a_broken_source_ends_the_client_as_broken_unless_the_watcher_speaks() {
        struct Speaks;
        impl Watcher for Speaks {
            fn piece(&mut self, _: &Bytes) {}
            fn broken(&mut self, _: &BoxError) -> Option<Bytes> {
                Some(Bytes::from_static(b"sorry"))
            }
        }
        let source = || {
            let (sender, frames) = mpsc::channel::<Item>(2);
            sender.try_send(Ok(Frame::data(Bytes::from_static(b"a")))).unwrap();
            sender.try_send(Err("gone".into())).unwrap();
            http::Response::new(whole(frames))
        };
        assert!(relay(source(), Unwatched, ()).into_body().collect().await.is_err());
        let told = relay(source(), Speaks, ()).into_body().collect().await.unwrap().to_bytes();
        assert_eq!(told, "asorry");
    }

    #[tokio::test]
    async fn an_answer_that_is_given_up_because_nobody_reads_it_does_not_end_as_if_it_were_whole() {
        const SOON: Duration = Duration::from_millis(5);
        let (source, frames) = mpsc::channel::<Item>(1);
        let response = relay_within(SOON, http::Response::new(whole(frames)), Unwatched, ());
        let mut sent = 0;
        while source.send(Ok(Frame::data(Bytes::from_static(b"a")))).await.is_ok() {
            sent += 1;
        }
        assert!(sent >= FRAMES_PENDING_MAX, "{sent}");
        let mut body = response.into_body();
        for _ in 0..FRAMES_PENDING_MAX {
            assert!(!body.is_end_stream());
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        }
        assert!(!body.is_end_stream());
        let error = body.frame().await.expect("no clean end").unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
    }
}
