//! The OpenAPI document, completed.
//!
//! What holds for every endpoint is written here once and put to each: its id, how to show who asks, the refusals it
//! can answer, what the parts of its address mean. An endpoint's own annotations say what is special about it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The refusals that are the same everywhere: status, name, description, code, message.
const REFUSALS: [(&str, &str, &str, &str, &str); 13] = [
    (
        "400",
        "BadRequest",
        "The request cannot be read: its query, its JSON or a header.",
        "invalid_json",
        "expected value at line 1 column 1",
    ),
    (
        "401",
        "Unauthenticated",
        "Nobody has shown who asks, or the key is not good.",
        "unauthenticated",
        "this needs an API key",
    ),
    ("403", "Forbidden", "You may not do that.", "forbidden", "you may not do that"),
    (
        "404",
        "NotFound",
        "There is no such thing, or none that you may see.",
        "not_found",
        "there is no such tenant",
    ),
    (
        "405",
        "MethodNotAllowed",
        "The address does not take that method.",
        "method_not_allowed",
        "this address does not take that method",
    ),
    (
        "408",
        "BodyTooSlow",
        "The body did not come in time.",
        "body_too_slow",
        "the body did not come in time",
    ),
    (
        "409",
        "Conflict",
        "Its present state does not allow it, or the same request is being carried out.",
        "conflict",
        "a restore of this tenant is under way",
    ),
    ("413", "TooLarge", "The body is too large.", "too_large", "a body has at most 1048576 bytes"),
    (
        "415",
        "UnsupportedMediaType",
        "The body is not JSON.",
        "unsupported_media_type",
        "a body is sent as `Content-Type: application/json`",
    ),
    (
        "422",
        "Invalid",
        "The request can be read, but what it says cannot be done.",
        "invalid",
        "a subdomain starts with a lower-case letter",
    ),
    ("429", "RateLimited", "You ask too often.", "rate_limited", "that was tried too often"),
    (
        "500",
        "Internal",
        "Something went wrong on the platform's side.",
        "internal",
        "something went wrong on our side",
    ),
    ("503", "Busy", "The platform is too busy at the moment.", "busy", "something went wrong on our side"),
];

