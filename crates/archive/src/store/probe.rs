//! Proves that a store lets exactly one of several writers win, which everything that counts relies on, and that it gives
//! back what was written last, which the deletion of a key relies on.

use bytes::Bytes;
use uuid::Uuid;

use super::{Store, StoreError};

/// What a store does that it must not, or does not do.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store replaces an object that must only be written if there is none")]
    Replaces,
    #[error("of {writers} writers at once {winners} were told that they had won")]
    Winners { writers: usize, winners: usize },
    #[error("the store gives back other bytes than were written")]
    OtherBytes,
    #[error("the store does not list what was written")]
    NotListed,
    #[error("the store gives back what was there before it was replaced")]
    Stale,
    #[error("the store gives back what was removed")]
    Keeps,
}

impl Unfit {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Store(error) => error.hint().unwrap_or("is the store reachable?"),
            Self::Replaces | Self::Winners { .. } => {
                "the store must honour `If-None-Match: *`; use one that does, or a directory"
            }
            Self::OtherBytes | Self::NotListed | Self::Stale | Self::Keeps => {
                "use a store that is consistent: what was written is read"
            }
        }
    }
}

/// What else is worth knowing of a store that is fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// It keeps former versions of objects, so that what was removed or replaced can be had back: a deleted key too.
    pub keeps_versions: bool,
}

/// Writes, races, replaces, reads, lists and removes objects below `probe/`.
pub async fn probe(store: &Store) -> Result<Fit, Unfit> {
    let mut tries = 3;
    loop {
        let name = format!("probe/{}", Uuid::new_v4().simple());
        let judged = judge(store, &name).await;
        tries -= 1;
        match judged {
            Ok(fit) => return Ok(fit),
            // An answer was lost on the way and the winner told on the second try that there is an object.
            Err(Unfit::Winners { winners: 0, .. }) if tries > 0 => store.delete(&name).await?,
            Err(unfit) => {
                // What it has written is of no use to anybody. That it could not be removed says less than `unfit`.
                let _ = store.delete(&name).await;
                return Err(unfit);
            }
        }
    }
}

async fn judge(store: &Store, name: &str) -> Result<Fit, Unfit> {
    const WRITERS: u8 = 8;
    let content = |writer: u8| Bytes::from(vec![writer; 64]);
    let races =
        (0..WRITERS).map(|writer| async move { (writer, store.write_new(name, content(writer)).await) });
    let mut winners = Vec::new();
    for (writer, won) in futures_util::future::join_all(races).await {
        winners.extend(won?.map(|written| (writer, written)));
    }
    let [(winner, written)] = &winners[..] else {
        return Err(Unfit::Winners { writers: WRITERS.into(), winners: winners.len() });
    };
    if store.put_new(name, content(WRITERS)).await? {
        return Err(Unfit::Replaces);
    }
    let gives = async |content: Bytes| -> Result<bool, StoreError> {
        let part = content.slice(10..20);
        Ok(store.get(name).await? == Some(content) && store.get_range(name, 10..20).await? == Some(part))
    };
    if !gives(content(*winner)).await? {
        return Err(Unfit::OtherBytes);
    }
    if !store.list("probe").await?.iter().any(|entry| entry.name == name) {
        return Err(Unfit::NotListed);
    }
    store.replace(name, content(WRITERS)).await?;
    if !gives(content(WRITERS)).await? {
        return Err(Unfit::Stale);
    }
    store.delete(name).await?;
    if store.get(name).await?.is_some() {
        return Err(Unfit::Keeps);
    }
    // A bucket that keeps none has no version of it, one that has stopped to do so calls it `null`.
    let keeps_versions = written.version.as_ref().is_some_and(|version| version != "null");
    Ok(Fit { keeps_versions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Location;

    #[tokio::test]
    async fn a_directory_is_fit_and_left_clean() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Location::Directory(dir.path().to_owned())).unwrap();
        assert!(!probe(&store).await.unwrap().keeps_versions);
        assert!(store.list("probe").await.unwrap().is_empty());
    }
}
