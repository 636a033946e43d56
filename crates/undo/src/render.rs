//! Turning facts about a table into statements. Pure.
//!
//! An undo works on a temporary table for each recorded table, its *net*: a row for each key that the operations
//! changed, with the values before (`o…`) and after (`n…`) and what is to be done about it (`action`). Everything
//! after that is a few statements over all rows at once.
//!
//! | before | after | the operations | undone by |
//! | --- | --- | --- | --- |
//! | no | yes | inserted the row | deleting it, if it is as they left it |
//! | yes | yes | updated it | putting back the columns they changed |
//! | yes | no | deleted it | inserting it, if its key is free |

mod references;
#[cfg(test)]
mod tests;
mod writing;

use loomworks_postgres::sql::{ident, literal};

use crate::catalog::{Column, Table};
use crate::operation::{Mode, OperationId};

/// Conflicts that are reported a table; more help nobody.
const CONFLICTS_MAX: usize = 100;

/// Numbers as an array.
pub(crate) fn id_list(ids: &[OperationId]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
    format!("'{{{}}}'::int8[]", ids.join(","))
}

/// Whether a row `r` of a row log belongs to one of the operations. The index on `xid` finds it.
pub(crate) fn member(ids: &str) -> String {
    format!(
        "r.xid = ANY(ARRAY(SELECT p.xid FROM loomworks.operation p WHERE p.id = ANY({ids}))) AND EXISTS (
             SELECT FROM loomworks.operation p WHERE p.id = ANY({ids}) AND p.xid = r.xid AND r.at BETWEEN p.at AND p.until)"
    )
}

/// The statements for one table.
pub(crate) struct Statements<'a> {
    table: &'a Table,
    net: String,
}

impl Column {
    /// A logged value in the column's type.
    fn value(&self, alias: &str, side: char) -> String {
        self.cast(&format!("{alias}.{side}{}", self.slot))
    }

    fn cast(&self, raw: &str) -> String {
        if self.user_type { format!("({raw})::{}", self.type_name) } else { raw.to_owned() }
    }

    fn current(&self) -> String {
        format!("t.{}", ident(&self.name))
    }

    /// Whether the operations changed it. Compared as bytes: -0 is not 0, and an equality operator may be anybody's.
    fn changed(&self) -> String {
        format!("record_image_ne(ROW(x.n{0}), ROW(x.o{0}))", self.slot)
    }

    /// Whether the row now has another value than the one logged. Unknown (so: no) for a column that is younger than
    /// the row log's entry.
    fn differs(&self, side: char) -> String {
        format!(
            "(x.seq > {} AND record_image_ne(ROW({}), ROW({})))",
            self.since,
            self.current(),
            self.value("x", side)
        )
    }

    /// A value as text, by the type's own output function.
    fn text(&self, value: &str) -> String {
        format!("CASE WHEN num_nonnulls({value}) = 1 THEN format('%s', {value}) END")
    }
}

