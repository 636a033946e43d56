//! The audit log's rows, their seals, and the head of the chain.

use jiff::Timestamp;
use loomworks_core::ids::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Row as _};
use uuid::Uuid;

use super::Time;

/// A line of the audit log, as shown to whoever may see it.
#[derive(Clone, Debug, Serialize, Deserialize, FromRow, utoipa::ToSchema)]
pub struct Entry {
    pub id: i64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Time,
    /// Who did it: the name of an API key, or `loomworks`.
    pub actor: String,
    /// Where it came from: an address and a request, or a job.
    pub origin: String,
    /// What was done: `tenant.suspended`.
    pub action: String,
    pub tenant_id: Option<Uuid>,
    /// The particulars; what was changed with how it was before and after.
    #[schema(value_type = Object)]
    pub detail: Value,
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub tenant: Option<TenantId>,
    pub actor: Option<String>,
    /// The action, or its beginning up to a dot: `tenant`.
    pub action: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// A row as it is hashed: each column in one form that does not depend on any setting.
#[derive(Clone, Debug, FromRow)]
pub struct Sealable {
    pub id: i64,
    /// Microseconds since 1970.
    pub at: i64,
    pub actor: String,
    pub action: String,
    pub tenant_id: Option<Uuid>,
    pub detail: String,
    pub origin: String,
    pub xid: String,
}

/// When rows were sealed, and by which transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub struct Sealing {
    /// Microseconds since 1970.
    pub sealed_at: i64,
    #[sqlx(rename = "sealed_by")]
    pub xid: i64,
}

/// A seal with the row that it seals, if that is still there.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub place: i64,
    pub audit_id: i64,
    pub hash: Vec<u8>,
    pub sealing: Sealing,
    pub row: Option<Sealable>,
}

#[derive(Clone, Debug, FromRow, PartialEq, Eq)]
pub struct Head {
    pub place: i64,
    pub hash: Vec<u8>,
}

const HASHED: &str = "a.id, (extract(epoch FROM a.at) * 1000000)::int8 AS at, a.actor, a.action, a.tenant_id, \
                      a.detail::text AS detail, a.origin, a.xid::text AS xid";

const SEALING: &str =
    "(extract(epoch FROM s.sealed_at) * 1000000)::int8 AS sealed_at, s.xid::text::int8 AS sealed_by";

/// A tenant of the filter and of row security at once: each takes away, none adds.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    before: Option<i64>,
    rows: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as(
        "SELECT id, at, actor, origin, action, tenant_id, detail FROM audit
         WHERE ($1::uuid IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR actor = $2)
         AND ($3::text IS NULL OR action = $3 OR starts_with(action, $3 || '.'))
         AND ($4::timestamptz IS NULL OR at >= $4) AND ($5::timestamptz IS NULL OR at < $5)
         AND ($6::int8 IS NULL OR id < $6)
         ORDER BY id DESC LIMIT $7",
    )
    .bind(filter.tenant.map(|tenant| tenant.0))
    .bind(filter.actor.as_deref())
    .bind(filter.action.as_deref())
    .bind(filter.since.map(Time::from))
    .bind(filter.until.map(Time::from))
    .bind(before)
    .bind(rows)
    .fetch_all(connection)
    .await
}

/// Whether there is a line with this in its particulars: for steps of jobs that may run twice.
pub async fn is_recorded(connection: &mut PgConnection, action: &str, part: &Value) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM audit WHERE action = $1 AND detail @> $2)")
        .bind(action)
        .bind(part)
        .fetch_one(connection)
        .await
}

/// Whether nobody else is sealing; nobody will for the rest of the transaction. Not a lock of the head's row: that would
/// give the transaction its number, which must come after it has read.
pub async fn begin_sealing(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT pg_try_advisory_xact_lock(hashtextextended('loomworks: seal the audit log', 0))",
    )
    .fetch_one(connection)
    .await
}

/// The present moment, or that of the last seal if the clock was set back since, and the transaction's number. To be
/// asked for after the rows were read.
pub async fn sealing(connection: &mut PgConnection) -> sqlx::Result<Sealing> {
    sqlx::query_as(
        "SELECT (extract(epoch FROM greatest(clock_timestamp(), s.sealed_at)) * 1000000)::int8 AS sealed_at,
             pg_current_xact_id()::text::int8 AS sealed_by
         FROM (SELECT) present LEFT JOIN (SELECT sealed_at FROM audit_seals ORDER BY place DESC LIMIT 1) s ON true",
    )
    .fetch_one(connection)
    .await
}

pub async fn head(connection: &mut PgConnection) -> sqlx::Result<Head> {
    sqlx::query_as("SELECT place, hash FROM audit_head").fetch_one(connection).await
}

/// The oldest transaction that has not ended. To be asked for before the rows are.
pub async fn oldest_running(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetch_one(connection).await
}

/// Rows without a seal. Those of transactions before the horizon are not among them: they were all sealed when it was
/// set, so what appears there later was not written by the platform.
pub async fn unsealed(connection: &mut PgConnection, rows: i64) -> sqlx::Result<Vec<Sealable>> {
    let sql = format!(
        "SELECT {HASHED} FROM audit a WHERE a.xid >= (SELECT horizon FROM audit_head)
         AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.audit_id = a.id) ORDER BY a.id LIMIT $1"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(rows).fetch_all(connection).await
}

