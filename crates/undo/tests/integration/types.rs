//! Values of all types come back in every byte, whatever the agent has set.

use crate::tenant::Tenant;

const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"');
    CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
    CREATE DOMAIN moods AS mood[];
    CREATE TYPE point3 AS (x float8, y numeric, label text, at timestamptz);
    CREATE TYPE span AS RANGE (subtype = float8);
    CREATE TABLE v (id int PRIMARY KEY, b bool, i2 int2, i8 int8, n numeric, n2 numeric(10,3), f4 float4, f8 float8,
        m money, t text, vc varchar(20), c char(5), by bytea, d date, ts timestamp, tz timestamptz, tm time, tmz timetz,
        iv interval, u uuid, j json, jb jsonb, x xml, ip inet, ci cidr, mac macaddr, bi bit(5), vb varbit, p point, bx box,
        pa path, ts_v tsvector, ts_q tsquery, r int4range, mr nummultirange, tzr tstzrange, ia int[], ta text[][],
        na numeric[], l pg_lsn, o oid, rc regclass, ch "char", nm name, jp jsonpath,
        e mood, ea mood[], dn positive, dm moods, co point3, ca point3[], us span);
    INSERT INTO v (id) VALUES (1);
    INSERT INTO v VALUES (2, true, -32768, 9223372036854775807, 'NaN', 1.500, '-0', '-0', 1234.56, E'a\n\\"''é', 'x', 'y', '\x00ff5c',
        'infinity', '-infinity', '2024-02-29 12:34:56.789+13', '23:59:60', '12:00:00.5+05:30',
        '1 year -2 mons 3 days -04:05:06.789', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": 1,   "a": -0.0 , "n":null}',
        '{"a": 1.500, "b": [null, "\u00e9"]}', '<a b="1"> x </a>', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03',
        '10101', '1101', '(-0,1e-300)', '((1,2),(3,4))', '[(0,0),(1,1)]', 'a:1A b:2', 'a & !b', 'empty', '{[1,2),(3,4]}',
        '[2020-01-01 00:00+00,infinity)', '[5:7]={1,NULL,3}', '{{a,NULL},{"NULL",""}}', '{NaN,-0.00,1e10,Infinity}', '16/B374D848', 42, 'pg_class',
        'z', 'name', '$.a[*] ? (@ > 1)', 'it''s "fine"', '{sad,NULL,"it''s \"fine\""}', 0.10, '{ok}',
        ('-0', 1.00, 'a,"b', '2024-07-01 00:00:00.123456+02'), ARRAY[(NULL, NULL, NULL, NULL)::point3, NULL, ('NaN', 'NaN', '', '-infinity')::point3],
        '[0.1,0.30000000000000004)');
    INSERT INTO v (id, co, t, n, f8, jb, ia, iv, c) VALUES (3, (NULL, NULL, NULL, NULL), '', 0.000, 'Infinity', 'null', '{}', '0', ''),
        (4, (0.1, 1e-20, NULL, NULL), ' ', 1e100, 5e-324, '"x"', '{{1},{2}}', '-1 sec', ' a');"#;

/// What an agent may set so that values print otherwise.
const HOSTILE: &str = "
    SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'postgres_verbose'; SET extra_float_digits = -15; SET TimeZone = 'Asia/Kathmandu';
    SET bytea_output = 'escape'; SET xmloption = content; SET lc_monetary = 'C'; SET quote_all_identifiers = on;
    SET transform_null_equals = on; SET array_nulls = off; SET xmlbinary = hex; SET search_path = pg_temp, public;
    SET standard_conforming_strings = off; SET backslash_quote = on; SET default_transaction_isolation = 'serializable';";

#[tokio::test]
async fn every_value_comes_back_in_every_byte() {
    let tenant = Tenant::with(TYPES).await;
    let before = tenant.bytes("v").await;
    let columns = tenant
        .value(
            "SELECT string_agg(format('%I = DEFAULT', attname), ', ') FROM pg_attribute
             WHERE attrelid = 'v'::regclass AND attnum > 1 AND NOT attisdropped",
        )
        .await;
    for statement in [
        "DELETE FROM v".to_owned(),
        format!("UPDATE v SET {columns}"),
        "TRUNCATE v".to_owned(),
        "UPDATE v SET id = id + 10".to_owned(),
        "UPDATE v SET f8 = 0, f4 = 0, n = 1.5, n2 = 2, t = lower(t), j = '{}', e = 'ok', co = NULL, us = NULL, ca = '{}'".to_owned(),
        "UPDATE v SET f8 = 0, na = '{NaN,0.0,1e10,Infinity}', jb = '{\"a\": 1.5}' WHERE id = 2".to_owned(),
    ] {
        let operation = tenant.by_agent(&format!("{HOSTILE}\n{statement}")).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.bytes("v").await, before, "{statement}");
    }
}

#[tokio::test]
async fn minus_zero_is_not_zero() {
    let tenant =
        Tenant::with("CREATE TABLE t (id int PRIMARY KEY, f float8); INSERT INTO t VALUES (1, '-0')").await;
    let operation = tenant.by_agent("UPDATE t SET f = 0").await;
    tenant.undo(operation).await;
    assert_eq!(tenant.rows("t").await, "(1,-0)");
}

#[tokio::test]
async fn large_values_come_back() {
    let tenant = Tenant::with(
        "CREATE TABLE big (id int PRIMARY KEY, t text, b bytea, n int);
         INSERT INTO big SELECT 1, string_agg(md5(g::text), ''), decode(string_agg(md5(g::text), ''), 'hex'), 1 FROM generate_series(1, 40000) g;
         INSERT INTO big VALUES (2, repeat('x', 1000000), '', 2);",
    )
    .await;
    let digest = "SELECT string_agg(md5(t) || md5(b) || n, ' ' ORDER BY id) FROM big";
    let before = tenant.value(digest).await;
    for statement in ["UPDATE big SET n = 0", "UPDATE big SET t = 'short'", "DELETE FROM big"] {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.value(digest).await, before, "{statement}");
    }
}

#[tokio::test]
async fn keys_of_types_somebody_made_are_found() {
    let tenant = Tenant::with(
        "CREATE TYPE colour AS ENUM ('red', 'green'); CREATE DOMAIN code AS text CHECK (VALUE <> '');
         CREATE TABLE paint (colour colour, code code, v int, PRIMARY KEY (colour, code));
         CREATE TABLE tin (id int PRIMARY KEY, colour colour, code code, FOREIGN KEY (colour, code) REFERENCES paint ON DELETE CASCADE);
         INSERT INTO paint VALUES ('red', 'a', 1), ('green', 'b', 2); INSERT INTO tin VALUES (1, 'red', 'a')",
    )
    .await;
    for statement in
        ["UPDATE paint SET v = 3", "DELETE FROM paint", "UPDATE paint SET code = 'c' WHERE colour = 'green'"]
    {
        let operation = tenant.by_agent(statement).await;
        tenant.undo(operation).await;
        assert_eq!(tenant.rows("paint").await, "(green,b,2) (red,a,1)", "{statement}");
        assert_eq!(tenant.rows("tin").await, "(1,red,a)");
    }
}
