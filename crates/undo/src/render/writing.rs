//! The statements that take a round back: all rows at once, or one by one where unique values are in the way.

use loomworks_postgres::sql::{ident, literal};

use super::{Statements, join};
use crate::catalog::Column;

impl Statements<'_> {
    /// Deletes what the operations inserted.
    pub(crate) fn delete(&self, round: i64) -> String {
        format!(
            "DELETE FROM ONLY {} t USING {} x WHERE t.ctid = x.place AND x.round = {round} AND x.action = 'delete'",
            self.table.name, self.net
        )
    }

    /// Puts back the columns the operations changed, and only those.
    pub(crate) fn restore(&self, round: i64) -> Option<String> {
        let columns = self.table.writable().filter(|column| !column.key && !column.identity_always);
        let set = |column: &Column| format!("{} = {}", ident(&column.name), column.merged());
        let assignments = join(columns.map(set), ", ");
        (!assignments.is_empty()).then(|| {
            format!(
                "UPDATE ONLY {} t SET {assignments} FROM {} x
                 WHERE t.ctid = x.place AND x.round = {round} AND x.action = 'restore'",
                self.table.name, self.net
            )
        })
    }

    /// The same by deleting and inserting, for values that no UPDATE can bring: two rows that exchanged a unique value,
    /// an identity that is always generated.
    pub(crate) fn restore_by_replacing(&self, round: i64) -> Vec<String> {
        let copy = format!("pg_temp.loomworks_merged_{}_{round}", self.table.id);
        let (table, net, columns) = (&self.table.name, &self.net, self.names());
        let which = format!("t.ctid = x.place AND x.round = {round} AND x.action = 'restore'");
        vec![
            format!(
                "CREATE TEMPORARY TABLE {copy} ON COMMIT DROP AS SELECT {} FROM ONLY {table} t JOIN {net} x ON {which}",
                self.merged()
            ),
            format!("DELETE FROM ONLY {table} t USING {net} x WHERE {which}"),
            format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {copy}"),
        ]
    }

    /// The same row by row: what finds a unique value in use becomes `taken` and stays as it is.
    pub(crate) fn restore_one_by_one(&self, round: i64) -> String {
        let (table, net, columns) = (&self.table.name, &self.net, self.names());
        let replace = format!(
            "WITH gone AS (
                 DELETE FROM ONLY {table} t USING {net} x
                 WHERE t.ctid = x.place AND x.round = {round} AND x.action = 'restore' AND x.seq = entry.seq
                 RETURNING {})
             INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone;",
            self.merged(),
            join(self.table.writable().map(|column| format!("gone.{}", ident(&column.name))), ", ")
        );
        self.one_by_one(&format!("x.round = {round} AND x.action = 'restore'"), &replace)
    }

    /// Whether an UPDATE cannot restore the round's rows, because an identity that is always generated was changed.
    pub(crate) fn needs_replacing(&self, round: i64) -> Option<String> {
        let identities = self.table.columns.iter().filter(|column| column.identity_always && !column.key);
        let changed: Vec<String> = identities.map(Column::changed).collect();
        (!changed.is_empty()).then(|| {
            format!(
                "SELECT EXISTS (SELECT FROM {} x WHERE x.round = {round} AND x.action = 'restore' AND ({}))",
                self.net,
                changed.join(" OR ")
            )
        })
    }

    /// The ages of the rows to be inserted. A column that is younger than a row gets its default in it, so rows of
    /// different ages are inserted apart.
    pub(crate) fn ages(&self, round: i64) -> String {
        format!(
            "SELECT DISTINCT {} FROM {} x WHERE x.round = {round} AND {RECREATED} ORDER BY 1",
            self.age(),
            self.net
        )
    }

    /// Inserts what the operations deleted, the same in every column, generated ones computed again.
    pub(crate) fn recreate(&self, round: i64, age: i32) -> Vec<String> {
        let which = format!("x.round = {round} AND {RECREATED} AND {} = {age}", self.age());
        vec![self.make_room(&which), self.insert(&which, age)]
    }

    /// The same row by row.
    pub(crate) fn recreate_one_by_one(&self, round: i64, age: i32) -> String {
        let which = format!("x.round = {round} AND {RECREATED} AND {} = {age}", self.age());
        let one = format!("{which} AND x.seq = entry.seq");
        self.one_by_one(&which, &format!("{}; {};", self.make_room(&one), self.insert(&one, age)))
    }

    /// Deletes what stands in the place of what is to be replaced.
    fn make_room(&self, which: &str) -> String {
        format!(
            "DELETE FROM ONLY {} t USING {} x WHERE t.ctid = x.place AND x.action = 'replace' AND {which}",
            self.table.name, self.net
        )
    }

    fn insert(&self, which: &str, age: i32) -> String {
        let younger = self.sinces();
        let known = |column: &&Column| {
            let place = younger.iter().position(|since| *since == column.since);
            place.is_some_and(|place| i32::try_from(place).is_ok_and(|place| place < age))
        };
        let columns: Vec<&Column> = self.table.writable().filter(known).collect();
        let names = join(columns.iter().map(|column| ident(&column.name)), ", ");
        let values = join(columns.iter().map(|column| column.value("x", 'o')), ", ");
        format!(
            "INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {} x WHERE {which}",
            self.table.name, self.net
        )
    }

    /// How many of the columns a row of the net knows of.
    fn age(&self) -> String {
        let sinces: Vec<String> = self.sinces().iter().map(ToString::to_string).collect();
        format!("width_bucket(x.seq, '{{{}}}'::int8[])", sinces.join(","))
    }

    fn sinces(&self) -> Vec<i64> {
        let mut sinces: Vec<i64> = self.table.columns.iter().map(|column| column.since).collect();
        sinces.sort_unstable();
        sinces
    }

    /// Runs `statements` for each row, again and again while that brings any further, because a row may wait for another
    /// one to give a value free.
    fn one_by_one(&self, which: &str, statements: &str) -> String {
        let net = &self.net;
        let block = format!(
            "#variable_conflict use_column
             DECLARE
                 entry record;
                 progress boolean := true;
             BEGIN
                 UPDATE {net} x SET detail = '' WHERE {which};
                 WHILE progress LOOP
                     progress := false;
                     FOR entry IN SELECT x.seq FROM {net} x WHERE {which} AND x.detail IS NOT NULL ORDER BY x.seq LOOP
                         BEGIN
                             {statements}
                             UPDATE {net} x SET detail = NULL WHERE {which} AND x.seq = entry.seq;
                             progress := true;
                         EXCEPTION WHEN unique_violation OR exclusion_violation THEN
                             UPDATE {net} x SET detail = SQLERRM WHERE {which} AND x.seq = entry.seq;
                         END;
                     END LOOP;
                 END LOOP;
                 UPDATE {net} x SET action = 'taken' WHERE {which} AND x.detail IS NOT NULL;
             END"
        );
        format!("DO {}", literal(&block))
    }

    fn names(&self) -> String {
        join(self.table.writable().map(|column| ident(&column.name)), ", ")
    }

    /// The row as it is now with the columns the operations changed as they were.
    fn merged(&self) -> String {
        let value = |column: &Column| format!("{} AS {}", column.merged(), ident(&column.name));
        join(self.table.writable().map(value), ", ")
    }
}

/// Rows that are inserted.
const RECREATED: &str = "x.action IN ('recreate', 'replace')";

impl Column {
    fn merged(&self) -> String {
        format!("CASE WHEN {} THEN {} ELSE {} END", self.changed(), self.value("x", 'o'), self.current())
    }
}
