//! Reading the log.

use std::collections::BTreeMap;

use jiff_sqlx::Timestamp;
use loomworks_postgres::sql::literal;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::catalog;
use crate::error::UndoError;
use crate::operation::{
    Filter, Operation, OperationDetail, OperationId, OperationKind, RowChange, TableCount,
};
use crate::render::{id_list, member};
use crate::transaction;

/// Operations looked at beyond those that are wanted: a statement that reached no row is in the log, and is not shown.
const AHEAD: i64 = 50;

/// Operations, newest first.
pub async fn list(connection: &mut PgConnection, filter: &Filter) -> Result<Vec<Operation>, UndoError> {
    let mut transaction = transaction::begin(connection).await?;
    let limit = usize::try_from(filter.limit).unwrap_or(0);
    let mut found = Vec::new();
    let mut before = filter.before;
    while found.len() < limit {
        let page = page(&mut transaction, filter.session.as_deref(), before, filter.limit + AHEAD).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        found.extend(
            page.into_iter()
                .filter(|operation| operation.kind != OperationKind::Change || !operation.tables.is_empty()),
        );
    }
    transaction.rollback().await?;
    found.truncate(limit);
    Ok(found)
}

async fn page(
    connection: &mut PgConnection,
    session: Option<&str>,
    before: Option<OperationId>,
    limit: i64,
) -> Result<Vec<Operation>, UndoError> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM loomworks.operation WHERE ($1::text IS NULL OR session = $1::text::name) AND ($2::int8 IS NULL OR id < $2)
         ORDER BY id DESC LIMIT $3",
    )
    .bind(session)
    .bind(before.map(|id| id.0))
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    get(connection, &ids.into_iter().map(OperationId).collect::<Vec<_>>()).await
}

/// The operations of these ids, newest first. Those that there are not are left out.
pub(crate) async fn get(
    connection: &mut PgConnection,
    ids: &[OperationId],
) -> Result<Vec<Operation>, UndoError> {
    let raw: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query(
        "SELECT id, session::text, at, kind, statement, lsn::text, note, undo_of, undone_by, requested_by
         FROM loomworks.operation WHERE id = ANY($1) ORDER BY id DESC",
    )
    .bind(&raw)
    .fetch_all(&mut *connection)
    .await?;
    let mut tables = counts(connection, ids).await?;
    let decode =
        |error: Box<dyn std::error::Error + Send + Sync>| UndoError::Database(sqlx::Error::Decode(error));
    let operation = |row: &sqlx::postgres::PgRow| {
        let id = OperationId(row.try_get(0)?);
        let kind = match row.try_get::<String, _>(3)?.as_str() {
            "ddl" => OperationKind::Ddl,
            "truncate" => OperationKind::Truncate,
            "undo" => OperationKind::Undo,
            _ => OperationKind::Change,
        };
        Ok(Operation {
            id,
            session: row.try_get(1)?,
            at: row.try_get::<Timestamp, _>(2)?.to_jiff(),
            kind,
            statement: row.try_get(4)?,
            lsn: row.try_get::<String, _>(5)?.parse().map_err(|error| decode(Box::new(error)))?,
            tables: tables.remove(&id.0).unwrap_or_default(),
            note: row.try_get(6)?,
            undo_of: row.try_get::<Vec<i64>, _>(7)?.into_iter().map(OperationId).collect(),
            undone_by: row.try_get::<Option<i64>, _>(8)?.map(OperationId),
            requested_by: row.try_get(9)?,
        })
    };
    rows.iter().map(operation).collect()
}

/// Rows by operation and table.
async fn counts(
    connection: &mut PgConnection,
    ids: &[OperationId],
) -> Result<BTreeMap<i64, Vec<TableCount>>, UndoError> {
    let list = id_list(ids);
    let parts: Vec<String> = catalog::row_logs(connection, ids)
        .await?
        .iter()
        .map(|(id, name)| {
            format!(
                "SELECT p.id, {name}, count(*) FILTER (WHERE r.kind = 'I'), count(*) FILTER (WHERE r.kind = 'U'),
                     count(*) FILTER (WHERE r.kind = 'D')
                 FROM loomworks.operation p JOIN loomworks.row_{id} r ON r.xid = p.xid AND r.at BETWEEN p.at AND p.until
                 WHERE p.id = ANY({list}) GROUP BY p.id",
                name = literal(name)
            )
        })
        .collect();
    let mut counts: BTreeMap<i64, Vec<TableCount>> = BTreeMap::new();
    if parts.is_empty() || ids.is_empty() {
        return Ok(counts);
    }
    let sql = parts.join(" UNION ALL ");
    let rows: Vec<(i64, String, i64, i64, i64)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    for (id, table, inserted, updated, deleted) in rows {
        let [inserted, updated, deleted] = [inserted, updated, deleted].map(i64::cast_unsigned);
        counts.entry(id).or_default().push(TableCount { table, inserted, updated, deleted });
    }
    Ok(counts)
}

