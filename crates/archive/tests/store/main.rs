//! The store that a repository is kept in: a real server that speaks S3, stores that are unfit, stores that fail.

mod faults;
mod s3;
mod unfit;

use std::collections::BTreeMap;
use std::sync::Arc;

use loomworks_archive::store::{Location, Store};
use object_store::ObjectStore;

/// A store of objects that is in no place.
fn store_of(objects: Arc<dyn ObjectStore>) -> Store {
    Store::of(objects, "", Location::parse("/nowhere", BTreeMap::new()).unwrap())
}
