//! Taking operations back, in one transaction.
//!
//! Lock the operations, refuse what is undone; then for each table and round: lock the rows, decide, delete, restore,
//! recreate; at the end the foreign keys of all tables at once. The app's triggers and foreign keys' own are silent
//! meanwhile, so the order of tables does not matter, and effects that triggers had are undone by the log and not made
//! again. A plan is the same work, rolled back.
//!
//! What touches the tenant's tables runs what the tenant has written (constraints, defaults, casts), so it is done as
//! another role, through `loomworks.write()` and `loomworks.read()`: [`Undo::write`], [`Undo::read`].

mod constraints;

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Transaction};

use crate::catalog::{self, Table};
use crate::error::UndoError;
use crate::log;
use crate::operation::{Mode, Operation, OperationId, OperationKind, Outcome, Plan, TablePlan};
use crate::render::{Statements, id_list};
use crate::transaction;

/// What an undo would do. Changes nothing.
pub async fn plan(connection: &mut PgConnection, ids: &[OperationId], mode: Mode) -> Result<Plan, UndoError> {
    let transaction = begin(connection).await?;
    let mut undo = Undo { transaction, mode, plan: Plan::default() };
    undo.carry_out(ids, "plan").await?;
    let plan = undo.plan;
    undo.transaction.rollback().await?;
    Ok(plan)
}

/// Takes operations back as a new operation.
///
/// In the modes `strict` and `cascade` any conflict is an error and nothing is changed; what would break a foreign key,
/// or change some keys of a table back and others not, is one in every mode.
pub async fn undo(
    connection: &mut PgConnection,
    ids: &[OperationId],
    mode: Mode,
    requested_by: &str,
) -> Result<Outcome, UndoError> {
    let transaction = begin(connection).await?;
    let mut undo = Undo { transaction, mode, plan: Plan::default() };
    let (operation, broken) = undo.carry_out(ids, requested_by).await?;
    let Undo { transaction, plan, .. } = undo;
    if broken || (!plan.conflicts.is_empty() && matches!(mode, Mode::Strict | Mode::Cascade)) {
        transaction.rollback().await?;
        return Err(UndoError::Conflicts(plan.conflicts));
    }
    transaction.commit().await?;
    Ok(Outcome { operation, undone: plan.operations, tables: plan.tables, skipped: plan.conflicts })
}

/// A transaction in which the app's triggers and foreign keys' own are silent.
async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, UndoError> {
    let mut transaction = transaction::begin(connection).await?;
    transaction.execute("SET LOCAL session_replication_role = replica").await?;
    Ok(transaction)
}

struct Undo<'a> {
    transaction: Transaction<'a, Postgres>,
    mode: Mode,
    plan: Plan,
}

