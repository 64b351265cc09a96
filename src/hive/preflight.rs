//! Before a worker is started: does the model fit in the device's memory, and with how many slots of how much context
//! (B11). Pure, so that every refusal is a test.

use crate::model::gguf::Header;
use crate::model::memory::{Shape, estimate};
use crate::model::smaller::fitting;
use crate::wire::fleet::{Device, ModelNeeds, ShapeNeeds};
use crate::wire::operation::WorkerSpawn;
use crate::wire::{Code, Failure};
use serde_json::json;

/// B11's defaults, lowered to fit.
pub const SLOTS_DEFAULT: u32 = 4;
pub const CTX_DEFAULT: u32 = 4_096;
/// Less context than this serves nobody, so nothing is lowered below it.
pub const CTX_MIN: u32 = 512;

/// A worker that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub slots: u32,
    pub ctx: u32,
    pub memory_bytes: u64,
    /// What was lowered, to be told.
    pub lowered: Option<String>,
}

/// `device` with the memory that is free for a new worker.
pub fn plan(want: &WorkerSpawn, header: &Header, device: &Device) -> Result<Plan, Failure> {
    let ctx_max = header.context_length.max(1);
    if let Some(ctx) = want.ctx.filter(|ctx| *ctx > ctx_max) {
        return Err(Failure::invalid(format!(
            "the model was made for {ctx_max} tokens of context, not {ctx}"
        )));
    }
    let available = device.memory_free_bytes;
    let wished = shapes(want, header)[0];
    let mut least = 0;
    for shape in shapes(want, header) {
        least = needed_bytes(header, shape);
        if least <= available {
            let (slots, ctx) = shape;
            let lowered = (shape != wished).then(|| {
                let (slots_wished, ctx_wished) = wished;
                format!(
                    "memory is short: {slots} slots of {ctx} tokens instead of {slots_wished} of {ctx_wished}"
                )
            });
            return Ok(Plan { slots, ctx, memory_bytes: least, lowered });
        }
    }
    Err(too_big(want, needed_bytes(header, wished), least, device, header))
}

/// What a model takes in every shape that a spawn without wishes of its own would try.
pub fn needs(id: &str, header: &Header) -> ModelNeeds {
    let any = WorkerSpawn::of(id);
    let needed = |(slots, ctx)| ShapeNeeds { slots, ctx, bytes: needed_bytes(header, (slots, ctx)) };
    ModelNeeds {
        id: id.to_owned(),
        weights_bytes: header.weights_bytes,
        shapes: shapes(&any, header).into_iter().map(needed).collect(),
    }
}

/// Slots and context, first as wished, then as it is lowered step by step, as far as nothing was asked for: slots go first.
fn shapes(want: &WorkerSpawn, header: &Header) -> Vec<(u32, u32)> {
    let ctx_max = header.context_length.max(1);
    let wished = (want.slots.unwrap_or(SLOTS_DEFAULT), want.ctx.unwrap_or(CTX_DEFAULT).min(ctx_max));
    let lower = |&(slots, ctx): &(u32, u32)| match (want.slots, want.ctx) {
        (None, _) if slots > 1 => Some((slots / 2, ctx)),
        (_, None) if ctx / 2 >= CTX_MIN => Some((slots, ctx / 2)),
        _ => None,
    };
    std::iter::successors(Some(wished), lower).collect()
}

fn needed_bytes(header: &Header, (slots, ctx): (u32, u32)) -> u64 {
    estimate(header, &Shape::new(slots, ctx)).total
}

