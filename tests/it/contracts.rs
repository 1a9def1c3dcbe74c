//! The JSON that `flywheelctl` prints has the form of docs/schema.json, with every field that is
//! documented there and no other.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::daemon::{Daemon, until};

fn schema() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Compares a value with a schema. Only the keywords that docs/schema.json uses are understood;
/// another one is an error, so that none is without effect.
fn check(schema: &Value, rule: &Value, value: &Value, place: &str, wrong: &mut Vec<String>) {
    for keyword in rule.as_object().unwrap().keys() {
        let known = ["type", "description", "properties", "required", "items", "$ref"];
        assert!(known.contains(&keyword.as_str()), "{place}: the keyword {keyword} is not checked");
    }
    if let Some(name) = rule["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").unwrap();
        return check(schema, &schema["$defs"][name], value, place, wrong);
    }
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed: Vec<&str> = match &rule["type"] {
        Value::Array(types) => types.iter().map(|t| t.as_str().unwrap()).collect(),
        one => vec![one.as_str().unwrap()],
    };
    if !allowed.contains(&actual) {
        wrong.push(format!("{place} is {actual}, not {allowed:?}"));
    }
    if let (Value::Object(fields), Some(properties)) = (value, rule["properties"].as_object()) {
        for name in rule["required"].as_array().unwrap() {
            if !fields.contains_key(name.as_str().unwrap()) {
                wrong.push(format!("{place}.{} is missing", name.as_str().unwrap()));
            }
        }
        for (name, field) in fields {
            match properties.get(name) {
                Some(rule) => check(schema, rule, field, &format!("{place}.{name}"), wrong),
                None => wrong.push(format!("docs/schema.json does not have {place}.{name}")),
            }
        }
    }
    for item in value.as_array().into_iter().flatten().filter(|_| rule.get("items").is_some()) {
        check(schema, &rule["items"], item, &format!("{place}[]"), wrong);
    }
}

/// What differs between a value and a definition of the schema.
fn differences(definition: &str, value: &Value) -> Vec<String> {
    let schema = schema();
    let mut wrong = Vec::new();
    check(&schema, &schema["$defs"][definition], value, definition, &mut wrong);
    wrong
}

#[track_caller]
fn fits(definition: &str, value: &Value) {
    let wrong = differences(definition, value);
    assert!(wrong.is_empty(), "{wrong:#?}\n{value:#}");
}

#[test]
fn json_has_the_form_of_the_schema() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&["--label", "contract"]);
    let path = daemon.nix.make("contracted");
    until("the path is in the cache", || daemon.main().has(&path));
    fits("status", &daemon.status());
    let open = daemon.json(&["session", "list"]);
    fits("session", &open[0]);
    let summary = daemon.end(&session, &["--push", &path]);
    fits("summary", &summary);
    assert_eq!(summary["outcome"], "complete");
    let shown = daemon.json(&["session", "show", &session]);
    fits("session_detail", &shown);
    assert!(!shown["paths"].as_array().unwrap().is_empty(), "{shown}");
    let why = daemon.json(&["why", &path]);
    fits("why", &why);
    assert!(!why["paths"][0]["pushes"].as_array().unwrap().is_empty(), "{why}");
    fits("summary", &daemon.json(&["flush"]));

    let doctor = daemon.ctl(&["--json", "doctor"]);
    fits("doctor", &doctor.json());
    assert!(doctor.json()["findings"].as_array().unwrap().len() > 5, "{doctor:?}");
    let root = daemon.nix.path().join("host").display().to_string();
    for dry_run in [&["--dry-run"][..], &[]] {
        let setup = [&["setup", "--built-in", "--yes", "--root", &root], dry_run].concat();
        fits("setup", &daemon.json(&setup));
    }

    let absent = daemon.ctl(&["--json", "session", "show", "nobody"]);
    fits("error", &absent.json());
    assert_eq!((absent.code, &absent.json()["outcome"]), (2, &"not_found".into()));
}

#[test]
fn a_difference_is_found() {
    let good = serde_json::json!({"outcome": "busy", "error": "why"});
    assert!(differences("error", &good).is_empty());
    let wrong = differences("error", &serde_json::json!({"outcome": 1, "more": true}));
    assert_eq!(
        wrong,
        [
            "error.error is missing",
            "docs/schema.json does not have error.more",
            "error.outcome is integer, not [\"string\"]"
        ]
    );
}
