//! Telemetry frames of the link.

use super::{fuzz, pieces};
use rbee::wire::codec::{
    Decoder, DeviceV1, Frame, HiveV1, ModelV1, TelemetryV1, WorkerStateV1, WorkerV1, encode,
};

fn samples() -> Vec<TelemetryV1> {
    let device = DeviceV1 {
        id: "GPU-0".into(),
        name: "a GPU".into(),
        device_type: "cuda".into(),
        memory_bytes: 80 << 30,
        memory_free_bytes: 40 << 30,
        compute_capability: Some("9.0".into()),
    };
    let worker = WorkerV1 {
        worker_id: "w1".into(),
        state: WorkerStateV1::Busy,
        model: "tiny".into(),
        worker: "cpu".into(),
        device: "CPU-0".into(),
        slots_total: 4,
        slots_busy: 1,
        ctx: 4096,
        memory_bytes: 300 << 20,
        pid: Some(7),
        started_at: 1,
        last_used: u64::MAX,
        pinned: true,
    };
    let model = ModelV1 { id: "hf:org/repo:Q4_K_M".into(), names: vec!["small".into(), "蜂".into()] };
    let hive = HiveV1 {
        name: "蜂".into(),
        version: "0.1.0".into(),
        listen: "127.0.0.1:7835".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        draining: false,
        devices: vec![device.clone()],
        workers: vec![worker.clone(); 3],
        models: vec![model.clone(), ModelV1 { names: Vec::new(), ..model.clone() }],
    };
    vec![
        TelemetryV1::Full(hive),
        TelemetryV1::Workers(vec![worker]),
        TelemetryV1::Devices(vec![device]),
        TelemetryV1::Models(vec![model]),
        TelemetryV1::Draining(true),
        TelemetryV1::Tick,
    ]
}

/// Frames up to the first that does not decode.
fn decode(pieces: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

#[test]
fn frames_decode_the_same_from_any_cut_and_encode_to_what_they_were() {
    let samples: Vec<Vec<u8>> =
        samples().into_iter().map(|frame| encode(&Frame::V1(frame)).unwrap()).collect();
    let mut corpus = samples.clone();
    corpus.push(samples.concat());
    let mut decoded = 0;
    fuzz("telemetry frames", &corpus, &["\0\0\0\u{2}\0\u{5}", "\0\0\0\0"], |input, random| {
        let (whole, is_whole) = decode(&[input]);
        assert_eq!(decode(&pieces(input, random)), (whole.clone(), is_whole));
        decoded += whole.len();
        assert!(whole.len() * 5 <= input.len(), "a frame has a length and a byte");
        for frame in whole {
            assert_eq!(decode(&[&encode(&frame).unwrap()]), (vec![frame], true));
        }
    });
    assert!(decoded > 1_000, "mutations that still decode: {decoded}");
}
