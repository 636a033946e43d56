//! Tenants.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::civil::Date;
use loomworks_control::db::lifecycle::Update;
use loomworks_control::db::tenants::{Filter, ListKey, Tenant};
use loomworks_control::page::{Asked, Page};
use loomworks_control::tenants::{self, Wanted};
use loomworks_control::{Error, World};
use loomworks_core::ExposeSecret;
use loomworks_core::ids::JobId;
use loomworks_core::name::Label;
use loomworks_core::tenant::{TenantState, Tier};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Problem, ProblemDetails};
use crate::extract::{AsOperator, Authenticated, Body, Managing, Query, Reading};

pub(super) fn routes() -> OpenApiRouter<World> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update))
        .routes(routes!(provision))
        .routes(routes!(suspend))
        .routes(routes!(resume))
}

/// A tenant to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// 3 to 63 characters: lower-case letters, digits, hyphens; begins with a letter, does not end with a hyphen, has
    /// none in its third and fourth place, and is no name that the platform or programs use (`www`, `wpad`).
    #[schema(example = "acme")]
    pub subdomain: String,
    /// How people call it. The subdomain if left out.
    #[schema(example = "Acme GmbH")]
    pub name: Option<String>,
    /// Which app it is for. May be left out while the platform knows only one.
    pub profile: Option<String>,
    /// How the app's first user logs in, if the profile makes one; `admin` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_login: Option<String>,
    /// Only write it down. It is made when it is provisioned.
    #[serde(default)]
    pub draft: bool,
    /// `basic`, `pro` or `enterprise`; `basic` if left out.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "basic")]
    pub tier: Option<Tier>,
    /// The first day that is not paid for. It does not end if left out.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Date)]
    pub subscription_expires: Option<Date>,
    /// A JSON object of at most 16 KB, for operators only.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub settings: Option<Map<String, Value>>,
}

/// The app's first user.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct FirstUser {
    pub login: String,
    /// It is shown this once.
    pub password: String,
}

/// A tenant that is being made, or the draft of one.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantCreated {
    pub tenant: Tenant,
    /// Follow it at `/v1/jobs/{job}`. Nothing: it is a draft.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub job: Option<JobId>,
    /// The app's first user, if the profile makes one. He can log in when the job has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<FirstUser>,
}

/// What is to be changed of a tenant. What is left out stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateTenant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "pro")]
    pub tier: Option<Tier>,
    /// The first day that is not paid for. `null`: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<String>, format = Date)]
    pub subscription_expires: Option<Option<Date>>,
    /// `null`: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<i32>)]
    pub max_users: Option<Option<i32>>,
    /// `null`: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<f64>)]
    pub max_storage_gb: Option<Option<f64>>,
    /// `null`: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<i32>)]
    pub max_ai_operations_daily: Option<Option<i32>>,
    /// How many days back it can go, 1 to 3650. `null`: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_is_a_value")]
    #[schema(value_type = Option<i32>)]
    pub recovery_days: Option<Option<i32>>,
    /// A JSON object of at most 16 KB. It replaces the former one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub settings: Option<Map<String, Value>>,
}

/// Tells `null` from what is left out.
pub(super) fn null_is_a_value<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl UpdateTenant {
    fn checked(self) -> Result<Update, Error> {
        let name = self.name.map(|name| name.parse::<Label>().map_err(Error::invalid)).transpose()?;
        Ok(Update {
            name: name.map(|name| name.as_str().to_owned()),
            tier: self.tier,
            subscription_expires: self.subscription_expires.map(|date| date.map(Into::into)),
            max_users: self.max_users,
            max_storage_gb: self.max_storage_gb,
            max_ai_operations_daily: self.max_ai_operations_daily,
            recovery_days: self.recovery_days,
            settings: self.settings.map(Value::Object),
        })
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// 1 to 1000, 100 if left out.
    limit: Option<i64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only those in this state. All but `destroyed` if left out.
    state: Option<String>,
    /// Only those of this tier.
    tier: Option<String>,
    /// Only those with this in their name or subdomain.
    q: Option<String>,
}

/// Why a tenant is suspended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// Kept with the tenant, for its people and for operators.
    #[serde(default)]
    pub reason: String,
}

