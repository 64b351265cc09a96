//! Jobs by state, for a daemon's metrics.

use crate::http::metrics::Page;
use crate::job::Jobs;
use crate::wire::job::JobState;

const STATES: [JobState; 6] = [
    JobState::Queued,
    JobState::Running,
    JobState::Done,
    JobState::Failed,
    JobState::Cancelled,
    JobState::Interrupted,
];

impl Jobs {
    pub fn write(&self, page: &mut Page) {
        let mut jobs = page.gauge("rbee_jobs", "Jobs that are kept, by state.");
        for state in STATES {
            jobs.with(&[("state", state.name())], self.count(state));
        }
    }
}