/// What the parts of addresses are.
const PATH_PARAMETERS: [(&str, &str, &str); 13] = [
    ("tenant", "The tenant, by its id or its subdomain.", "acme"),
    ("key", "The API key's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("session", "The AI session's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("operation", "The operation's number.", "17"),
    ("job", "The job's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("snapshot", "The snapshot's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("operator", "The operator's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("login", "The login's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("backup", "The backup's label.", "20261121T110948Z"),
    ("export", "The export's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("migration", "The fleet migration's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
    ("tier", "The tier's name.", "pro"),
    ("webhook", "The webhook's id.", "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a"),
];

/// What the groups of endpoints are about. A tag that is not here still works; it has no description.
const TAGS: [(&str, &str); 11] = [
    ("tenants", "Customers of the platform, each with a database and an address of its own."),
    ("API keys", "With what programs use this API."),
    ("login", "How operators come in with a browser."),
    ("operators", "The accounts of those who look after the platform."),
    ("AI sessions", "The times during which an agent may work in a tenant's database."),
    ("operations", "What agents did, and undo."),
    ("snapshots", "Moments of a tenant that can be brought back."),
    ("restores", "Bringing a tenant back to a moment."),
    ("jobs", "Long operations, step by step."),
    ("backups", "Base backups of the cluster."),
    ("status", "Health, and the platform looked over."),
];

/// Puts to every endpoint what holds for all.
pub(crate) fn complete(document: OpenApi) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let (mut used_tags, mut ids) = (Vec::new(), BTreeSet::new());
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for (path, methods) in paths.into_iter().flatten() {
        for (method, operation) in methods.as_object_mut().into_iter().flatten() {
            if METHODS.contains(&method.as_str()) {
                complete_operation(path, method, operation);
                name_operation(path, operation, &mut ids);
                used_tags.extend(operation["tags"].as_array().into_iter().flatten().cloned());
            }
        }
    }
    let described = TAGS.iter().filter(|(tag, _)| used_tags.iter().any(|used| used == tag));
    document["tags"] =
        described.map(|(name, description)| json!({ "name": name, "description": description })).collect();
    document["servers"] = json!([{ "url": "/", "description": "where this document is" }]);
    document["security"] = json!([{ "api_key": [] }, { "login": [] }]);
    document["info"]["description"] = json!(DESCRIPTION);
    let components = &mut document["components"];
    components["securitySchemes"] = json!({
        "api_key": {
            "type": "http", "scheme": "bearer", "bearerFormat": "frt_live_…",
            "description": "An API key.",
        },
        "login": {
            "type": "apiKey", "in": "cookie", "name": crate::api::auth::cookie::SESSION.name,
            "description": "Of an operator who is logged in; over TLS its name begins with `__Host-`. What changes something \
                            needs `X-Loomworks-CSRF` too.",
        },
    });
    components["responses"] = refusals();
    components["parameters"] = json!({ "IdempotencyKey": {
        "name": "Idempotency-Key", "in": "header", "required": false,
        "description": "Asked again with the same key and body within a day, the request is not carried out again but \
                        answered as the first time, with `Idempotency-Replayed: true`.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
        "example": "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a",
    }});
    document
}

const DESCRIPTION: &str = "Hosts tenants' PostgreSQL applications and gives each of them an undo button.\n\n\
    Every refusal is a problem (`application/problem+json`) with a `code` for machines, a `message` and a `hint` for \
    people, and a `request_id`. Lists come in pages: ask with `cursor` for what follows `next_cursor`. Every answer but \
    those of `/health` tells in `RateLimit` how often you may ask.";

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let open = operation["security"]
        .as_array()
        .is_some_and(|schemes| schemes.iter().all(|scheme| scheme == &json!({})));
    if path.starts_with("/health/") {
        return;
    }
    complete_parameters(operation);
    let has_path_parameter = path.contains('{');
    let has_query =
        operation["parameters"].as_array().into_iter().flatten().any(|parameter| parameter["in"] == "query");
    let has_body = operation["requestBody"].is_object();
    if method == "post" && !open {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let key = json!({ "$ref": "#/components/parameters/IdempotencyKey" });
        operation["parameters"] = parameters.into_iter().chain([key]).collect();
    }
    if has_body {
        operation["requestBody"]["required"] = json!(true);
    }
    let changes = method != "get";
    let answers = |status: &str| match status {
        // A query parameter that no endpoint takes is refused by every endpoint.
        "400" | "429" | "500" | "503" => true,
        "401" | "403" => !open,
        "404" => has_path_parameter,
        "409" => changes && !open,
        "408" | "413" => has_body || method == "post",
        "415" => has_body,
        "422" => has_body || has_query || has_path_parameter || method == "post",
        _ => false,
    };
    let mut responses = operation["responses"].as_object().cloned().unwrap_or_default();
    for (status, name, ..) in REFUSALS.iter().filter(|(status, ..)| answers(status)) {
        let common = json!({ "$ref": format!("#/components/responses/{name}") });
        let own = responses.entry(*status).or_insert_with(|| common.clone());
        // An endpoint that says why in words of its own is answered with the same thing.
        if own["description"].as_str().is_none_or(str::is_empty) {
            *own = common;
        }
    }
    for (status, answer) in &mut responses {
        if status.starts_with(['4', '5']) && answer["content"].is_object() {
            answer["content"] = json!({ "application/problem+json": problem_schema() });
        }
        if answer["$ref"].is_null() && answer["description"].as_str().is_none_or(str::is_empty) {
            answer["description"] = json!(usual_description(status));
        }
    }
    operation["responses"] = Value::Object(responses);
}

/// What an answer means where its endpoint says nothing about it.
fn usual_description(status: &str) -> &'static str {
    match status {
        "200" => "What was asked for.",
        "201" => "It was made.",
        "202" => "It is under way.",
        "204" => "It was done.",
        _ => "See the problem's `code`.",
    }
}

/// Gives an operation an id that no other has: its tag and its handler's name, and its address's last word where
/// another has those.
fn name_operation(path: &str, operation: &mut Value, ids: &mut BTreeSet<String>) {
    let word = |text: &str| text.to_lowercase().replace([' ', '-'], "_");
    let tag = word(operation["tags"][0].as_str().unwrap_or_default());
    let name = operation["operationId"].as_str().unwrap_or("ask").to_owned();
    let last = path.rsplit('/').find(|part| !part.starts_with('{')).unwrap_or_default();
    let mut id = format!("{tag}_{name}");
    if ids.contains(&id) {
        id = format!("{tag}_{}_{name}", word(last));
    }
    ids.insert(id.clone());
    operation["operationId"] = json!(id);
}

fn complete_parameters(operation: &mut Value) {
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        let known =
            PATH_PARAMETERS.iter().find(|(name, ..)| parameter["name"] == *name && parameter["in"] == "path");
        let Some((_, description, example)) = known else { continue };
        if !parameter["description"].is_string() {
            parameter["description"] = json!(description);
        }
        if !parameter["example"].is_string() {
            let number = parameter["schema"]["type"] == "integer";
            parameter["example"] =
                if number { json!(example.parse::<i64>().unwrap_or(0)) } else { json!(example) };
        }
    }
}