/// Make a tenant: its database, its roles, its address. Or write down a draft of one.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenant, responses(
    (status = 202, description = "It is being made.", body = TenantCreated),
    (status = 201, description = "The draft is written down.", body = TenantCreated),
    (status = 409, description = "There is one with that subdomain.", body = ProblemDetails),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn create(
    State(world): State<World>,
    AsOperator(operator): AsOperator,
    Body(body): Body<CreateTenant>,
) -> Result<(StatusCode, Json<TenantCreated>), Problem> {
    let hint = "for example `acme` or `acme-berlin`";
    let subdomain = body.subdomain.parse().map_err(|error| Error::invalid(error).with_hint(hint))?;
    let name = body.name.as_deref().unwrap_or(&body.subdomain).parse().map_err(Error::invalid)?;
    let fields = UpdateTenant {
        tier: body.tier,
        subscription_expires: body.subscription_expires.map(Some),
        settings: body.settings,
        ..UpdateTenant::default()
    };
    let wanted = Wanted {
        name,
        subdomain,
        profile: body.profile,
        admin_login: body.admin_login,
        draft: body.draft,
        fields: fields.checked()?,
    };
    let created = tenants::create(&world, &operator, &wanted).await?;
    let admin = created
        .admin
        .map(|admin| FirstUser { login: admin.login, password: admin.password.expose_secret().to_owned() });
    let (tenant, job) = (created.tenant, created.job);
    let status = if job.is_some() { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    Ok((status, Json(TenantCreated { tenant, job, admin })))
}

/// Have a draft made.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/provision", tag = "tenants", params(("tenant" = String, Path)),
    responses(
    (status = 202, description = "It is being made.", body = TenantCreated),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 409, description = "It is no draft.", body = ProblemDetails),
    (status = 422, description = "Its app profile is gone.", body = ProblemDetails),
))]
async fn provision(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
) -> Result<(StatusCode, Json<TenantCreated>), Problem> {
    let (tenant, job) = tenants::provision(&world, &operator, &granted).await?;
    Ok((StatusCode::ACCEPTED, Json(TenantCreated { tenant, job: Some(job), admin: None })))
}

/// The tenants you may see, by subdomain, a page at a time.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(ListQuery), responses(
    (status = 200, body = Page<Tenant>),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn list(
    State(world): State<World>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Tenant>>, Problem> {
    let asked = Asked::<ListKey>::new(query.limit, query.cursor.as_deref())?;
    let state = query.state.as_deref().map(str::parse::<TenantState>).transpose().map_err(Error::invalid)?;
    let tier = query.tier.as_deref().map(str::parse::<Tier>).transpose().map_err(Error::invalid)?;
    let filter = Filter { state, tier, text: query.q.filter(|text| !text.is_empty()) };
    Ok(Json(tenants::list(&world, &caller, &filter, &asked).await?))
}

/// One tenant, by its id or its subdomain.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Tenant),
    (status = 404, description = "There is none, or none that you may see.", body = ProblemDetails),
))]
async fn show(State(world): State<World>, Reading(granted): Reading) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::get(&world, &granted).await?))
}

/// Change a tenant's name, tier, limits, settings, or the end of its subscription.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    request_body = UpdateTenant, responses(
    (status = 200, body = Tenant),
    (status = 404, description = "There is none.", body = ProblemDetails),
    (status = 422, description = "The request is not valid.", body = ProblemDetails),
))]
async fn update(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
    Body(body): Body<UpdateTenant>,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::update(&world, &operator, &granted, &body.checked()?).await?))
}

/// Stop serving a tenant. Its data stays.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/suspend", tag = "tenants", params(("tenant" = String, Path)),
    request_body = Suspend, responses(
    (status = 200, body = Tenant),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn suspend(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
    Body(body): Body<Suspend>,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::suspend(&world, &operator, &granted, &body.reason).await?))
}

/// Serve a tenant again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/resume", tag = "tenants", params(("tenant" = String, Path)), responses(
    (status = 200, body = Tenant),
    (status = 409, description = "Its state does not allow it.", body = ProblemDetails),
))]
async fn resume(
    State(world): State<World>,
    Managing(granted): Managing,
    AsOperator(operator): AsOperator,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(tenants::resume(&world, &operator, &granted).await?))
}
