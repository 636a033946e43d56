//! Where the program is to die, or one worker in it, for tests that prove that they may.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use loomworks_core::ids::JobId;
use tokio::sync::oneshot;

/// Once the program has carried out its `place`-th step (from 0) of a kind, before or after the next one was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    pub kind: String,
    pub place: i32,
    pub when: CrashWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashWhen {
    BeforeSave,
    AfterSave,
}

impl CrashPoint {
    /// Dies if this is the place: no destructor runs, nothing is flushed, as at `kill -9`.
    pub(crate) fn die_at(&self, kind: &str, place: i32, when: CrashWhen) {
        if self.kind == kind && self.place == place && self.when == when {
            tracing::warn!(kind, place, "dying as asked");
            std::process::abort();
        }
    }
}

impl FromStr for CrashPoint {
    type Err = String;

    /// Reads `restore/3/before-save`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not KIND/PLACE/before-save or KIND/PLACE/after-save");
        let mut parts = text.split('/');
        let (Some(kind), Some(place), Some(when), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refused());
        };
        let when = match when {
            "before-save" => CrashWhen::BeforeSave,
            "after-save" => CrashWhen::AfterSave,
            _ => return Err(refused()),
        };
        Ok(Self { kind: kind.to_owned(), place: place.parse().map_err(|_| refused())?, when })
    }
}

/// Where the worker of one job is to stop dead: it saves nothing any more, and whoever asked is told.
///
/// He ends all that runs with that worker and lets another go on. Cheap to clone; nobody is stopped as long as nobody
/// asks.
#[derive(Clone, Default)]
pub struct Cut(Arc<Mutex<Option<Asked>>>);

struct Asked {
    job: JobId,
    place: i32,
    when: CrashWhen,
    reached: oneshot::Sender<()>,
}

impl Cut {
    /// Asks for one; answers when the worker has stopped there. Takes the place of what was asked before.
    pub fn ask(&self, job: JobId, place: i32, when: CrashWhen) -> oneshot::Receiver<()> {
        let (reached, told) = oneshot::channel();
        *self.asked() = Some(Asked { job, place, when, reached });
        told
    }

    /// Stops for ever if this is the place. Once: who goes on with the job passes.
    pub(crate) async fn stop_at(&self, job: JobId, place: i32, when: CrashWhen) {
        let here = |asked: &mut Asked| (asked.job, asked.place, asked.when) == (job, place, when);
        let Some(asked) = self.asked().take_if(here) else { return };
        // Whoever asked may have given up waiting.
        let _ = asked.reached.send(());
        std::future::pending::<()>().await;
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Option<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_point_reads_back() {
        let point: CrashPoint = "restore/3/before-save".parse().unwrap();
        assert_eq!(point, CrashPoint { kind: "restore".into(), place: 3, when: CrashWhen::BeforeSave });
        for text in ["", "restore", "restore/x/before-save", "restore/1/later", "restore/1/after-save/x"] {
            assert!(text.parse::<CrashPoint>().is_err(), "{text}");
        }
    }
}
