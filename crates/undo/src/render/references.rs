//! What the silent triggers would have checked: foreign keys, and unique constraints that wait for the commit.

use loomworks_postgres::sql::ident;

use super::{CONFLICTS_MAX, Statements, join};
use crate::catalog::{Deferrable, ForeignKey};
use crate::operation::{Mode, TablePlan};

/// Rows that were written.
const WRITTEN: &str = "x.action IN ('restore', 'recreate', 'replace')";

impl Statements<'_> {
    /// Locks the parents of the rows that were written, so that nobody takes them away before we commit.
    pub(crate) fn lock_parents(&self, key: &ForeignKey) -> String {
        format!(
            "SELECT count(*) FROM (SELECT FROM {} p WHERE EXISTS (
                 SELECT FROM ONLY {} t JOIN {} x ON {} WHERE {WRITTEN} AND {})
             FOR KEY SHARE OF p) locked",
            key.from_parent,
            self.table.name,
            self.net,
            self.written(),
            key.matches("p", "t"),
        )
    }

    /// Rows that were written and whose parent is missing.
    pub(crate) fn orphans(&self, key: &ForeignKey) -> String {
        let not_null =
            join(key.child_columns.iter().map(|column| format!("t.{column} IS NOT NULL")), " AND ");
        format!(
            "SELECT DISTINCT {} FROM ONLY {} t JOIN {} x ON {}
             WHERE {WRITTEN} AND {not_null} AND NOT EXISTS (SELECT FROM {} p WHERE {}) LIMIT {CONFLICTS_MAX}",
            key.child_text("t"),
            self.table.name,
            self.net,
            self.written(),
            key.from_parent,
            key.matches("p", "t"),
        )
    }

    /// Rows of others that refer to rows which are no more. `None`: nothing was done that could make any; hundreds of
    /// tables may refer to one.
    pub(crate) fn abandoned(&self, key: &ForeignKey, done: &TablePlan, mode: Mode) -> Option<String> {
        let referred: Option<Vec<_>> = key
            .parent_columns
            .iter()
            .map(|name| self.table.columns.iter().find(|column| ident(&column.name) == *name))
            .collect();
        let referred = referred?;
        let all_keys = referred.iter().all(|column| column.key);
        if done.delete == 0 && (all_keys || done.restore == 0) {
            return None;
        }
        // A key was there until now. Another unique value was that which the operations wrote, unless it was overwritten.
        let (which, candidates) = if all_keys {
            let raw = |slot| format!("coalesce(x.n{slot}, x.o{slot})");
            ("x.action = 'delete'", referred.iter().map(|column| column.cast(&raw(column.slot))).collect())
        } else if mode == Mode::Force {
            let not_null =
                join(key.child_columns.iter().map(|name| format!("t.{name} IS NOT NULL")), " AND ");
            return Some(self.without_parent(key, &format!("{} t WHERE {not_null}", key.from_child)));
        } else {
            let values: Vec<String> = referred.iter().map(|column| column.value("x", 'n')).collect();
            ("x.after AND x.action IN ('delete', 'restore')", values)
        };
        let pairs = candidates.iter().zip(&key.operators).zip(&key.child_columns);
        let on = join(pairs.map(|((value, equals), child)| format!("{value} {equals} t.{child}")), " AND ");
        Some(
            self.without_parent(
                key,
                &format!("{} x JOIN {} t ON {on} WHERE {which}", self.net, key.from_child),
            ),
        )
    }

    fn without_parent(&self, key: &ForeignKey, children: &str) -> String {
        format!(
            "SELECT DISTINCT {} FROM {children} AND NOT EXISTS (SELECT FROM {} p WHERE {}) LIMIT {CONFLICTS_MAX}",
            key.child_text("t"),
            key.from_parent,
            key.matches("p", "t"),
        )
    }

    /// Rows that were written and share a value with another row, against a constraint that is checked at the commit.
    pub(crate) fn shared(&self, constraint: &Deferrable) -> String {
        let table = &self.table.name;
        let columns = |alias: &str| {
            let numbered = constraint.expressions.iter().enumerate();
            let list = join(numbered.map(|(nth, expression)| format!("({expression}) AS e{nth}")), ", ");
            format!("(SELECT ctid AS place, {list} FROM ONLY {table}) {alias}")
        };
        let operators = constraint.operators.iter().enumerate();
        let same = join(operators.map(|(nth, operator)| format!("b.e{nth} {operator} a.e{nth}")), " AND ");
        let values = join((0..constraint.expressions.len()).map(|nth| format!("a.e{nth}")), ", ");
        format!(
            "SELECT DISTINCT format('%s', ROW({values})) FROM ONLY {table} t JOIN {net} x ON {written}
             JOIN {a} ON a.place = t.ctid JOIN {b} ON {same} AND b.place <> a.place
             WHERE {WRITTEN} LIMIT {CONFLICTS_MAX}",
            net = self.net,
            written = self.written(),
            a = columns("a"),
            b = columns("b"),
        )
    }
}

impl ForeignKey {
    fn matches(&self, parent: &str, child: &str) -> String {
        let pairs = self.parent_columns.iter().zip(&self.operators).zip(&self.child_columns);
        join(pairs.map(|((p, equals), c)| format!("{parent}.{p} {equals} {child}.{c}")), " AND ")
    }

    /// What a row refers to.
    fn child_text(&self, child: &str) -> String {
        let values = join(self.child_columns.iter().map(|column| format!("{child}.{column}")), ", ");
        format!("format('%s', ROW({values}))")
    }
}
