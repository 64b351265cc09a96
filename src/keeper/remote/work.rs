//! Work on another machine: told as it goes, to the person here and to the queen's job; stopped by either, and then never
//! dropped but led to its end, so that the receipt tells what has happened.

use super::report::{Orders, Report};
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, printable};
use crate::keeper::server::{Patience, Server};
use crate::keeper::signals::Signals;
use crate::wire::fleet::Health;
use crate::wire::job::{JobEvent, JobId, Receipt};
use crate::wire::operation::ReportedOperation;
use serde_json::Value;
use std::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All that runs over there for one command of ssh is one process group.
const CONTAINMENT: &str = "process_group";

pub struct Work<'a> {
    render: &'a Render,
    report: Report,
    stop: CancellationToken,
    patience: Patience,
    /// What was stopped and given back so far.
    receipt: Mutex<Receipt>,
}

impl<'a> Work<'a> {
    pub async fn begin(
        server: &Server,
        operation: ReportedOperation,
        render: &'a Render,
    ) -> Result<(Work<'a>, Orders), KeeperError> {
        // With the tries that B5 promises.
        server.get::<Health>("/health", render).await?;
        let warn = |message: &str| render.say(&format!("warning: {message}"));
        let (report, orders) = Report::open(&server.target, operation, warn).await?;
        let (stop, receipt) = (CancellationToken::new(), Mutex::default());
        Ok((Work { render, report, stop, receipt, patience: server.patience }, orders))
    }

    pub fn job(&self) -> Option<JobId> {
        self.report.job()
    }

    pub fn is_verbose(&self) -> bool {
        self.render.is_verbose()
    }

    pub async fn say(&self, action: &str, message: &str) {
        self.render.say(message);
        self.report(JobEvent::narrate(action, message)).await;
    }

    pub async fn warn(&self, action: &str, message: &str) {
        self.render.say(&format!("warning: {message}"));
        self.report(JobEvent::warn(action, message)).await;
    }

    /// A line that was said over there.
    pub async fn line(&self, mark: &str, line: &str) {
        self.render.say(&format!("{mark}{}", printable(line)));
        self.report(JobEvent::Log { stream: "stderr".into(), line: line.into() }).await;
    }

    async fn report(&self, event: JobEvent) {
        if self.report.tell(&event).await {
            self.lost("she takes no more events");
        }
    }

    fn lost(&self, why: &str) {
        self.render.say(&format!("warning: the queen's job of this is lost ({why}); going on without"));
    }

    /// Ends when the work is to clean up and to end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    fn receipt(&self) -> MutexGuard<'_, Receipt> {
        self.receipt.lock().expect("no holder of the receipt panics")
    }

    pub fn reaped(&self, processes: u32) {
        let mut receipt = self.receipt();
        receipt.processes_reaped += processes;
        receipt.containment = CONTAINMENT.into();
    }

    pub fn removed(&self, bytes: u64) {
        self.receipt().bytes_removed += bytes;
    }

    /// Something could not be taken back.
    pub fn is_not_clean(&self) {
        self.receipt().clean = false;
    }

    /// Leads the work to its end, through a first Ctrl-C, SIGTERM, cancel or end of patience; a second signal leaves at once.
    pub async fn led(
        &self,
        mut orders: Orders,
        work: impl Future<Output = Result<Value, KeeperError>>,
    ) -> Result<Value, KeeperError> {
        let mut signals = Signals::catch()?;
        let mut work = std::pin::pin!(work);
        let mut stopped: Option<(KeeperError, Instant)> = None;
        let mut is_signalled = false;
        let done = loop {
            let stop = tokio::select! {
                done = &mut work => break done,
                stop = signals.next() => {
                    if std::mem::replace(&mut is_signalled, true) {
                        return Err(stop);
                    }
                    stop
                }
                after = self.patience.end(), if stopped.is_none() => {
                    KeeperError::TimedOut { after, hint: String::new() }
                }
                asked = orders.cancel() => match asked {
                    Ok(()) => {
                        self.render.say("cancelled by somebody else");
                        KeeperError::Interrupted
                    }
                    Err(why) => {
                        self.lost(&why);
                        continue;
                    }
                },
            };
            if stopped.is_none() {
                stopped = Some((stop, Instant::now()));
                self.stop.cancel();
            }
        };
        match (&done, stopped) {
            (Err(_), Some((stop, since))) => {
                let mut receipt = self.receipt().clone();
                receipt.ms = since.elapsed().as_millis() as u64;
                self.render.receipt(&receipt);
                self.report.cancelled(&receipt, orders).await;
                Err(stop)
            }
            // It may have been done in the moment of the stop: then there is nothing to take back.
            _ => {
                self.report.ended(&done, orders).await;
                done
            }
        }
    }
}
