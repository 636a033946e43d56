//! Where the program is to die, for tests that prove that it may.

use std::str::FromStr;

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