fn problem_schema() -> Value {
    json!({ "schema": { "$ref": "#/components/schemas/ProblemDetails" } })
}

fn refusals() -> Value {
    let refusal = |&(status, name, description, code, message): &(&str, &str, &str, &str, &str)| {
        let mut content = problem_schema();
        content["example"] = json!({
            "type": format!("urn:loomworks:problem:{code}"),
            "title": description.split([':', ',', '.']).next().unwrap_or_default(),
            "status": status.parse::<u16>().unwrap_or(0),
            "code": code,
            "message": message,
            "hint": "see what is taken here",
            "request_id": "6f1c8f0e-8f0a-4b7e-9a55-0a8f2d1c3b4a",
        });
        let mut headers = Map::new();
        if matches!(status, "409" | "429" | "503") {
            let schema = json!({ "type": "integer", "minimum": 0 });
            headers.insert("Retry-After".into(), json!({ "description": "When to ask again, in seconds, where that is known.", "schema": schema }));
        }
        let body = json!({ "description": description, "headers": headers, "content": { "application/problem+json": content } });
        (name.to_owned(), body)
    };
    Value::Object(REFUSALS.iter().map(refusal).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(move |(method, operation)| (format!("{method} {path}"), operation))
            })
            .collect()
    }

    #[test]
    fn every_endpoint_has_an_id_of_its_own_a_tag_a_summary_and_all_its_refusals() {
        let document = crate::openapi();
        let mut ids = BTreeSet::new();
        for (name, operation) in operations(&document) {
            assert!(
                ids.insert(operation["operationId"].as_str().expect("an id").to_owned()),
                "{name} has an id twice"
            );
            assert_eq!(operation["tags"].as_array().expect("tags").len(), 1, "{name}");
            assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{name} has no summary");
            if !name.contains("/health/") {
                for status in ["400", "429", "500"] {
                    assert!(operation["responses"][status].is_object(), "{name} does not say {status}");
                }
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let described = parameter["$ref"].is_string() || parameter["description"].is_string();
                assert!(described, "{name}: {parameter} is not described");
            }
        }
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = crate::openapi();
        let text = document.to_string();
        for part in text.split("\"#/").skip(1) {
            let pointer = format!("/{}", part.split('"').next().unwrap());
            assert!(document.pointer(&pointer).is_some(), "{pointer}");
        }
    }
}
