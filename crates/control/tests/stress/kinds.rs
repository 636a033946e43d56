//! The jobs of the stress run: some that leave an effect at each step, some that fail for ever.

use std::time::Duration;

use loomworks_control::World;
use loomworks_control::error::Error;
use loomworks_control::jobs::{Context, Kinds, Progress, Queue, StepError, Then, Work};
use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

/// What the run writes down beside the jobs themselves.
pub(crate) const TABLES: &str = "
    SET search_path = public;
    -- One row a job and step, with the token that the step made.
    CREATE TABLE effects (job uuid, step int, token uuid NOT NULL, PRIMARY KEY (job, step));
    -- Every beginning of a poison job's step.
    CREATE TABLE tries (job uuid NOT NULL);
    -- Every step that was saved and every end, as the database saw it.
    CREATE TABLE saved (job uuid, steps_done int, state text, step int);
    -- What a worker had in hand when it was killed or stopped.
    CREATE TABLE cuts (job uuid, fence bigint, at timestamptz);
    -- Every claim but a job's first.
    CREATE TABLE claimed_again (job uuid, fence bigint, at timestamptz);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
        IF new.steps_done <> old.steps_done OR new.finished_at IS DISTINCT FROM old.finished_at THEN
            INSERT INTO saved VALUES (new.id, new.steps_done, new.state, (new.step ->> 'number')::int);
        END IF;
        IF new.fence > old.fence AND old.fence > 0 THEN
            INSERT INTO claimed_again VALUES (new.id, new.fence, clock_timestamp());
        END IF;
        RETURN new;
    END $$;
    CREATE TRIGGER note AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION note();
    GRANT ALL ON effects, tries, saved, cuts, claimed_again TO loomworks_platform;";

pub(crate) fn kinds() -> Kinds {
    Kinds::default().with::<Effects>().with::<Poison>().with::<Nothing>()
}

/// Leaves an effect at each of its steps.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Effects {
    pub(crate) tenant: TenantId,
    pub(crate) name: String,
    pub(crate) steps: i32,
    pub(crate) pause_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct At {
    number: i32,
    tokens: Vec<Uuid>,
}

impl Work for Effects {
    const KIND: &'static str = "effects";
    type Step = At;

    fn tenant(&self) -> Option<TenantId> {
        Some(self.tenant)
    }

    fn dedup_key(&self) -> String {
        self.name.clone()
    }

    fn first(&self) -> At {
        At { number: 0, tokens: Vec::new() }
    }

    fn progress(_: &At) -> Progress {
        Progress { percent: 50, words: "leaving effects" }
    }

    async fn run(&self, step: &At, world: &World, context: &Context) -> Result<Then<At>, StepError> {
        tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
        // Looks and acts in one: what was done before is found.
        let token: Uuid = sqlx::query_scalar(
            "INSERT INTO effects VALUES ($1, $2, $3)
             ON CONFLICT (job, step) DO UPDATE SET step = excluded.step RETURNING token",
        )
        .bind(context.job.0)
        .bind(step.number)
        .bind(Uuid::new_v4())
        .fetch_one(&world.db.platform)
        .await
        .map_err(Error::from)?;
        let mut tokens = step.tokens.clone();
        tokens.push(token);
        Ok(match step.number + 1 {
            number if number == self.steps => Then::Done(json!({ "tokens": tokens })),
            number => Then::Next(At { number, tokens }),
        })
    }
}

/// How a job harms whoever carries it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Harm {
    Fails,
    Panics,
    Kills,
}

impl Harm {
    pub(crate) const ALL: [Self; 3] = [Self::Fails, Self::Panics, Self::Kills];
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Poison {
    pub(crate) name: String,
    pub(crate) harm: Harm,
}

pub(crate) const POISON_TRIES: i32 = 4;

impl Work for Poison {
    const KIND: &'static str = "poison";
    const QUEUE: Queue = Queue::HighPriority;
    const MAX_ATTEMPTS: i32 = POISON_TRIES;
    type Step = ();

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        self.name.clone()
    }

    fn first(&self) {}

    fn progress((): &()) -> Progress {
        Progress { percent: 0, words: "doing harm" }
    }

    async fn run(&self, (): &(), world: &World, context: &Context) -> Result<Then<()>, StepError> {
        sqlx::query("INSERT INTO tries VALUES ($1)")
            .bind(context.job.0)
            .execute(&world.db.platform)
            .await
            .map_err(Error::from)?;
        match self.harm {
            Harm::Fails => Err(Error::Internal("as always".into()).into()),
            Harm::Panics => panic!("on purpose"),
            Harm::Kills => std::process::abort(),
        }
    }
}

/// Does nothing, for measuring all that is around it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Nothing {}

impl Work for Nothing {
    const KIND: &'static str = "nothing";
    type Step = ();

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn dedup_key(&self) -> String {
        Uuid::new_v4().to_string()
    }

    fn first(&self) {}

    fn progress((): &()) -> Progress {
        Progress { percent: 0, words: "doing nothing" }
    }

    async fn run(&self, (): &(), _: &World, _: &Context) -> Result<Then<()>, StepError> {
        Ok(Then::Done(json!({})))
    }
}
