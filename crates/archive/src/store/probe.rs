//! Proves that a store lets exactly one of several writers win, which everything that counts relies on.

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
            Self::OtherBytes | Self::NotListed => "use a store that is consistent: what was written is read",
        }
    }
}

/// Writes, races, reads, lists and removes objects below `probe/`.
pub async fn probe(store: &Store) -> Result<(), Unfit> {
    let name = format!("probe/{}", Uuid::new_v4().simple());
    let judged = judge(store, &name).await;
    // What it has written is of no use to anybody, whatever came of it.
    let removed = store.delete(&name).await;
    judged?;
    Ok(removed?)
}

async fn judge(store: &Store, name: &str) -> Result<(), Unfit> {
    const WRITERS: u8 = 8;
    let content = |writer: u8| Bytes::from(vec![writer; 64]);
    let races =
        (0..WRITERS).map(|writer| async move { (writer, store.put_new(name, content(writer)).await) });
    let mut winners = Vec::new();
    for (writer, won) in futures_util::future::join_all(races).await {
        if won? {
            winners.push(writer);
        }
    }
    let &[winner] = &winners[..] else {
        return Err(Unfit::Winners { writers: WRITERS.into(), winners: winners.len() });
    };
    if store.put_new(name, content(WRITERS)).await? {
        return Err(Unfit::Replaces);
    }
    if store.get(name).await?.as_deref() != Some(&content(winner)[..])
        || store.get_range(name, 10..20).await?.as_deref() != Some(&content(winner)[10..20])
    {
        return Err(Unfit::OtherBytes);
    }
    match store.list("probe").await?.iter().any(|entry| entry.name == name) {
        true => Ok(()),
        false => Err(Unfit::NotListed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Location;

    #[tokio::test]
    async fn a_directory_is_fit_and_left_clean() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Location::Directory(dir.path().to_owned())).unwrap();
        probe(&store).await.unwrap();
        assert!(store.list("probe").await.unwrap().is_empty());
    }
}
