//! A tenant that was copied is like one that was filled, whether it waited in the pool or not.

use loomworks_control::World;
use loomworks_control::db::lifecycle::Update;
use loomworks_control::db::templates;
use loomworks_control::retirement;
use loomworks_control::tenants::{self, Wanted};
use loomworks_core::ids::TenantId;
use loomworks_postgres::{databases, roles, sql};
use loomworks_undo::{Limits, Users, install, set_limits};
use sqlx::{Connection, PgConnection, Row};

use crate::endings::destroy;
use crate::world::{Tenant, ended, granted, operator, until, waiting, with_world};

/// Everything in a database that says who owns, may or guards what, and what is in it. The names of its roles and its
/// own are left out.
async fn catalogue(connection: &mut PgConnection, own: &[&str]) -> Vec<String> {
    let queries = [
        "SELECT format('schema %s of %s: %s', nspname, nspowner::regrole, nspacl) FROM pg_namespace",
        "SELECT format('%s %s of %s: %s %s %s', relkind, oid::regclass, relowner::regrole, relacl, relrowsecurity, reloptions)
         FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_toast'",
        "SELECT format('function %s of %s: %s %s %s', oid::regprocedure, proowner::regrole, proacl, prosecdef, proconfig) FROM pg_proc",
        "SELECT format('type %s of %s: %s', oid::regtype, typowner::regrole, typacl) FROM pg_type",
        "SELECT format('trigger %s on %s: %s %s', tgname, tgrelid::regclass, tgenabled, pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal",
        "SELECT format('event trigger %s of %s: %s %s', evtname, evtowner::regrole, evtenabled, evtfoid::regproc) FROM pg_event_trigger",
        "SELECT format('policy %s on %s: %s', polname, polrelid::regclass, polroles::regrole[]) FROM pg_policy",
        "SELECT format('default of %s in %s: %s %s', defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, (
             SELECT array_agg(format('%s %s %s', CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type, is_grantable) ORDER BY grantee <> 0, grantee::regrole::text = 'loomworks_undo', privilege_type, is_grantable)
             FROM aclexplode(defaclacl))) FROM pg_default_acl",
        "SELECT format('constraint %s on %s: %s', conname, conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint",
        "SELECT format('recorded %s: %s', name, oid = to_regclass(name)) FROM loomworks.relation",
        "SELECT format('recording of %s is as noted: %s', r.name, r.fingerprint = f.now) FROM loomworks.relation r LEFT JOIN loomworks.fingerprint f ON f.relation = r.oid",
        "SELECT format('column %s', a) FROM loomworks.attribute a",
        "SELECT format('item %s', i) FROM public.items i",
        "SELECT format('database of %s, %s: %s', datdba::regrole, datconnlimit, (
             SELECT array_agg(format('%s %s', CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type) ORDER BY grantee::regrole::text IN ('postgres'), grantee::regrole::text = 'loomworks_undo', privilege_type)
             FROM aclexplode(datacl))) FROM pg_database WHERE datname = current_database()",
    ];
    let mut found = Vec::new();
    for query in queries {
        let rows = sqlx::query(query).fetch_all(&mut *connection).await.expect(query);
        for row in rows {
            let mut line = row.get::<Option<String>, _>(0).unwrap_or_default();
            for (n, name) in own.iter().enumerate() {
                line = line.replace(name, ["OWNER", "DATABASE"][n]);
            }
            found.push(line);
        }
    }
    found.sort();
    found
}

/// A database filled as the owner himself would, without any template.
async fn filled(world: &World) -> (String, String) {
    let (name, owner) = ("filled_by_hand".to_owned(), "filled_by_hand_owner".to_owned());
    let mut admin = world.cluster.connect("postgres").await.expect("connect");
    roles::ensure_group(&mut admin, &owner).await.expect("a role");
    databases::ensure(&mut admin, &name, &owner).await.expect("a database");
    let mut inside = world.cluster.connect(&name).await.expect("connect");
    databases::close_public_schema(&mut inside, &owner).await.expect("close");
    let profile = &world.profiles["shop"];
    let script = format!("SET ROLE {}; {}; RESET ROLE", sql::ident(&owner), profile.init_sql[0]);
    sql::run(&mut inside, format!("SET search_path = public; {script}")).await.expect("fill");
    inside.close().await.expect("close");
    let mut inside = world.cluster.connect(&name).await.expect("connect");
    install(&mut inside, &owner).await.expect("install");
    let marker = include_str!("../../src/fleet/marker.sql");
    sql::run(&mut inside, marker.to_owned()).await.expect("let fleet migrations be marked");
    let limits = Limits {
        users: Some(Users { table: "public.users", active: "active" }),
        max_users: Some(10),
        max_ai_operations_daily: Some(100),
    };
    set_limits(&mut inside, &limits).await.expect("limits");
    (name, owner)
}

