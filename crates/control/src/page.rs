//! Long lists, a page at a time.
//!
//! A cursor is the sort key of the last item, so that a page stays right while rows come and go before it. Clients
//! hand it back as they got it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Items on a page when nobody asked for another number.
pub const LIMIT_DEFAULT: i64 = 100;
pub const LIMIT_MAX: i64 = 1000;

/// A part of a list.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Ask with it as `cursor` for what follows. Nothing: this is the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// The part of a list that somebody asks for. `K` is the list's sort key.
#[derive(Clone, Copy, Debug)]
pub struct Asked<K> {
    limit: i64,
    pub after: Option<K>,
}

impl<K: DeserializeOwned + Serialize> Asked<K> {
    /// Checks what came from outside.
    pub fn new(limit: Option<i64>, cursor: Option<&str>) -> Result<Self, Error> {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Error::invalid(format!("a page has 1 to {LIMIT_MAX} items")));
        }
        Ok(Self { limit, after: cursor.map(decode).transpose()? })
    }

    /// Rows to fetch: one more than are shown tells whether there is more.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.limit + 1
    }

    /// Makes the page of the rows that were fetched.
    pub fn page<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> K) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| encode(&key(last)));
        Page { items, next_cursor }
    }
}

fn encode<K: Serialize>(key: &K) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(key).unwrap_or_default())
}

fn decode<K: DeserializeOwned>(cursor: &str) -> Result<K, Error> {
    let refused = || {
        Error::invalid("this cursor was not given by this list")
            .with_hint("use `next_cursor` of the page before, as it is")
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    serde_json::from_slice(&bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(all: &[i64], asked: &Asked<i64>) -> Page<i64> {
        let after = asked.after.unwrap_or(i64::MIN);
        let rows = all.iter().copied().filter(|n| *n > after).take(asked.rows().cast_unsigned() as usize);
        asked.page(rows.collect(), |n| *n)
    }

    #[test]
    fn pages_put_together_are_the_list() {
        let all: Vec<i64> = (0..10).collect();
        for limit in 1..12 {
            let (mut seen, mut cursor) = (Vec::new(), None::<String>);
            loop {
                let page = part(&all, &Asked::new(Some(limit), cursor.as_deref()).unwrap());
                seen.extend(page.items);
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen, all, "{limit} a page");
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for cursor in ["", "x", "%", "e30", "\u{0}"] {
            assert!(Asked::<i64>::new(None, Some(cursor)).is_err(), "{cursor:?}");
        }
        for limit in [0, -1, 1001, i64::MAX] {
            assert!(Asked::<i64>::new(Some(limit), None).is_err(), "{limit}");
        }
    }
}