impl Undo<'_> {
    /// Does everything but commit. The second value: a constraint would be broken, or a row torn.
    async fn carry_out(
        &mut self,
        ids: &[OperationId],
        requested_by: &str,
    ) -> Result<(OperationId, bool), UndoError> {
        let mut ids: Vec<OperationId> = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        if self.mode == Mode::Cascade {
            self.add_dependents(&mut ids).await?;
        }
        let operations = self.lock(&ids).await?;
        let (tables, gone) = catalog::touched(&mut self.transaction, &ids).await?;
        self.refuse_the_impossible(&operations, &tables, &gone).await?;
        self.plan.operations.clone_from(&ids);

        let operation = self.log(&ids, &tables, requested_by).await?;
        let list = id_list(&ids);
        let mut broken = false;
        for table in &tables {
            broken |= self.take_back(table, &list).await?;
        }
        broken |= self.check_constraints(&tables).await?;
        self.refuse_deferred_triggers(&operations).await?;
        self.record_undone(&operations, operation).await?;
        Ok((operation, broken))
    }

    /// Adds later operations that depend on these, and on those, until there are no more.
    async fn add_dependents(&mut self, ids: &mut Vec<OperationId>) -> Result<(), UndoError> {
        loop {
            let (tables, _) = catalog::touched(&mut self.transaction, ids).await?;
            let list = id_list(ids);
            let mut more: Vec<i64> = vec![];
            for table in &tables {
                if let Some(sql) = Statements::new(table).dependents(&list) {
                    more.extend(
                        sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql))
                            .fetch_all(&mut *self.transaction)
                            .await?,
                    );
                }
            }
            if more.is_empty() {
                return Ok(());
            }
            ids.extend(more.into_iter().map(OperationId));
            ids.sort_unstable();
            ids.dedup();
        }
    }

    /// Locks the operations in order, so that of several undos of one only one wins.
    async fn lock(&mut self, ids: &[OperationId]) -> Result<Vec<Operation>, UndoError> {
        let sql = format!(
            "SELECT id FROM loomworks.operation WHERE id = ANY({}) ORDER BY id FOR UPDATE",
            id_list(ids)
        );
        self.transaction.execute(AssertSqlSafe(sql)).await?;
        let operations = log::get(&mut self.transaction, ids).await?;
        for id in ids {
            match operations.iter().find(|operation| operation.id == *id) {
                None => return Err(UndoError::Unknown(*id)),
                Some(Operation { undone_by: Some(by), .. }) => {
                    return Err(UndoError::AlreadyUndone { operation: *id, by: *by });
                }
                Some(_) => {}
            }
        }
        Ok(operations)
    }

    /// What rows cannot bring back is refused before anything is done.
    async fn refuse_the_impossible(
        &mut self,
        operations: &[Operation],
        tables: &[Table],
        gone: &[String],
    ) -> Result<(), UndoError> {
        let not_row_by_row = |operation: &Operation, what: String| UndoError::NotRowByRow {
            operation: operation.id,
            what,
            lsn: operation.lsn,
        };
        for operation in operations {
            if operation.kind == OperationKind::Ddl {
                let tag = operation.note["tag"].as_str().unwrap_or("DDL").to_owned();
                return Err(not_row_by_row(operation, format!("it ran {tag}")));
            }
            if let Some(truncated) = operation.note["truncated"].as_array() {
                let names: Vec<&str> = truncated.iter().filter_map(serde_json::Value::as_str).collect();
                return Err(not_row_by_row(operation, format!("it truncated {}", names.join(", "))));
            }
        }
        if let Some(table) = gone.first() {
            let touches = |operation: &&Operation| operation.tables.iter().any(|count| count.table == *table);
            if let Some(operation) = operations.iter().find(touches) {
                return Err(not_row_by_row(operation, format!("table {table} is no more")));
            }
        }
        let list = id_list(&operations.iter().map(|operation| operation.id).collect::<Vec<_>>());
        for table in tables {
            for (column, slot) in &table.retyped {
                if self.scalar::<bool>(Statements::new(table).uses(&list, *slot)).await? {
                    return Err(UndoError::ColumnChanged {
                        table: table.name.clone(),
                        column: column.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Writes the undo down. Its rows are recorded by the same triggers as an agent's.
    async fn log(
        &mut self,
        ids: &[OperationId],
        tables: &[Table],
        requested_by: &str,
    ) -> Result<OperationId, UndoError> {
        let raw: Vec<i64> = ids.iter().map(|id| id.0).collect();
        let numbers: Vec<String> = raw.iter().map(ToString::to_string).collect();
        let mode = format!("{:?}", self.mode).to_lowercase();
        let id = sqlx::query_scalar(
            "INSERT INTO loomworks.operation (xid, at, until, session, kind, statement, lsn, undo_of, requested_by, relations)
             VALUES (pg_current_xact_id(), now(), 'infinity', session_user, 'undo', $1, pg_current_wal_insert_lsn(), $2, $3, $4)
             RETURNING id",
        )
        .bind(format!("undo {} ({mode})", numbers.join(", ")))
        .bind(&raw)
        .bind(requested_by)
        .bind(tables.iter().map(|table| table.id).collect::<Vec<_>>())
        .fetch_one(&mut *self.transaction)
        .await?;
        Ok(OperationId(id))
    }

    /// Takes back what was done to one table. Whether a change of a key would be taken back by half.
    async fn take_back(&mut self, table: &Table, list: &str) -> Result<bool, UndoError> {
        let conflicts_before = self.plan.conflicts.len();
        let statements = Statements::new(table);
        self.run(statements.make_net(list)).await?;
        self.run(format!("ANALYZE pg_temp.loomworks_net_{}", table.id)).await?;
        let writer = crate::WRITER_ROLE;
        self.run(format!("GRANT SELECT, UPDATE ON pg_temp.loomworks_net_{} TO {writer}", table.id)).await?;
        let rounds: i64 = self.scalar(statements.rounds()).await?;
        let mut done =
            TablePlan { table: table.name.clone(), delete: 0, restore: 0, recreate: 0, already: 0 };
        for round in 1..=rounds {
            if let Some(lock) = statements.lock(round) {
                self.write(lock).await?;
            }
            self.write(statements.decide(round, self.mode)).await?;
            let counts = self.take_back_round(&statements, round).await?;
            let count = |action: &str| counts.get(action).copied().unwrap_or(0).cast_unsigned();
            if count("conflict") + count("taken") > 0 {
                for found in self.read(statements.conflicts(round)).await? {
                    let conflict =
                        serde_json::from_str(&found).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                    self.plan.conflicts.push(conflict);
                }
            }
            done.delete += count("delete");
            done.restore += count("restore") + count("replace");
            done.recreate += count("recreate");
            done.already += count("already");
        }
        self.plan.tables.push(done);
        if self.plan.conflicts.len() == conflicts_before {
            return Ok(false);
        }
        self.scalar(statements.torn()).await
    }

    /// Does what was decided and tells how many rows each action had in the end.
    async fn take_back_round(
        &mut self,
        statements: &Statements<'_>,
        round: i64,
    ) -> Result<BTreeMap<String, i64>, UndoError> {
        let counts = self.count_actions(statements, round).await?;
        let any = |action: &str| counts.contains_key(action);
        let mut all_at_once = true;
        if any("delete") {
            self.write(statements.delete(round)).await?;
        }
        if any("restore") {
            all_at_once &= self.restore(statements, round).await?;
        }
        if any("recreate") || any("replace") {
            all_at_once &= self.recreate(statements, round).await?;
        }
        if all_at_once { Ok(counts) } else { self.count_actions(statements, round).await }
    }

    async fn count_actions(
        &mut self,
        statements: &Statements<'_>,
        round: i64,
    ) -> Result<BTreeMap<String, i64>, UndoError> {
        let counts: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(statements.count_actions(round)))
            .fetch_all(&mut *self.transaction)
            .await?;
        Ok(counts.into_iter().collect())
    }

    /// Whether all rows were restored at once; otherwise some may have become `taken`.
    async fn restore(&mut self, statements: &Statements<'_>, round: i64) -> Result<bool, UndoError> {
        let must_replace = match statements.needs_replacing(round) {
            Some(sql) => self.scalar(sql).await?,
            None => false,
        };
        if !must_replace
            && let Some(update) = statements.restore(round)
            && self.attempt(vec![update]).await?
        {
            return Ok(true);
        }
        // Rows may have exchanged a unique value, which no order of updates can take back.
        if self.attempt(statements.restore_by_replacing(round)).await? {
            return Ok(true);
        }
        self.write(statements.restore_one_by_one(round)).await?;
        Ok(false)
    }

    /// Inserts rows again. Whether all were inserted at once; otherwise some may have become `taken`.
    async fn recreate(&mut self, statements: &Statements<'_>, round: i64) -> Result<bool, UndoError> {
        let ages: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(statements.ages(round)))
            .fetch_all(&mut *self.transaction)
            .await?;
        let mut all_at_once = true;
        for age in ages {
            if !self.attempt(statements.recreate(round, age)).await? {
                self.write(statements.recreate_one_by_one(round, age)).await?;
                all_at_once = false;
            }
        }
        Ok(all_at_once)
    }

    /// Notes what is undone. An undo that is undone puts what it had undone in force again, and so on down.
    async fn record_undone(&mut self, operations: &[Operation], by: OperationId) -> Result<(), UndoError> {
        let ids: Vec<OperationId> = operations.iter().map(|operation| operation.id).collect();
        self.set_undone_by(&ids, Some(by)).await?;
        self.run(format!("UPDATE loomworks.operation SET until = clock_timestamp() WHERE id = {}", by.0))
            .await?;
        let mut undone: Vec<Operation> = operations.to_vec();
        let mut in_force = true;
        loop {
            let below: Vec<(OperationId, Vec<OperationId>)> = undone
                .iter()
                .filter(|operation| operation.kind == OperationKind::Undo)
                .map(|operation| (operation.id, operation.undo_of.clone()))
                .collect();
            if below.is_empty() {
                return Ok(());
            }
            let mut next = vec![];
            for (undo, targets) in below {
                self.set_undone_by(&targets, (!in_force).then_some(undo)).await?;
                next.extend(log::get(&mut self.transaction, &targets).await?);
            }
            undone = next;
            in_force = !in_force;
        }
    }

    async fn set_undone_by(&mut self, ids: &[OperationId], by: Option<OperationId>) -> Result<(), UndoError> {
        let sql = format!("UPDATE loomworks.operation SET undone_by = $1 WHERE id = ANY({})", id_list(ids));
        sqlx::query(AssertSqlSafe(sql)).bind(by.map(|id| id.0)).execute(&mut *self.transaction).await?;
        Ok(())
    }

    async fn run(&mut self, sql: String) -> Result<(), UndoError> {
        self.transaction.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }

    async fn scalar<T>(&mut self, sql: String) -> Result<T, UndoError>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
    {
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *self.transaction).await?)
    }

    /// Does something to a table of the tenant's.
    async fn write(&mut self, statement: String) -> Result<(), UndoError> {
        sqlx::query("SELECT loomworks.write($1)").bind(statement).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// What a query on a table of the tenant's finds: one column, of type text.
    async fn read(&mut self, query: String) -> Result<Vec<String>, UndoError> {
        let sql = "SELECT found FROM loomworks.read($1) found";
        Ok(sqlx::query_scalar(sql).bind(query).fetch_all(&mut *self.transaction).await?)
    }

    /// A trigger of the tenant's that fires in spite of everything, and only at the commit, would run as us.
    async fn refuse_deferred_triggers(&mut self, operations: &[Operation]) -> Result<(), UndoError> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT format('trigger %I of %s would run at the end of the undo', tgname, tgrelid::regclass) FROM pg_trigger
             WHERE NOT tgisinternal AND tgdeferrable AND tgenabled IN ('A', 'R') ORDER BY tgname LIMIT 1",
        )
        .fetch_optional(&mut *self.transaction)
        .await?;
        match (found, operations.first()) {
            (Some(what), Some(first)) => {
                Err(UndoError::NotRowByRow { operation: first.id, what, lsn: first.lsn })
            }
            _ => Ok(()),
        }
    }

    /// Writes. `false`: one statement found a unique value in use, and it is as if none had been run.
    async fn attempt(&mut self, statements: Vec<String>) -> Result<bool, UndoError> {
        let mut savepoint = self.transaction.begin().await?;
        for sql in statements {
            match sqlx::query("SELECT loomworks.write($1)").bind(sql).execute(&mut *savepoint).await {
                Ok(_) => {}
                Err(sqlx::Error::Database(error))
                    if matches!(error.code().as_deref(), Some("23505" | "23P01")) =>
                {
                    savepoint.rollback().await?;
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        savepoint.commit().await?;
        Ok(true)
    }
}
