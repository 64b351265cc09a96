//! How far the model is: one value that the engine's thread writes and everybody else watches. Nobody polls.

use super::batch::SlotView;
use super::chat::Chat;
use super::engine::Limits;
use super::llama::Model;
use crate::wire::{Code, Failure};
use std::sync::Arc;
use tokio::sync::watch;

/// Progress below this is not told: a model may report thousands of times.
const PROGRESS_STEP: f32 = 0.01;

/// What serving needs once the model is there.
#[derive(Debug)]
pub struct Ready {
    pub model: Arc<Model>,
    pub chat: Chat,
    pub limits: Limits,
    pub slots: watch::Receiver<Vec<SlotView>>,
}

#[derive(Debug, Clone)]
pub enum Load {
    /// 0 to 1.
    Loading(f32),
    Ready(Arc<Ready>),
    Failed(Failure),
}

impl Load {
    pub fn state(&self) -> &'static str {
        match self {
            Load::Loading(_) => "loading",
            Load::Ready(_) => "ready",
            Load::Failed(_) => "failed",
        }
    }

    pub fn progress(&self) -> f32 {
        match self {
            Load::Loading(progress) => *progress,
            Load::Ready(_) => 1.0,
            Load::Failed(_) => 0.0,
        }
    }

    /// What serves, or why nothing does.
    pub fn ready(&self) -> Result<Arc<Ready>, Failure> {
        match self {
            Load::Ready(ready) => Ok(ready.clone()),
            Load::Failed(failure) => Err(failure.clone()),
            Load::Loading(progress) => Err(Failure::new(
                Code::LoadingModel,
                format!("the model is loading, {:.0} %", progress * 100.0),
            )
            .with(serde_json::json!({"progress": progress, "retry_after": 1}))),
        }
    }
}

/// Tells progress if it is worth telling.
pub fn tell(load: &watch::Sender<Load>, progress: f32) {
    load.send_if_modified(|load| match load {
        Load::Loading(before) if progress - *before >= PROGRESS_STEP || progress >= 1.0 => {
            *before = progress.clamp(0.0, 1.0);
            true
        }
        _ => false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_worth_telling_wake_a_watcher() {
        let load = watch::Sender::new(Load::Loading(0.0));
        let mut watcher = load.subscribe();
        tell(&load, 0.001);
        assert!(!watcher.has_changed().unwrap());
        tell(&load, 0.5);
        assert!(watcher.has_changed().unwrap());
        assert_eq!(watcher.borrow_and_update().progress(), 0.5);
        assert_eq!(watcher.borrow().ready().unwrap_err().code, Code::LoadingModel);
    }
}
