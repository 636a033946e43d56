//! What the catalogue says of the recorded tables: the facts that statements are made of.

use sqlx::{PgConnection, Row};

use crate::operation::{OperationId, TablePlan};

/// A recorded table that is there.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Names its row log.
    pub(crate) id: i32,
    pub(crate) oid: i64,
    /// Qualified and quoted.
    pub(crate) name: String,
    /// Recorded and there, in the order of their slots.
    pub(crate) columns: Vec<Column>,
    /// Columns that were recorded and have another type now: name and slot.
    pub(crate) retyped: Vec<(String, i32)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) slot: i32,
    pub(crate) name: String,
    /// As declared.
    pub(crate) type_name: String,
    /// Stored as text.
    pub(crate) user_type: bool,
    pub(crate) generated: bool,
    pub(crate) identity_always: bool,
    /// Part of the key by which rows are found.
    pub(crate) key: bool,
    /// Rows logged before this number know nothing of it.
    pub(crate) since: i64,
}

impl Table {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.key)
    }

    pub(crate) fn has_key(&self) -> bool {
        self.keys().next().is_some()
    }

    /// Columns whose values can be written.
    pub(crate) fn writable(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.generated)
    }
}

/// A foreign key that touches one of some tables. Of partitioned tables it names the whole, and the partition by its
/// number.
#[derive(Clone, Debug)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) child_oid: i64,
    pub(crate) child: String,
    /// How its rows are read: a partitioned table's all, another one's without those of its heirs.
    pub(crate) from_child: String,
    pub(crate) child_columns: Vec<String>,
    pub(crate) parent_oid: i64,
    pub(crate) parent: String,
    pub(crate) from_parent: String,
    pub(crate) parent_columns: Vec<String>,
    /// A parent's value on the left, a child's on the right.
    pub(crate) operators: Vec<String>,
}

/// A unique or exclusion constraint that may be checked at the commit.
#[derive(Clone, Debug)]
pub(crate) struct Deferrable {
    pub(crate) name: String,
    pub(crate) oid: i64,
    pub(crate) expressions: Vec<String>,
    pub(crate) operators: Vec<String>,
}

/// The row logs that may have rows of the operations, with the names of their tables.
pub(crate) async fn row_logs(
    connection: &mut PgConnection,
    operations: &[OperationId],
) -> sqlx::Result<Vec<(i32, String)>> {
    let ids: Vec<i64> = operations.iter().map(|id| id.0).collect();
    sqlx::query_as(
        "SELECT r.id, r.name FROM loomworks.relation r
         WHERE r.id IN (SELECT unnest(o.relations) FROM loomworks.operation o WHERE o.id = ANY($1)) ORDER BY r.id",
    )
    .bind(&ids)
    .fetch_all(connection)
    .await
}

/// The tables of which the operations changed rows. The second list names those that are gone.
pub(crate) async fn touched(
    connection: &mut PgConnection,
    operations: &[OperationId],
) -> sqlx::Result<(Vec<Table>, Vec<String>)> {
    let ids = crate::render::id_list(operations);
    let member = crate::render::member(&ids);
    let logs = row_logs(connection, operations).await?;
    // An operation names a partitioned table and all its partitions, of which few have rows of it.
    let parts = logs
        .iter()
        .map(|(id, _)| format!("SELECT {id} WHERE EXISTS (SELECT FROM loomworks.row_{id} r WHERE {member})"));
    let sql = parts.collect::<Vec<_>>().join(" UNION ALL ");
    if sql.is_empty() {
        return Ok((vec![], vec![]));
    }
    let touched: Vec<i32> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
    tables(connection, &touched).await
}

