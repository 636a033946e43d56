//! What can be asked of the ERP, and the statement that answers it.

use std::error::Error;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::databases::{DatabaseError, Databases};
use crate::page;

type Shared = State<Arc<Databases>>;

pub(crate) fn router(databases: Arc<Databases>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/health", get(|| async { "ok\n" }))
        .route("/api/summary", get(summary))
        .route("/api/contacts", get(contacts))
        .route("/api/contacts/{id}", get(contact).post(move_contact))
        .route("/api/activities", post(add_activity).get(activities))
        .with_state(databases)
}

/// Whom a request is for, as its headers say.
struct Tenant {
    name: String,
    database: String,
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let database = header("x-loomworks-database").filter(|name| !name.is_empty());
        let database =
            database.ok_or(Failure::Invalid("the header X-Loomworks-Database is missing"))?.to_owned();
        let name = header("x-loomworks-tenant").unwrap_or(&database).to_owned();
        Ok(Self { name, database })
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("there is no such contact")]
    NoContact,
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, code, message) = match &self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid", self.to_string()),
            Self::NoContact => (StatusCode::NOT_FOUND, "not_found", self.to_string()),
            Self::Database(DatabaseError::Unknown(_)) => {
                (StatusCode::NOT_FOUND, "no_such_database", self.to_string())
            }
            Self::Database(DatabaseError::Sql(sqlx::Error::Database(error)))
                if error.is_foreign_key_violation() =>
            {
                (StatusCode::NOT_FOUND, "not_found", Self::NoContact.to_string())
            }
            Self::Database(error) => {
                tracing::error!(%error, cause = error.source().map(tracing::field::display), "a request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "something went wrong".to_owned())
            }
        };
        (status, Json(Complaint { code, message })).into_response()
    }
}

#[derive(Serialize)]
struct Complaint {
    code: &'static str,
    message: String,
}

#[derive(Serialize, sqlx::FromRow)]
pub(crate) struct Counts {
    pub(crate) companies: i64,
    pub(crate) contacts: i64,
    pub(crate) products: i64,
    pub(crate) orders: i64,
    pub(crate) order_lines: i64,
    pub(crate) invoices: i64,
    pub(crate) activities: i64,
}

const COUNTS: &str = "
    SELECT (SELECT count(*) FROM companies) AS companies, (SELECT count(*) FROM contacts) AS contacts,
           (SELECT count(*) FROM products) AS products, (SELECT count(*) FROM orders) AS orders,
           (SELECT count(*) FROM order_lines) AS order_lines, (SELECT count(*) FROM invoices) AS invoices,
           (SELECT count(*) FROM activities) AS activities";

#[derive(sqlx::FromRow)]
pub(crate) struct Order {
    pub(crate) id: i32,
    pub(crate) contact: String,
    pub(crate) company: String,
    pub(crate) status: String,
    pub(crate) ordered_at: String,
    pub(crate) total: String,
}

