//! The constraints whose triggers were silent, checked for all rows at once before the commit.

use std::collections::BTreeMap;

use super::Undo;
use crate::catalog::{self, Table};
use crate::error::UndoError;
use crate::operation::Conflict;
use crate::render::Statements;

impl Undo<'_> {
    /// Foreign keys, and unique constraints that wait for the commit: their triggers were silent. Whether one is broken.
    pub(super) async fn check_constraints(&mut self, tables: &[Table]) -> Result<bool, UndoError> {
        let mut found: Vec<(String, String, String)> = vec![];
        let done = self.plan.tables.clone();
        for key in catalog::foreign_keys(&mut self.transaction, tables, &done).await? {
            for table in tables.iter().filter(|table| table.oid == key.child_oid) {
                let statements = Statements::new(table);
                self.write(statements.lock_parents(&key)).await?;
                for row in self.read(statements.orphans(&key)).await? {
                    let reason = format!("its parent {row} in {} is missing", key.parent);
                    found.push((key.child.clone(), key.name.clone(), reason));
                }
            }
            for (table, done) in tables.iter().zip(&done).filter(|(table, _)| table.oid == key.parent_oid) {
                let Some(sql) = Statements::new(table).abandoned(&key, done, self.mode) else { continue };
                for row in self.read(sql).await? {
                    let reason = format!("rows of {} refer to {row}", key.child);
                    found.push((key.parent.clone(), key.name.clone(), reason));
                }
            }
        }
        for constraint in catalog::deferrables(&mut self.transaction, tables).await? {
            for table in tables.iter().filter(|table| table.oid == constraint.oid) {
                for row in self.read(Statements::new(table).shared(&constraint)).await? {
                    let reason = format!("a unique value it would get back is in use: {row}");
                    found.push((table.name.clone(), constraint.name.clone(), reason));
                }
            }
        }
        let broken = !found.is_empty();
        self.plan.conflicts.extend(found.into_iter().map(|(table, name, reason)| Conflict {
            table,
            key: BTreeMap::from([("constraint".to_owned(), Some(name))]),
            reason,
            columns: vec![],
        }));
        Ok(broken)
    }
}
