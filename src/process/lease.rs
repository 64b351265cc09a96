//! One lease as the shim keeps it: a connection, what its holder asked, what it has yet to be told.

use super::protocol::{Asked, FRAME_BYTES_MAX, Frames, Said, frame};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// Lines waiting for a slow holder. What does not fit is dropped and counted: a holder never slows the child.
const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) stream: UnixStream,
    asked: Frames,
    outbox: VecDeque<u8>,
    dropped: u64,
}

impl Lease {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Lease> {
        stream.set_nonblocking(true)?;
        Ok(Lease { stream, asked: Frames::default(), outbox: VecDeque::new(), dropped: 0 })
    }

    /// Something that must arrive: few and small by the protocol, so not counted against the bound.
    pub(super) fn tell(&mut self, message: &Said) {
        self.tell_dropped();
        self.enqueue(frame(message));
    }

    /// Whether a line of output would be told. The child's output is not even turned into text for nobody.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() + FRAME_BYTES_MAX <= OUTBOX_BYTES_MAX
    }

    /// A line of output, if there is room; without a text, or without room, it is counted.
    pub(super) fn tell_line(&mut self, line: Option<&str>) {
        let Some(line) = line.filter(|_| self.has_room()) else {
            self.dropped += 1;
            return;
        };
        self.tell_dropped();
        self.enqueue(frame(&Said { line: Some(line.to_owned()), ..Said::default() }));
    }

    fn tell_dropped(&mut self) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.enqueue(frame(&Said { dropped: Some(dropped), ..Said::default() }));
        }
    }

    fn enqueue(&mut self, bytes: Vec<u8>) {
        self.outbox.extend(bytes);
    }

    pub(super) fn has_more_to_tell(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Writes what the socket takes. False: the holder is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.outbox.is_empty() {
            match self.stream.write(self.outbox.as_slices().0) {
                Ok(0) => return false,
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads what was asked. `None`: the holder is gone, or talks nonsense without end.
    pub(super) fn listen(&mut self) -> Option<Vec<Asked>> {
        let mut buffer = [0u8; 4096];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Some(Vec::new());
            }
            Err(_) => return None,
        };
        let frames = self.asked.push(&buffer[..count]).ok()?;
        // A word of a newer hive is no reason to end its tree.
        Some(frames.iter().filter_map(|frame| serde_json::from_slice(frame).ok()).collect())
    }
}

const _: () = assert!(FRAME_BYTES_MAX < OUTBOX_BYTES_MAX, "a frame fits an empty outbox");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_never_reads_costs_a_bounded_outbox_and_a_count() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut lease = Lease::new(ours).unwrap();
        let line = "x".repeat(1000);
        for _ in 0..20_000 {
            lease.tell_line(Some(&line));
            assert!(lease.flush());
        }
        assert!(lease.outbox.len() <= OUTBOX_BYTES_MAX);
        lease.tell(&Said { failed: Some("last".into()), ..Said::default() });

        let reader = std::thread::spawn(move || {
            let (mut lines, mut dropped, mut frames, mut buffer) = (0, 0, Frames::default(), [0u8; 65536]);
            loop {
                let count = theirs.read(&mut buffer).unwrap();
                for frame in frames.push(&buffer[..count]).unwrap() {
                    let said: Said = serde_json::from_slice(&frame).unwrap();
                    lines += u64::from(said.line.is_some());
                    dropped += said.dropped.unwrap_or(0);
                    if said.failed.is_some() {
                        return (lines, dropped);
                    }
                }
            }
        });
        lease.stream.set_nonblocking(false).unwrap();
        assert!(lease.flush());
        let (lines, dropped) = reader.join().unwrap();
        assert_eq!(lines + dropped, 20_000);
        assert!(dropped > 0);
    }

    #[test]
    fn an_unknown_word_is_skipped_and_a_closed_lease_is_seen() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut lease = Lease::new(ours).unwrap();
        theirs.write_all(b"nonsense\n{\"paint\":1}\n{\"stop\":{\"grace_ms\":7}}\n").unwrap();
        let asked = lease.listen().unwrap();
        assert_eq!(asked.iter().filter_map(|asked| asked.stop).next().unwrap().grace_ms, 7);
        drop(theirs);
        assert!(lease.listen().is_none());
    }
}