const COLUMNS: &str = "
    SELECT r.id, coalesce(c.oid, 0)::int8 AS oid, r.name AS last_name, c.oid::regclass::text AS name,
        a.slot, a.name::text AS attname, a.since, a.type AS logged_type,
        p.attname IS NOT NULL AS there, format_type(p.atttypid, p.atttypmod) AS type_name, p.atttypid >= 16384 AS user_type,
        p.attgenerated <> '' AS generated, p.attidentity = 'a' AS identity_always,
        coalesce(p.attnum = ANY(k.indkey::int2[]), false) AS key
    FROM loomworks.relation r
    LEFT JOIN pg_class c ON c.oid = r.oid
    LEFT JOIN loomworks.attribute a ON a.relation_id = r.id
    LEFT JOIN pg_attribute p ON p.attrelid = c.oid AND p.attnum = a.attnum AND NOT p.attisdropped
    LEFT JOIN LATERAL (
        SELECT i.indkey FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
        AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) n(attnum) JOIN pg_attribute q
                        ON q.attrelid = c.oid AND q.attnum = n.attnum WHERE NOT q.attnotnull)
        ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1) k ON true
    WHERE r.id = ANY($1) ORDER BY r.id, a.slot";

async fn tables(connection: &mut PgConnection, ids: &[i32]) -> sqlx::Result<(Vec<Table>, Vec<String>)> {
    let rows = sqlx::query(COLUMNS).bind(ids).fetch_all(connection).await?;
    let (mut tables, mut gone): (Vec<Table>, Vec<String>) = (vec![], vec![]);
    let mut dead: Vec<(i32, String, i32)> = vec![];
    for row in rows {
        let id: i32 = row.try_get("id")?;
        let Some(name) = row.try_get::<Option<String>, _>("name")? else {
            gone.push(row.try_get("last_name")?);
            continue;
        };
        if tables.last().is_none_or(|table| table.id != id) {
            tables.push(Table { id, oid: row.try_get("oid")?, name, columns: vec![], retyped: vec![] });
        }
        let Some(slot) = row.try_get::<Option<i32>, _>("slot")? else { continue };
        let attname: String = row.try_get("attname")?;
        if !row.try_get::<bool, _>("there")? {
            dead.push((id, attname, slot));
            continue;
        }
        let column = Column {
            slot,
            name: attname,
            type_name: row.try_get("type_name")?,
            user_type: row.try_get("user_type")?,
            generated: row.try_get("generated")?,
            identity_always: row.try_get("identity_always")?,
            key: row.try_get("key")?,
            since: row.try_get("since")?,
        };
        if let Some(table) = tables.last_mut() {
            table.columns.push(column);
        }
    }
    for (id, name, slot) in dead {
        let table = tables.iter_mut().find(|table| table.id == id);
        if let Some(table) = table.filter(|table| table.columns.iter().any(|column| column.name == name)) {
            table.retyped.push((name, slot));
        }
    }
    gone.dedup();
    Ok((tables, gone))
}

/// An array of operators, written so that no search path matters.
const OPERATORS: &str = "(SELECT array_agg(format('OPERATOR(%I.%s)', n.nspname, q.oprname) ORDER BY k.nth)
    FROM unnest(OPERATOR_IDS) WITH ORDINALITY k(operator, nth)
    JOIN pg_operator q ON q.oid = k.operator JOIN pg_namespace n ON n.oid = q.oprnamespace)";