fn too_big(want: &WorkerSpawn, wished: u64, least: u64, device: &Device, header: &Header) -> Failure {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let (id, available) = (&device.id, device.memory_free_bytes);
    // What was asked for may be more than it takes.
    let any = WorkerSpawn::of(want.model.as_str());
    let fits = shapes(&any, header).into_iter().find(|shape| needed_bytes(header, *shape) <= available);
    // What is not weights stays about the same.
    let beside = least.saturating_sub(header.weights_bytes);
    let room = available.saturating_sub(beside);
    let smaller = fitting(&format!("{}:{}", want.model, header.quantization), header.weights_bytes, room);
    let advice = match fits {
        Some((slots, ctx)) => format!("it would fit with --slots {slots} --ctx {ctx}"),
        None => match smaller {
            Some((label, bytes)) => format!(
                "the smaller quantisation {label} would fit (about {} MiB of weights instead of {}); or stop another worker",
                mib(bytes),
                mib(header.weights_bytes)
            ),
            None => format!(
                "its weights are {} MiB: take a smaller quantisation or a smaller model, or stop another worker",
                mib(header.weights_bytes)
            ),
        },
    };
    Failure::new(
        Code::InsufficientMemory,
        format!(
            "{id} has {} MiB free, and the model needs at least {} MiB; {advice}",
            mib(available),
            mib(least)
        ),
    )
    .with(json!({
        "needed_bytes": wished, "needed_bytes_min": least, "available_bytes": available, "device": id,
        "fits": fits.map(|(slots, ctx)| json!({"slots": slots, "ctx": ctx})),
        "fits_quantization": smaller.filter(|_| fits.is_none()).map(|(label, _)| label),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A model of 100 MiB of weights whose KV cache takes 64 KiB a token.
    fn header() -> Header {
        Header {
            architecture: "llama".into(),
            parameters: 100 * MIB,
            context_length: 2_048,
            vocabulary: 32_000,
            weights_bytes: 100 * MIB,
            file_bytes: 101 * MIB,
            block_count: 16,
            embedding_length: 1_024,
            feed_forward_length: 2_048,
            head_counts: vec![16; 16],
            head_counts_kv: vec![16; 16],
            key_length: 64,
            value_length: 64,
            ..Header::default()
        }
    }

    fn device(free: u64) -> Device {
        Device {
            id: "CPU-0".into(),
            name: String::new(),
            device_type: "cpu".into(),
            memory_bytes: free,
            memory_free_bytes: free,
            compute_capability: None,
        }
    }

    fn want() -> WorkerSpawn {
        WorkerSpawn::of("m")
    }

    fn code(outcome: Result<Plan, Failure>) -> Code {
        outcome.unwrap_err().code
    }

    #[test]
    fn with_room_the_defaults_hold_up_to_the_models_own_context() {
        let plan = plan(&want(), &header(), &device(64 << 30)).unwrap();
        assert_eq!((plan.slots, plan.ctx, plan.lowered), (4, 2_048, None));
        assert!(plan.memory_bytes > 100 * MIB + 4 * 2_048 * 64 * 1_024);
    }

    #[test]
    fn where_memory_is_short_slots_go_first_then_context_and_it_is_told() {
        let full = needed_bytes(&header(), (4, 2_048));
        let fewer = plan(&want(), &header(), &device(full - 1)).unwrap();
        assert_eq!((fewer.slots, fewer.ctx), (2, 2_048));
        assert!(fewer.lowered.is_some_and(|told| told.contains("instead of 4")));
        let one = needed_bytes(&header(), (1, 2_048));
        let shorter = plan(&want(), &header(), &device(one - 1)).unwrap();
        assert_eq!((shorter.slots, shorter.ctx), (1, 1_024));
    }

    #[test]
    fn what_a_model_needs_is_told_in_the_shapes_that_a_spawn_tries() {
        let told = needs("m", &header());
        let shapes: Vec<(u32, u32)> = told.shapes.iter().map(|shape| (shape.slots, shape.ctx)).collect();
        assert_eq!(shapes, [(4, 2_048), (2, 2_048), (1, 2_048), (1, 1_024), (1, 512)]);
        assert_eq!(told.weights_bytes, 100 * MIB);
        for shape in told.shapes {
            let planned = plan(&want(), &header(), &device(shape.bytes)).unwrap();
            assert_eq!(
                (planned.slots, planned.ctx, planned.memory_bytes),
                (shape.slots, shape.ctx, shape.bytes)
            );
        }
    }

    #[test]
    fn what_was_asked_for_is_never_lowered_but_refused_with_the_numbers() {
        let full = needed_bytes(&header(), (4, 2_048));
        let exactly = WorkerSpawn { slots: Some(4), ctx: Some(2_048), ..want() };
        let failure = plan(&exactly, &header(), &device(full - 1)).unwrap_err();
        assert_eq!(failure.code, Code::InsufficientMemory);
        assert_eq!(failure.details["needed_bytes"], full);
        assert_eq!(failure.details["available_bytes"], full - 1);
        let tiny = plan(&want(), &header(), &device(50 * MIB)).unwrap_err();
        assert!(tiny.message.contains("smaller"), "{}", tiny.message);
        let large = Header { quantization: "Q8_0".into(), ..header() };
        let beside = needed_bytes(&large, (1, CTX_MIN)) - large.weights_bytes;
        let refused = plan(&want(), &large, &device(beside + 60 * MIB)).unwrap_err();
        assert_eq!(refused.details["fits_quantization"], "Q4_K_M", "{}", refused.message);
        assert!(refused.message.contains("Q4_K_M would fit"), "{}", refused.message);
        let beyond = WorkerSpawn { ctx: Some(4_096), ..want() };
        assert_eq!(code(plan(&beyond, &header(), &device(64 << 30))), Code::InvalidRequest);
    }
}