pub async fn insert_seals(
    connection: &mut PgConnection,
    sealing: Sealing,
    places: &[i64],
    ids: &[i64],
    hashes: &[Vec<u8>],
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO audit_seals (place, audit_id, hash, sealed_at)
         SELECT new.*, timestamptz 'epoch' + $4 * interval '1 microsecond'
         FROM unnest($1::int8[], $2::int8[], $3::bytea[]) new",
    )
    .bind(places)
    .bind(ids)
    .bind(hashes)
    .bind(sealing.sealed_at)
    .execute(connection)
    .await
    .map(drop)
}

pub async fn set_head(connection: &mut PgConnection, head: &Head) -> sqlx::Result<()> {
    sqlx::query("UPDATE audit_head SET place = $1, hash = $2")
        .bind(head.place)
        .bind(&head.hash)
        .execute(connection)
        .await
        .map(drop)
}

/// Notes that everything before a transaction is sealed. A number that falls means another cluster, into which this
/// database was loaded; there the numbers begin anew.
pub async fn set_horizon(connection: &mut PgConnection, xid: &str) -> sqlx::Result<()> {
    sqlx::query("UPDATE audit_head SET horizon = $1::text::xid8 WHERE horizon <> $1::text::xid8")
        .bind(xid)
        .execute(connection)
        .await
        .map(drop)
}

/// Whether the head is to be published again: once a day.
pub async fn take_publication(connection: &mut PgConnection) -> sqlx::Result<Option<Head>> {
    sqlx::query_as(
        "UPDATE audit_head SET published_at = now()
         WHERE place > 0 AND (published_at IS NULL OR published_at < now() - interval '1 day')
         RETURNING place, hash",
    )
    .fetch_optional(connection)
    .await
}

/// Seals after a place, each with its row.
pub async fn sealed(connection: &mut PgConnection, after: i64, rows: i64) -> sqlx::Result<Vec<Sealed>> {
    #[derive(FromRow)]
    struct Joined {
        place: i64,
        audit_id: i64,
        hash: Vec<u8>,
        #[sqlx(flatten)]
        sealing: Sealing,
        id: Option<i64>,
        at: Option<i64>,
        actor: Option<String>,
        action: Option<String>,
        tenant_id: Option<Uuid>,
        detail: Option<String>,
        origin: Option<String>,
        xid: Option<String>,
    }
    let sql = format!(
        "SELECT s.place, s.audit_id, s.hash, {SEALING}, {HASHED} FROM audit_seals s LEFT JOIN audit a ON a.id = s.audit_id
         WHERE s.place > $1 ORDER BY s.place LIMIT $2"
    );
    let joined: Vec<Joined> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(after).bind(rows).fetch_all(connection).await?;
    let row = |joined: &mut Joined| {
        Some(Sealable {
            id: joined.id?,
            at: joined.at?,
            actor: joined.actor.take()?,
            action: joined.action.take()?,
            tenant_id: joined.tenant_id,
            detail: joined.detail.take()?,
            origin: joined.origin.take()?,
            xid: joined.xid.take()?,
        })
    };
    Ok(joined
        .into_iter()
        .map(|mut joined| Sealed {
            row: row(&mut joined),
            place: joined.place,
            audit_id: joined.audit_id,
            hash: joined.hash,
            sealing: joined.sealing,
        })
        .collect())
}

/// The first row that has no seal although everything of its time has one.
pub async fn slipped_in(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT min(a.id) FROM audit a WHERE a.xid < (SELECT horizon FROM audit_head)
         AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.audit_id = a.id)",
    )
    .fetch_one(connection)
    .await
}

/// The place before the first that was sealed at a moment or later.
pub async fn place_before(connection: &mut PgConnection, moment: Timestamp) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT coalesce((SELECT min(place) - 1 FROM audit_seals WHERE sealed_at >= $1),
                         (SELECT max(place) FROM audit_seals), 0)",
    )
    .bind(Time::from(moment))
    .fetch_one(connection)
    .await
}

/// How a place was sealed, and the largest id of a row up to it.
pub async fn sealing_at(connection: &mut PgConnection, place: i64) -> sqlx::Result<Option<(Sealing, i64)>> {
    let sql = format!(
        "SELECT {SEALING}, (SELECT max(audit_id) FROM audit_seals WHERE place <= $1) AS id
         FROM audit_seals s WHERE s.place = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(place).fetch_optional(connection).await?;
    row.map(|row| Ok((Sealing::from_row(&row)?, row.try_get("id")?))).transpose()
}

/// The hash at a place.
pub async fn hash_at(connection: &mut PgConnection, place: i64) -> sqlx::Result<Option<Vec<u8>>> {
    sqlx::query_scalar("SELECT hash FROM audit_seals WHERE place = $1")
        .bind(place)
        .fetch_optional(connection)
        .await
}

/// The place whose hash begins so. Nothing at all is the hash before the first row.
pub async fn place_of(connection: &mut PgConnection, hash: &[u8]) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "SELECT place FROM audit_seals WHERE substring(hash FROM 1 FOR octet_length($1)) = $1 LIMIT 1",
    )
    .bind(hash)
    .fetch_optional(connection)
    .await
}

/// How many rows wait for their seal, and for how many seconds the oldest.
pub async fn lag(connection: &mut PgConnection) -> sqlx::Result<(i64, f64)> {
    sqlx::query_as(
        "SELECT count(*), coalesce(extract(epoch FROM now() - min(at)), 0)::float8 FROM audit a
         WHERE a.xid >= (SELECT horizon FROM audit_head)
         AND NOT EXISTS (SELECT FROM audit_seals s WHERE s.audit_id = a.id)",
    )
    .fetch_one(connection)
    .await
}
