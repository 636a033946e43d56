//! Giving the content of a copied database to another role.

use sqlx::{Connection, PgConnection};

use crate::roles;
use crate::sql::{literal, run};

/// What `REASSIGN OWNED` leaves out: default privileges are asked for anew in the other role's name, policies name it
/// instead. `DROP OWNED` then takes away what is left of the first role.
const REST: &str = r#"
DO $hand_over$
DECLARE
    former CONSTANT oid := (SELECT oid FROM pg_roles WHERE rolname = current_setting('loomworks.former'));
    heir CONSTANT oid := (SELECT oid FROM pg_roles WHERE rolname = current_setting('loomworks.heir'));
    default_acl record;
    granted record;
    policy record;
    kind text;
    place text;
    command text;
BEGIN
    EXECUTE format('REASSIGN OWNED BY %s TO %s', former::regrole, heir::regrole);
    FOR default_acl IN SELECT * FROM pg_default_acl WHERE defaclrole = former LOOP
        kind := CASE default_acl.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' END;
        place := CASE WHEN default_acl.defaclnamespace = 0 THEN '' ELSE format('IN SCHEMA %s', default_acl.defaclnamespace::regnamespace) END;
        command := format('ALTER DEFAULT PRIVILEGES FOR ROLE %s %s', heir::regrole, place);
        -- Without a schema the list is the whole of what is granted, with one it is what is added.
        IF default_acl.defaclnamespace = 0 THEN
            EXECUTE format('%s REVOKE ALL ON %s FROM PUBLIC', command, kind);
            EXECUTE format('%s REVOKE ALL ON %s FROM %s', command, kind, heir::regrole);
        END IF;
        FOR granted IN SELECT * FROM aclexplode(default_acl.defaclacl) LOOP
            EXECUTE format('%s GRANT %s ON %s TO %s %s', command, granted.privilege_type, kind,
                CASE granted.grantee WHEN 0 THEN 'PUBLIC' WHEN former THEN heir::regrole::text
                     ELSE granted.grantee::regrole::text END,
                CASE WHEN granted.is_grantable THEN 'WITH GRANT OPTION' ELSE '' END);
        END LOOP;
    END LOOP;
    FOR policy IN SELECT polname, polrelid, polroles FROM pg_policy WHERE former = ANY(polroles) LOOP
        EXECUTE format('ALTER POLICY %I ON %s TO %s', policy.polname, policy.polrelid::regclass,
            (SELECT string_agg(CASE named WHEN 0 THEN 'PUBLIC' WHEN former THEN heir::regrole::text
                               ELSE named::regrole::text END, ', ') FROM unnest(policy.polroles) named));
    END LOOP;
    EXECUTE format('DROP OWNED BY %s', former::regrole);
END $hand_over$"#;

/// Gives everything that is `former`'s in the connected database to `heir`.
///
/// What it owns, what it may, what it grants to things that are yet to come: all of it or nothing; `Ok` when there is no
/// such role or it has nothing.
///
/// To be run by a superuser. `former` must have no rights outside of this database that are still wanted.
pub async fn hand_over(connection: &mut PgConnection, former: &str, heir: &str) -> sqlx::Result<()> {
    if !roles::exists(connection, former).await? {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    let names = format!(
        "SET LOCAL loomworks.former = {}; SET LOCAL loomworks.heir = {};",
        literal(former),
        literal(heir)
    );
    run(&mut transaction, names + REST).await?;
    transaction.commit().await
}