/// How many rows the log has grown by since a moment: its own, one for each row that was changed, and for each operation.
pub async fn logged_since(connection: &mut PgConnection, since: jiff::Timestamp) -> Result<u64, UndoError> {
    let since = Timestamp::from(since);
    let mut transaction = transaction::begin(connection).await?;
    let named: Vec<i32> = sqlx::query_scalar(
        "SELECT DISTINCT r.id FROM loomworks.relation r JOIN loomworks.operation o ON r.id = ANY(o.relations)
         WHERE o.until >= $1 ORDER BY r.id",
    )
    .bind(since)
    .fetch_all(&mut *transaction)
    .await?;
    let mut parts = vec!["SELECT count(*) AS rows FROM loomworks.operation WHERE until >= $1".to_owned()];
    parts.extend(named.iter().map(|id| {
        format!(
            "SELECT count(*) FROM loomworks.row_{id} WHERE at >= $1
                 AND xid IN (SELECT xid FROM loomworks.operation WHERE until >= $1)"
        )
    }));
    let sql = format!("SELECT sum(rows)::int8 FROM ({}) part", parts.join(" UNION ALL "));
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).bind(since).fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows.cast_unsigned())
}

/// One operation with at most `rows_max` of its rows. `None`: there is no such operation.
pub async fn show(
    connection: &mut PgConnection,
    id: OperationId,
    rows_max: i64,
) -> Result<Option<OperationDetail>, UndoError> {
    let mut transaction = transaction::begin(connection).await?;
    let Some(operation) = get(&mut transaction, &[id]).await?.pop() else { return Ok(None) };
    let list = id_list(&[id]);
    let columns: Vec<(i32, String, Vec<String>, Vec<i32>)> = sqlx::query_as(
        "SELECT r.id, r.name, array_agg(a.name::text ORDER BY a.slot), array_agg(a.slot ORDER BY a.slot)
         FROM loomworks.relation r JOIN loomworks.attribute a ON a.relation_id = r.id GROUP BY r.id, r.name ORDER BY r.id",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let image = |side: char, names: &[String], slots: &[i32]| {
        let pairs = names.iter().zip(slots).map(|(name, slot)| {
            // format() calls no cast: a value is shown by its type's own output function.
            format!(
                "{}, CASE WHEN num_nonnulls(r.{side}{slot}) = 1 THEN format('%s', r.{side}{slot}) END",
                literal(name)
            )
        });
        // A function takes at most 100 arguments; objects can be joined.
        let pairs: Vec<String> = pairs.collect();
        let objects = pairs.chunks(40).map(|chunk| format!("jsonb_build_object({})", chunk.join(", ")));
        objects.collect::<Vec<_>>().join(" || ")
    };
    let mut rows = Vec::new();
    for (number, table, names, slots) in columns {
        if !operation.tables.iter().any(|count| count.table == table) {
            continue;
        }
        let sql = format!(
            "SELECT CASE WHEN r.kind <> 'I' THEN {} END, CASE WHEN r.kind <> 'D' THEN {} END
             FROM loomworks.row_{number} r WHERE {} ORDER BY r.seq LIMIT {}",
            image('o', &names, &slots),
            image('n', &names, &slots),
            member(&list),
            rows_max - i64::try_from(rows.len()).unwrap_or(0),
        );
        let found: Vec<(Option<Json<_>>, Option<Json<_>>)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *transaction).await?;
        rows.extend(found.into_iter().map(|(before, after)| RowChange {
            table: table.clone(),
            before: before.map(|image| image.0),
            after: after.map(|image| image.0),
        }));
    }
    transaction.rollback().await?;
    Ok(Some(OperationDetail { operation, rows }))
}