/// The foreign keys that what was done to the tables may have broken. Hundreds of tables may refer to one, so those
/// are left out that refer to keys of which none went.
pub(crate) async fn foreign_keys(
    connection: &mut PgConnection,
    tables: &[Table],
    done: &[TablePlan],
) -> sqlx::Result<Vec<ForeignKey>> {
    let oids = |wanted: fn(&TablePlan) -> bool| -> Vec<i64> {
        tables.iter().zip(done).filter(|(_, done)| wanted(done)).map(|(table, _)| table.oid).collect()
    };
    let columns = |side: &str, keys: &str| {
        format!(
            "(SELECT array_agg(p.attname::text ORDER BY k.nth) FROM unnest(c.{keys}) WITH ORDINALITY k(attnum, nth)
              JOIN pg_attribute p ON p.attrelid = c.{side} AND p.attnum = k.attnum)"
        )
    };
    let from = |side: &str| {
        format!(
            "(SELECT CASE relkind WHEN 'p' THEN '' ELSE 'ONLY ' END FROM pg_class WHERE oid = c.{side}) || c.{side}::regclass"
        )
    };
    // Between partitions, and between a partition and a whole table, there are constraints of their own, each of them
    // with the one above it.
    let sql = format!(
        "WITH RECURSIVE up AS (
             SELECT f.conrelid, f.confrelid, f.oid, f.conparentid FROM pg_constraint f
             WHERE f.contype = 'f' AND (f.conrelid = ANY($1::int8[]::oid[]) OR f.confrelid = ANY($2::int8[]::oid[]) OR (f.confrelid = ANY($3::int8[]::oid[])
                 AND NOT (SELECT indisprimary FROM pg_index WHERE indexrelid = f.conindid)))
             UNION ALL
             SELECT up.conrelid, up.confrelid, f.oid, f.conparentid FROM up JOIN pg_constraint f ON f.oid = up.conparentid
         )
         SELECT DISTINCT c.conname::text, up.conrelid::int8, c.conrelid::regclass::text, {}, {}, up.confrelid::int8,
             c.confrelid::regclass::text, {}, {}, {}
         FROM up JOIN pg_constraint c ON c.oid = up.oid WHERE up.conparentid = 0 ORDER BY 3, 1, 2, 6",
        from("conrelid"),
        columns("conrelid", "conkey"),
        from("confrelid"),
        columns("confrelid", "confkey"),
        OPERATORS.replace("OPERATOR_IDS", "c.conpfeqop"),
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(oids(|done| done.restore + done.recreate > 0))
        .bind(oids(|done| done.delete > 0))
        .bind(oids(|done| done.restore > 0))
        .fetch_all(connection)
        .await?;
    let key = |row: &sqlx::postgres::PgRow| {
        Ok(ForeignKey {
            name: row.try_get(0)?,
            child_oid: row.try_get(1)?,
            child: row.try_get(2)?,
            from_child: row.try_get(3)?,
            child_columns: quoted(&row.try_get::<Vec<String>, _>(4)?),
            parent_oid: row.try_get(5)?,
            parent: row.try_get(6)?,
            from_parent: row.try_get(7)?,
            parent_columns: quoted(&row.try_get::<Vec<String>, _>(8)?),
            operators: row.try_get(9)?,
        })
    };
    rows.iter().map(key).collect()
}

/// The tables' constraints that may be checked at the commit: by triggers, which are silent during an undo.
pub(crate) async fn deferrables(
    connection: &mut PgConnection,
    tables: &[Table],
) -> sqlx::Result<Vec<Deferrable>> {
    let oids: Vec<i64> = tables.iter().map(|table| table.oid).collect();
    let sql = format!(
        "SELECT c.conname::text, c.conrelid::int8,
             (SELECT array_agg(pg_get_indexdef(c.conindid, n, false) ORDER BY n) FROM generate_series(1, i.indnkeyatts) n),
             coalesce({}, (SELECT array_agg('OPERATOR(pg_catalog.=)'::text) FROM generate_series(1, i.indnkeyatts)))
         FROM pg_constraint c JOIN pg_index i ON i.indexrelid = c.conindid
         WHERE c.contype IN ('p', 'u', 'x') AND c.condeferrable AND c.conrelid::int8 = ANY($1) ORDER BY c.conname",
        OPERATORS.replace("OPERATOR_IDS", "c.conexclop"),
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&oids).fetch_all(connection).await?;
    let constraint = |row: &sqlx::postgres::PgRow| {
        Ok(Deferrable {
            name: row.try_get(0)?,
            oid: row.try_get(1)?,
            expressions: row.try_get(2)?,
            operators: row.try_get(3)?,
        })
    };
    rows.iter().map(constraint).collect()
}

fn quoted(names: &[String]) -> Vec<String> {
    names.iter().map(|name| loomworks_postgres::sql::ident(name)).collect()
}