#[test]
fn a_copy_is_like_a_database_that_was_filled() {
    with_world(async |world| {
        let (database, owner) = filled(&world).await;
        let mut by_hand = world.cluster.connect(&database).await.expect("connect");
        let wanted = catalogue(&mut by_hand, &[&owner, &database]).await;
        assert!(wanted.iter().any(|line| line.contains("!loomworks_users_added")), "{wanted:#?}");
        until("the pool to be full", async || waiting(&world).await == 2).await;
        for profile in ["shop", "cold"] {
            let tenant = Tenant::new(&world, profile).await;
            let owner = format!("lwt_{}_owner", tenant.id.short());
            let found = catalogue(&mut tenant.admin(&world).await, &[&owner, &tenant.name]).await;
            for line in &wanted {
                assert!(found.contains(line), "{profile}: missing: {line}");
            }
            for line in &found {
                assert!(wanted.contains(line), "{profile}: too much: {line}");
            }
            let secret: String = sqlx::query_scalar("SELECT secret FROM public.users WHERE login = 'admin'")
                .fetch_one(&mut tenant.admin(&world).await)
                .await
                .expect("the first user");
            assert_eq!(secret, tenant.admin_password);
            // Nobody needs to know it any more.
            let mut mgmt = world.db.platform.acquire().await.expect("connect");
            assert!(templates::wanted_admin(&mut mgmt, tenant.id).await.expect("look").is_none());
        }
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        let shared: Vec<String> = sqlx::query_scalar(
            "SELECT format('%s %s', d.datname, s.refobjid::regrole) FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
             WHERE refobjid::regrole::text ~ '^lw_(template|pool|build)_' AND d.datname !~ '^lw_(template|pool)_'",
        )
        .fetch_all(&mut admin)
        .await
        .expect("look");
        assert!(shared.is_empty(), "tenants depend on the template's roles: {shared:?}");
    });
}

#[test]
fn tenants_who_come_at_once_get_a_database_each_and_the_pool_is_filled_again() {
    with_world(async |world| {
        let tenants: Vec<_> = (0..5)
            .map(|_| {
                let world = world.clone();
                tokio::spawn(async move { Tenant::new(&world, "shop").await })
            })
            .collect();
        let mut oids = std::collections::BTreeSet::new();
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        for tenant in tenants {
            let tenant = tenant.await.expect("a tenant");
            oids.extend(databases::oid(&mut admin, &tenant.name).await.expect("look"));
        }
        assert_eq!(oids.len(), 5);
        until("the pool to be full", async || waiting(&world).await == 2).await;
    });
}

#[test]
fn a_profile_that_does_not_run_says_why_and_leaves_a_tenant_that_can_be_removed() {
    with_world(async |world| {
        let name = format!("t{}", TenantId::random().short());
        let wanted = Wanted {
            name: name.parse().expect("a name"),
            subdomain: name.parse().expect("a subdomain"),
            profile: Some("broken".into()),
            admin_login: None,
            draft: false,
            fields: Update::default(),
        };
        let created = tenants::create(&world, &operator(), &wanted).await.expect("create");
        let job = ended(&world, created.job.expect("a job")).await;
        assert_eq!(job.state, "failed");
        let error = job.error.expect("an error");
        assert!(error.contains("column \"nothing\" does not exist"), "{error}");
        assert!(job.hint.expect("a hint").contains("correct the profile"));
        let id = created.tenant.id;
        let wrong =
            retirement::destroy(&world, &operator(), &granted(&world, id).await, "other", false).await;
        assert!(wrong.is_err(), "it is confirmed");
        let plan = retirement::destroy_plan(&world, &operator(), &granted(&world, id).await).await;
        assert!(plan.expect("a plan").allowed, "there is nothing to retain");
        destroy(&world, id, &name).await;
        let login = Wanted {
            admin_login: Some("root".into()),
            subdomain: "another-one".parse().expect("a subdomain"),
            ..wanted
        };
        assert!(tenants::create(&world, &operator(), &login).await.is_err(), "no first user is made there");
    });
}

#[test]
fn what_nobody_waits_for_is_dropped() {
    with_world(async |world| {
        let mut admin = world.cluster.connect("postgres").await.expect("connect");
        let left = ["lw_template_gone_000000000000", "lw_pool_000000000000", "lw_pool_111111111111"];
        let mut mgmt = world.db.platform.acquire().await.expect("connect");
        templates::begin(&mut mgmt, left[0], "gone").await.expect("note");
        templates::begin_copy(&mut mgmt, left[1], left[0]).await.expect("note");
        for name in left {
            roles::ensure_group(&mut admin, name).await.expect("a role");
            databases::ensure_closed(&mut admin, name).await.expect("a database");
        }
        until("them to be gone", async || {
            let mut gone = true;
            for name in left {
                gone &= databases::oid(&mut admin, name).await.expect("look").is_none();
                gone &= !roles::exists(&mut admin, name).await.expect("look");
            }
            gone
        })
        .await;
        let copies = templates::all_copies(&mut mgmt).await.expect("look");
        assert!(!copies.iter().any(|copy| left.contains(&copy.name.as_str())), "{copies:?}");
    });
}
