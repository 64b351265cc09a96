//! How fast this node's devices were seen to generate. A stream that had its worker to itself is measured as it passes by:
//! pieces after the first, over the time they took. What is kept is the bytes of weights that a device gets through in a
//! second, because a token reads them all: so a small model's speed tells a large one's.

use crate::http::relay::Watcher;
use crate::http::reply::BoxError;
use crate::wire::fleet::DeviceSpeed;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Fewer pieces than this tell too little.
const PIECES_MIN: u32 = 16;
/// And so does less time.
const TIME_MIN: Duration = Duration::from_millis(20);
/// How much of a new measurement goes into what is known, in percent.
const NEW_PERCENT: u64 = 30;
/// A smaller change is not worth telling the queens.
const TOLD_PERCENT: u64 = 5;

/// What is known, and what was last told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Speed {
    now: u64,
    told: u64,
}

#[derive(Debug)]
pub struct Speeds {
    devices: watch::Sender<BTreeMap<String, Speed>>,
}

impl Default for Speeds {
    fn default() -> Self {
        Speeds { devices: watch::Sender::new(BTreeMap::new()) }
    }
}

impl Speeds {
    pub fn all(&self) -> Vec<DeviceSpeed> {
        let devices = self.devices.borrow();
        let told = |(device, speed): (&String, &Speed)| DeviceSpeed {
            device: device.clone(),
            bytes_per_second: speed.told,
        };
        devices.iter().map(told).collect()
    }

    /// Wakes when there is something to tell.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut changes = self.devices.subscribe();
        async move {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    fn measured(&self, device: &str, bytes_per_second: u64) {
        self.devices.send_if_modified(|devices| {
            let Some(speed) = devices.get_mut(device) else {
                let fresh = Speed { now: bytes_per_second, told: bytes_per_second };
                devices.insert(device.to_owned(), fresh);
                return true;
            };
            speed.now = (speed.now * (100 - NEW_PERCENT) + bytes_per_second * NEW_PERCENT) / 100;
            let is_worth_telling = speed.now.abs_diff(speed.told) * 100 > speed.told * TOLD_PERCENT;
            if is_worth_telling {
                speed.told = speed.now;
            }
            is_worth_telling
        });
    }
}

/// Measures one stream.
pub struct Meter {
    speeds: Arc<Speeds>,
    device: String,
    weights_bytes: u64,
    /// Whether the worker still has nothing else to do.
    is_alone: Box<dyn Fn() -> bool + Send>,
    pieces: u32,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Meter {
    pub fn new(
        speeds: Arc<Speeds>,
        device: String,
        weights_bytes: u64,
        is_alone: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let is_alone = Box::new(is_alone);
        Meter { speeds, device, weights_bytes, is_alone, pieces: 0, first: None, last: None }
    }

    fn rate(&self) -> Option<u64> {
        let took = self.last?.duration_since(self.first?);
        let is_enough = self.pieces >= PIECES_MIN && took >= TIME_MIN && self.weights_bytes > 0;
        let tokens_per_second = f64::from(self.pieces - 1) / took.as_secs_f64();
        is_enough.then_some((tokens_per_second * self.weights_bytes as f64) as u64)
    }
}

impl Watcher for Meter {
    fn piece(&mut self, bytes: &Bytes) {
        // A frame is an event, or several that came together; a comment that keeps the stream alive is none.
        let events = memchr::memmem::find_iter(bytes, b"data: ").count() as u32;
        if events == 0 {
            return;
        }
        if !(self.is_alone)() {
            self.weights_bytes = 0;
        }
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.pieces += events;
    }

    fn broken(&mut self, _: &BoxError) -> Option<Bytes> {
        None
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(rate) = self.rate() {
            self.speeds.measured(&self.device, rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_follows_what_is_measured_in_steps_worth_telling() {
        let speeds = Speeds::default();
        let told = || speeds.all().first().map(|speed| speed.bytes_per_second);
        assert_eq!(told(), None);
        speeds.measured("CPU-0", 1_000);
        assert_eq!(told(), Some(1_000));
        speeds.measured("CPU-0", 1_100);
        assert_eq!(told(), Some(1_000), "3 percent more is nothing to tell");
        for _ in 0..20 {
            speeds.measured("CPU-0", 2_000);
        }
        assert!(told().is_some_and(|told| told > 1_900), "{:?}", told());
    }

    #[test]
    fn a_stream_counts_if_it_was_long_enough_and_alone() {
        let speeds = Arc::new(Speeds::default());
        let meter = |alone: bool| Meter::new(speeds.clone(), "CPU-0".into(), 1_000, move || alone);
        let event = Bytes::from_static(b"data: {}\n\n");
        let stream = |mut meter: Meter, pieces: u32| {
            (0..pieces).for_each(|_| meter.piece(&event));
            meter.piece(&Bytes::from_static(b": alive\n\n"));
            assert_eq!(meter.pieces, pieces);
            // As if it had taken a second.
            meter.first = meter.last.map(|last| last - Duration::from_secs(1));
        };
        stream(meter(true), PIECES_MIN - 1);
        stream(meter(false), 100);
        assert_eq!(speeds.all(), []);
        stream(meter(true), 101);
        let speed = DeviceSpeed { device: "CPU-0".into(), bytes_per_second: 100_000 };
        assert_eq!(speeds.all(), [speed]);
    }
}
