//! A connection whose small writes wait for one turn of the runtime. The hive's answers are tokens, a frame each, which HTTP/2
//! writes as soon as it has one: a system call here and a wake-up over there. Whatever is ready by the time everybody has had a
//! turn goes in one write, which takes a fast engine's stream over a link at twice the speed.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What is gathered at most. So much is worth a write of its own and waits for nobody.
pub const GATHERED_BYTES_MAX: usize = 16 << 10;

#[derive(Debug)]
pub struct Gathered<T> {
    io: T,
    waiting: Vec<u8>,
    /// How much of that has been written.
    written: usize,
    /// Everybody has had a turn since something began to wait.
    is_due: bool,
}

impl<T> Gathered<T> {
    pub fn new(io: T) -> Self {
        Gathered { io, waiting: Vec::new(), written: 0, is_due: false }
    }
}

impl<T: Write + Unpin> Gathered<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.waiting.clear();
        (self.written, self.is_due) = (0, false);
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Gathered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting.len() + bytes.len() > GATHERED_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
            if bytes.len() > GATHERED_BYTES_MAX {
                return Pin::new(&mut self.io).poll_write(cx, bytes);
            }
        }
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !self.is_due {
            // The others that are ready run before this task does again.
            self.is_due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: Read + Unpin> Read for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex};

    /// Write by write.
    type Written = Arc<Mutex<Vec<Vec<u8>>>>;

    /// Remembers each write; takes a few bytes at a time if it is told to.
    struct Writes(Written, usize);

    impl Write for Writes {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.1);
            self.0.lock().unwrap().push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(at_once: usize) -> (Gathered<Writes>, Written) {
        let writes = Written::default();
        (Gathered::new(Writes(writes.clone(), at_once)), writes)
    }

    async fn write(io: &mut Gathered<Writes>, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, rest)).await.unwrap();
            rest = &rest[count..];
        }
    }

    #[tokio::test]
    async fn what_comes_within_a_turn_goes_in_one_write_and_nothing_is_held_longer() {
        let (mut io, writes) = gathered(usize::MAX);
        write(&mut io, b"head ").await;
        let flushed = poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_flush(cx))).await;
        assert!(flushed.is_pending() && writes.lock().unwrap().is_empty());
        write(&mut io, b"body").await;
        // It is awake already, or this would never end.
        poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.unwrap();
        assert_eq!(*writes.lock().unwrap(), [b"head body".to_vec()]);
        write(&mut io, b"more").await;
        poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.unwrap();
        assert_eq!(writes.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn no_byte_is_lost_or_moved_however_they_come_and_go() {
        for at_once in [1, 7, GATHERED_BYTES_MAX, usize::MAX] {
            let (mut io, writes) = gathered(at_once);
            let mut all = Vec::new();
            for round in 0..40_usize {
                let piece = vec![round as u8; round * round * 13];
                write(&mut io, &piece).await;
                all.extend(piece);
                if round % 5 == 0 {
                    poll_fn(|cx| Pin::new(&mut io).poll_flush(cx)).await.unwrap();
                }
                assert!(io.waiting.len() <= GATHERED_BYTES_MAX);
            }
            poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await.unwrap();
            assert!(writes.lock().unwrap().concat() == all, "{at_once} at once");
        }
    }
}