fn join(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

/// The disjunction of some conditions; of none: false.
fn any(parts: impl Iterator<Item = String>) -> String {
    let all = join(parts, " OR ");
    if all.is_empty() { "false".into() } else { format!("({all})") }
}

impl<'a> Statements<'a> {
    pub(crate) fn new(table: &'a Table) -> Self {
        Self { table, net: format!("pg_temp.loomworks_net_{}", table.id) }
    }

    fn slots(&self, side: char, alias: &str) -> String {
        join(self.table.columns.iter().map(|column| format!("{alias}.{side}{}", column.slot)), ", ")
    }

    /// The key of a row of the net: as it is now, or as it was if the operations deleted it.
    fn same_key(&self) -> String {
        let equal = |column: &Column| {
            let value = column.cast(&format!("coalesce(x.n{0}, x.o{0})", column.slot));
            format!("{} = {value}", column.current())
        };
        join(self.table.keys().map(equal), " AND ")
    }

    fn logged_key(alias: &str, table: &Table) -> String {
        join(table.keys().map(|column| format!("coalesce({alias}.n{0}, {alias}.o{0})", column.slot)), ", ")
    }

    /// Fills the net.
    ///
    /// An update that changed the key counts as a delete and an insert. Entries of one key that follow each other
    /// without anybody else's change in between become one; if somebody changed the row in between, they stay apart
    /// and are taken back in rounds, the newest first.
    pub(crate) fn make_net(&self, ids: &str) -> String {
        let (net, id, member) = (&self.net, self.table.id, member(ids));
        let (olds, news) = (self.slots('o', "r"), self.slots('n', "r"));
        let nulls = |side| {
            let null = |column: &Column| format!("NULL AS {side}{}", column.slot);
            join(self.table.columns.iter().map(null), ", ")
        };
        if !self.table.has_key() {
            return format!(
                "CREATE TEMPORARY TABLE {net} ON COMMIT DROP AS
                 SELECT r.seq, dense_rank() OVER (ORDER BY r.at DESC, r.xid DESC) AS round, r.kind <> 'I' AS before,
                     r.kind <> 'D' AS after, false AS moved, NULL::text AS action, NULL::text AS detail,
                     NULL::tid AS place, {olds}, {news}
                 FROM loomworks.row_{id} r WHERE {member}"
            );
        }
        let key_changed = any(self
            .table
            .keys()
            .map(|column| format!("record_image_ne(ROW(r.n{0}), ROW(r.o{0}))", column.slot)));
        let entry_key = Self::logged_key("e", self.table);
        let joined_images = format!(
            "record_image_eq(ROW({}), ROW({}))",
            join(self.table.columns.iter().map(|column| format!("lag(e.n{}) OVER w", column.slot)), ", "),
            self.slots('o', "e")
        );
        let same_key = {
            let equal =
                |column: &Column| format!("coalesce(f.n{0}, f.o{0}) = coalesce(l.n{0}, l.o{0})", column.slot);
            join(self.table.keys().map(equal), " AND ")
        };
        let (first_old, last_new) = (self.slots('o', "f"), self.slots('n', "l"));
        let (g_old, g_new) = (self.slots('o', "g"), self.slots('n', "g"));
        format!(
            "CREATE TEMPORARY TABLE {net} ON COMMIT DROP AS
             WITH e AS (
                 SELECT r.seq, r.kind <> 'I' AS before, r.kind <> 'D' AS after, false AS moved, {olds}, {news}
                 FROM loomworks.row_{id} r WHERE {member} AND NOT (r.kind = 'U' AND {key_changed})
                 UNION ALL SELECT r.seq, true, false, true, {olds}, {no_news}
                 FROM loomworks.row_{id} r WHERE {member} AND r.kind = 'U' AND {key_changed}
                 UNION ALL SELECT r.seq, false, true, true, {no_olds}, {news}
                 FROM loomworks.row_{id} r WHERE {member} AND r.kind = 'U' AND {key_changed}
             ), c AS (
                 SELECT e.*, count(*) OVER k AS entries, row_number() OVER w AS nth,
                     row_number() OVER w = 1
                     OR (lag(e.after) OVER w = e.before AND (NOT e.before OR {joined_images})) AS joined
                 FROM e WINDOW k AS (PARTITION BY {entry_key}), w AS (PARTITION BY {entry_key} ORDER BY e.seq, e.after)
             ), g AS (
                 SELECT c.*, bool_and(c.joined) OVER k AS contiguous, bool_or(c.moved) OVER k AS any_moved
                 FROM c WINDOW k AS (PARTITION BY {c_key})
             )
             SELECT g.seq, 1::int8 AS round, g.before, g.after, g.moved, NULL::text AS action, NULL::text AS detail, NULL::tid AS place,
                 {g_old}, {g_new}
             FROM g WHERE g.entries = 1
             UNION ALL
             SELECT l.seq, 1, f.before, l.after, l.any_moved, NULL, NULL, NULL, {first_old}, {last_new}
             FROM g l JOIN g f ON f.nth = 1 AND f.contiguous AND {same_key}
             WHERE l.entries > 1 AND l.nth = l.entries AND l.contiguous AND (f.before OR l.after)
             UNION ALL
             SELECT g.seq, g.entries - g.nth + 1, g.before, g.after, g.moved, NULL, NULL, NULL, {g_old}, {g_new}
             FROM g WHERE g.entries > 1 AND NOT g.contiguous",
            no_news = nulls('n'),
            no_olds = nulls('o'),
            c_key = Self::logged_key("c", self.table),
        )
    }

    /// How many rounds the net has.
    pub(crate) fn rounds(&self) -> String {
        format!("SELECT coalesce(max(round), 0) FROM {}", self.net)
    }

    /// Locks the rows that are there. Whoever is changing one is waited for.
    pub(crate) fn lock(&self, round: i64) -> Option<String> {
        let (net, table, key) = (&self.net, &self.table.name, self.same_key());
        self.table.has_key().then(|| {
            format!(
                "SELECT count(*) FROM (
                     SELECT FROM ONLY {table} t JOIN {net} x ON {key} WHERE x.round = {round} FOR UPDATE OF t) locked"
            )
        })
    }

    /// Decides what is to be done about each row of a round, by what is there now.
    pub(crate) fn decide(&self, round: i64, mode: Mode) -> String {
        let (net, table) = (&self.net, &self.table.name);
        if !self.table.has_key() {
            return self.decide_without_key(round);
        }
        let conflict =
            |action: &str| if mode == Mode::Force { format!("'{action}'") } else { "'conflict'".into() };
        let differs = |side| any(self.table.writable().map(|column| column.differs(side)));
        let changed_since = any(self.table.writable().map(|column| {
            format!("({} AND {} AND {})", column.changed(), column.differs('n'), column.differs('o'))
        }));
        let to_restore = any(self
            .table
            .writable()
            .map(|column| format!("({} AND {})", column.changed(), column.differs('o'))));
        format!(
            "UPDATE {net} net SET action = d.action, place = d.place FROM (
                 SELECT x.ctid AS net_place, t.ctid AS place, CASE
                     WHEN NOT x.before AND t.ctid IS NULL THEN 'already'
                     WHEN NOT x.before AND NOT {differs_n} THEN 'delete'
                     WHEN NOT x.before THEN {force_delete}
                     WHEN x.after AND t.ctid IS NULL THEN 'conflict'
                     WHEN x.after AND {changed_since} THEN {force_restore}
                     WHEN x.after AND {to_restore} THEN 'restore'
                     WHEN x.after THEN 'already'
                     WHEN t.ctid IS NULL THEN 'recreate'
                     WHEN NOT {differs_o} THEN 'already'
                     ELSE {force_replace}
                 END AS action
                 FROM {net} x LEFT JOIN ONLY {table} t ON {key} WHERE x.round = {round}) d
             WHERE net.ctid = d.net_place",
            differs_n = differs('n'),
            differs_o = differs('o'),
            force_delete = conflict("delete"),
            force_restore = conflict("restore"),
            force_replace = conflict("replace"),
            key = self.same_key(),
        )
    }

    /// Without a key a row is found by all its values; equal rows are as good as one another, and are paired by number.
    fn decide_without_key(&self, round: i64) -> String {
        let (net, table) = (&self.net, &self.table.name);
        let now = join(self.table.writable().map(Column::current), ", ");
        let then = join(self.table.writable().map(|column| column.value("x", 'n')), ", ");
        let as_text = |row: &str| format!("ROW({row})::text");
        format!(
            "UPDATE {net} net SET place = d.place, action = CASE
                 WHEN NOT net.after THEN 'recreate' WHEN d.place IS NULL THEN 'conflict'
                 WHEN net.before THEN 'restore' ELSE 'delete' END
             FROM (
                 SELECT x.net_place, t.place FROM (
                     SELECT x.ctid AS net_place, {then_text} AS image, x.after,
                         row_number() OVER (PARTITION BY x.after, {then_text} ORDER BY x.seq) AS nth
                     FROM {net} x WHERE x.round = {round}) x
                 LEFT JOIN (
                     SELECT t.ctid AS place, {now_text} AS image,
                         row_number() OVER (PARTITION BY {now_text} ORDER BY t.ctid) AS nth
                     FROM ONLY {table} t) t ON x.after AND t.image = x.image AND t.nth = x.nth) d
             WHERE net.ctid = d.net_place",
            then_text = as_text(&then),
            now_text = as_text(&now),
        )
    }

    /// How many rows each action has.
    pub(crate) fn count_actions(&self, round: i64) -> String {
        format!("SELECT action, count(*) FROM {} WHERE round = {round} GROUP BY action", self.net)
    }

    /// Whether some rows that had changed their key were taken back and others not. The two halves of such a change are
    /// two rows of the net: one without the other would lose a row, or double it.
    pub(crate) fn torn(&self) -> String {
        let left = "action IN ('conflict', 'taken')";
        format!(
            "SELECT coalesce(bool_or({left}) AND bool_or(NOT {left} AND action <> 'already'), false) FROM {} WHERE moved",
            self.net
        )
    }

    /// Tells the conflicts: the key, the reason, the columns with all three values.
    pub(crate) fn conflicts(&self, round: i64) -> String {
        let (net, table) = (&self.net, &self.table.name);
        let key = |column: &Column| {
            let raw = format!("coalesce(x.n{0}, x.o{0})", column.slot);
            format!("{}, {}", literal(&column.name), column.text(&raw))
        };
        let three_values = |column: &Column| {
            format!(
                "CASE WHEN t.ctid IS NOT NULL AND ({changed} OR NOT x.before OR NOT x.after) AND {now_n} AND (NOT x.before OR {now_o}) THEN
                     jsonb_build_object('column', {name}, 'before', {before}, 'wrote', {wrote}, 'now', {now}) END",
                changed = column.changed(),
                now_n = if self.table.has_key() { column.differs('n') } else { "true".into() },
                now_o = column.differs('o'),
                name = literal(&column.name),
                before = column.text(&format!("x.o{}", column.slot)),
                wrote = column.text(&format!("x.n{}", column.slot)),
                now = column.text(&column.current()),
            )
        };
        let columns = join(self.table.writable().map(three_values), ", ");
        let on = if self.table.has_key() { self.same_key() } else { "false".into() };
        format!(
            "SELECT jsonb_build_object('table', {name}, 'key', jsonb_build_object({keys}), 'reason', CASE
                     WHEN x.action = 'taken' THEN 'a unique value it would get back is in use: ' || x.detail
                     WHEN NOT x.before THEN 'the row it inserted was changed since'
                     WHEN NOT x.after THEN 'the key of the row it deleted is in use again'
                     WHEN t.ctid IS NULL THEN {gone}
                     ELSE 'the row it changed was changed since' END,
                 'columns', coalesce((SELECT jsonb_agg(c) FROM unnest(ARRAY[{columns}]::jsonb[]) c WHERE c IS NOT NULL), '[]'))::text
             FROM {net} x LEFT JOIN ONLY {table} t ON {on}
             WHERE x.round = {round} AND x.action IN ('conflict', 'taken') ORDER BY x.seq LIMIT {CONFLICTS_MAX}",
            name = literal(&self.table.name),
            keys = join(self.table.keys().map(key), ", "),
            gone = literal(if self.table.has_key() {
                "the row it changed was deleted since"
            } else {
                "the row it changed was changed or deleted since"
            }),
        )
    }

    /// Whether one of the retyped columns had a value: it cannot be put back.
    pub(crate) fn uses(&self, ids: &str, slot: i32) -> String {
        format!(
            "SELECT EXISTS (SELECT FROM loomworks.row_{} r WHERE {} AND num_nonnulls(r.o{slot}, r.n{slot}) > 0)",
            self.table.id,
            member(ids)
        )
    }

    /// How the rows that were written are found again: by their key now, or by all their values.
    fn written(&self) -> String {
        if !self.table.has_key() {
            let equal = |column: &Column| {
                format!("{} IS NOT DISTINCT FROM {}", column.current(), column.value("x", 'o'))
            };
            return join(self.table.writable().map(equal), " AND ");
        }
        self.same_key()
    }

    /// Later operations of agents that changed the same rows in the same columns.
    pub(crate) fn dependents(&self, ids: &str) -> Option<String> {
        let id = self.table.id;
        let same =
            |column: &Column| format!("coalesce(r.n{0}, r.o{0}) = coalesce(b.n{0}, b.o{0})", column.slot);
        let overlap = |column: &Column| {
            format!(
                "(record_image_ne(ROW(r.n{0}), ROW(r.o{0})) AND record_image_ne(ROW(b.n{0}), ROW(b.o{0})))",
                column.slot
            )
        };
        self.table.has_key().then(|| {
            format!(
                "SELECT DISTINCT q.id FROM loomworks.row_{id} r
                 JOIN loomworks.row_{id} b ON b.seq > r.seq AND {} AND (r.kind <> 'U' OR b.kind <> 'U' OR {})
                 JOIN loomworks.operation q ON q.xid = b.xid AND b.at BETWEEN q.at AND q.until
                 WHERE {} AND q.id <> ALL({ids}) AND q.undone_by IS NULL AND q.kind <> 'undo'",
                join(self.table.keys().map(same), " AND "),
                any(self.table.columns.iter().map(overlap)),
                member(ids)
            )
        })
    }
}
