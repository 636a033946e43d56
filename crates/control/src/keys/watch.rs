//! Beside the requests: hears of keys that were changed, notes which ones are used, removes answers nobody may ask for
//! any more.

use std::time::Duration;

use loomworks_core::ids::ApiKeyId;
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::warn;

use crate::db::keys::{self, CHANNEL};
use crate::error::chain;
use crate::{World, idempotency};

const USE_WRITTEN_EVERY: Duration = Duration::from_secs(5);
const TIDIED_EVERY: Duration = Duration::from_secs(3600);
const BACK_OFF: Duration = Duration::from_millis(200);

/// Runs until `stop` becomes true. Every process that answers requests needs it: without it a checked key is believed
/// for half a second only.
pub async fn run(world: World, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = hear(&world) => {}
        () = write_use(&world) => {}
        () = tidy(&world) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    world.keys.set_hearing(false);
    write_used(&world).await;
}

/// Forgets keys as they change. While the connection is away nothing is believed for long, and when it was away
/// nothing is believed from before.
async fn hear(world: &World) {
    loop {
        if let Err(error) = hear_until_lost(world).await {
            warn!(
                error = chain(&error),
                "the announcements of changed API keys cannot be heard; trying again"
            );
        }
        world.keys.set_hearing(false);
        sleep(BACK_OFF).await;
    }
}

async fn hear_until_lost(world: &World) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(&world.db.platform).await?;
    // Connecting again is ours: between losing a connection and having the next one, keys may change.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    world.keys.set_hearing(true);
    while let Some(changed) = listener.try_recv().await? {
        match changed.payload().parse::<ApiKeyId>() {
            Ok(id) => world.keys.forget(id),
            Err(_) => world.keys.distrust_all(),
        }
    }
    Ok(())
}

async fn write_use(world: &World) {
    let mut ticks = interval(USE_WRITTEN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        write_used(world).await;
    }
}

async fn tidy(world: &World) {
    let mut ticks = interval(TIDIED_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = idempotency::remove_old(world).await {
            warn!(error = chain(&error), "old answers could not be removed; trying again in an hour");
        }
    }
}

async fn write_used(world: &World) {
    let used: Vec<_> = world.keys.take_used().into_iter().map(|id| id.0).collect();
    if used.is_empty() {
        return;
    }
    let written = timeout(USE_WRITTEN_EVERY, keys::record_use(&world.db.platform, &used)).await;
    match written {
        Ok(Ok(())) => {}
        // It is for people to look at, to the minute: what is lost is noted again within one.
        Ok(Err(error)) => warn!(error = chain(&error), "the use of API keys could not be noted"),
        Err(_) => warn!("the use of API keys could not be noted in time"),
    }
}
