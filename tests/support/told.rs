//! What work has told.

use rbee::wire::job::JobEvent;

/// Its narration, a line each.
pub fn narration(told: &[JobEvent]) -> String {
    let lines = told.iter().filter_map(|event| match event {
        JobEvent::Narration { message, .. } => Some(message.as_str()),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}