const LAST_ORDERS: &str = "
    SELECT o.id, c.name AS contact, k.name AS company, o.status,
           to_char(o.ordered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS ordered_at,
           coalesce((SELECT sum(line_total) FROM order_lines WHERE order_id = o.id), 0)::text AS total
    FROM orders AS o JOIN contacts AS c ON c.id = o.contact_id JOIN companies AS k ON k.id = c.company_id
    ORDER BY o.id DESC LIMIT 10";

async fn home(State(databases): Shared, tenant: Tenant) -> Result<Html<String>, Failure> {
    let counts: Counts =
        databases.run(&tenant.database, async |pool| sqlx::query_as(COUNTS).fetch_one(&pool).await).await?;
    let orders: Vec<Order> = databases
        .run(&tenant.database, async |pool| sqlx::query_as(LAST_ORDERS).fetch_all(&pool).await)
        .await?;
    Ok(Html(page::home(&tenant.name, &counts, &orders)))
}

#[derive(Serialize)]
struct Summary {
    tenant: String,
    database: String,
    counts: Counts,
}

async fn summary(State(databases): Shared, tenant: Tenant) -> Result<Json<Summary>, Failure> {
    let counts =
        databases.run(&tenant.database, async |pool| sqlx::query_as(COUNTS).fetch_one(&pool).await).await?;
    Ok(Json(Summary { tenant: tenant.name, database: tenant.database, counts }))
}

#[derive(Serialize, sqlx::FromRow)]
struct Contact {
    id: i32,
    company_id: i32,
    name: String,
    email: String,
    phone: String,
    city: String,
}

#[derive(Deserialize)]
struct Page {
    limit: Option<i64>,
    after: Option<i32>,
}

async fn contacts(
    State(databases): Shared,
    tenant: Tenant,
    Query(Page { limit, after }): Query<Page>,
) -> Result<Json<Vec<Contact>>, Failure> {
    let work = async |pool| {
        sqlx::query_as(
            "SELECT id, company_id, name, email, phone, city FROM contacts WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(after.unwrap_or(0))
        .bind(limit.unwrap_or(50).clamp(1, 1000))
        .fetch_all(&pool)
        .await
    };
    Ok(Json(databases.run(&tenant.database, work).await?))
}

async fn contact(
    State(databases): Shared,
    tenant: Tenant,
    Path(id): Path<i32>,
) -> Result<Json<Contact>, Failure> {
    let work = async |pool| {
        sqlx::query_as("SELECT id, company_id, name, email, phone, city FROM contacts WHERE id = $1")
            .bind(id)
            .fetch_optional(&pool)
            .await
    };
    databases.run(&tenant.database, work).await?.map(Json).ok_or(Failure::NoContact)
}

#[derive(Deserialize)]
struct Move {
    city: String,
}

async fn move_contact(
    State(databases): Shared,
    tenant: Tenant,
    Path(id): Path<i32>,
    Json(Move { city }): Json<Move>,
) -> Result<Json<Contact>, Failure> {
    if city.trim().is_empty() || city.len() > 200 {
        return Err(Failure::Invalid("a city has 1 to 200 bytes"));
    }
    let work = async |pool| {
        sqlx::query_as(
            "UPDATE contacts SET city = $2 WHERE id = $1 RETURNING id, company_id, name, email, phone, city",
        )
        .bind(id)
        .bind(&city)
        .fetch_optional(&pool)
        .await
    };
    databases.run(&tenant.database, work).await?.map(Json).ok_or(Failure::NoContact)
}

#[derive(Serialize, Deserialize)]
struct Activity {
    client_ref: String,
    contact_id: i32,
    note: String,
}

async fn add_activity(
    State(databases): Shared,
    tenant: Tenant,
    Json(activity): Json<Activity>,
) -> Result<(StatusCode, Json<Activity>), Failure> {
    if activity.client_ref.is_empty() || activity.client_ref.len() > 200 {
        return Err(Failure::Invalid("a client_ref has 1 to 200 bytes"));
    }
    let work = async |pool| {
        sqlx::query(
            "INSERT INTO activities (client_ref, contact_id, note) VALUES ($1, $2, $3)
             ON CONFLICT (client_ref) DO NOTHING",
        )
        .bind(&activity.client_ref)
        .bind(activity.contact_id)
        .bind(&activity.note)
        .execute(&pool)
        .await
    };
    databases.run(&tenant.database, work).await?;
    Ok((StatusCode::CREATED, Json(activity)))
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    prefix: String,
    limit: Option<i64>,
}

async fn activities(
    State(databases): Shared,
    tenant: Tenant,
    Query(Search { prefix, limit }): Query<Search>,
) -> Result<Json<Vec<String>>, Failure> {
    let work = async |pool| {
        sqlx::query_scalar(
            "SELECT client_ref FROM activities WHERE starts_with(client_ref, $1) ORDER BY client_ref LIMIT $2",
        )
        .bind(&prefix)
        .bind(limit.unwrap_or(100).clamp(1, 100_000))
        .fetch_all(&pool)
        .await
    };
    Ok(Json(databases.run(&tenant.database, work).await?))
}
