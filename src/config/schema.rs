//! The rules language as a JSON Schema (draft 7, which editors know best), made of the table of keys: for completion and
//! for mistakes to be seen while typing. What depends on more than one key is told by `ratelimitd check`.

use serde_json::{Map, Value, json};

use super::keys::{KEYS, Key, Level, Shape};
use super::yaml;
use crate::hit::FailurePolicy;
use crate::limit::{Algorithm, Limit, Window};

/// The schema, as `config/rules.schema.json` has it.
pub(super) fn schema() -> String {
    let definitions: Map<String, Value> =
        [Level::Rule, Level::Limit, Level::Replaced].into_iter().map(|level| (name(level).to_owned(), map(level))).collect();
    let mut root = map(Level::File);
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["title"] = json!("ratelimitd rules");
    root["definitions"] = Value::Object(definitions);
    format!("{root:#}\n")
}

fn name(level: Level) -> &'static str {
    match level {
        Level::File => "file",
        Level::Rule => "rule",
        Level::Limit => "limit",
        Level::Replaced => "replaced",
    }
}

fn map(level: Level) -> Value {
    let known = |key: &&Key| key.levels.contains(&level);
    let property = |key: &Key| {
        let mut property = value(key.shape);
        property["description"] = json!(key.about);
        (key.name.to_owned(), property)
    };
    let properties: Map<String, Value> = KEYS.iter().filter(known).map(property).collect();
    let mut map = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    match level {
        Level::File => map["required"] = json!(["domain"]),
        Level::Rule => map["required"] = json!(["key"]),
        Level::Replaced => map["required"] = json!(["name"]),
        Level::Limit => {
            let forms: [&[&str]; 3] = [&["unit", "requests_per_unit"], &["limit", "window"], &["unlimited"]];
            map["anyOf"] = forms.iter().map(|keys| json!({ "required": keys })).collect();
        }
    }
    map
}

/// A key without a value is as good as absent, so every one may be null.
fn value(shape: Shape) -> Value {
    let one = |level| json!({ "$ref": format!("#/definitions/{}", name(level)) });
    let list = |level, least: usize| json!({ "type": "array", "items": one(level), "minItems": least });
    let nothing = json!({ "type": "null" });
    match shape {
        // A bare number or boolean is its text as written.
        Shape::Text => json!({ "type": ["string", "number", "boolean", "null"] }),
        Shape::Texts => json!({ "type": ["array", "null"], "items": { "type": ["string", "number", "boolean"] } }),
        // YAML 1.1's other words for them, which an editor takes for text.
        Shape::Flag => {
            let words = yaml::TRUE.into_iter().chain(yaml::FALSE).map(|word| json!(word));
            words_or_null([json!(true), json!(false)].into_iter().chain(words))
        }
        Shape::Number(least, most) => json!({
            "anyOf": [{ "type": "integer", "minimum": least, "maximum": most }, { "type": "string", "pattern": "^\\+?[0-9][0-9_a-fxobA-FXOB]*$" }, nothing]
        }),
        Shape::Duration => json!({ "type": ["string", "null"], "pattern": "^([0-9]+(us|µs|ms|s|m|h|d|w))+$" }),
        Shape::Policy => words_or_null(FailurePolicy::ALL.into_iter().map(|policy| json!(policy.as_str()))),
        Shape::Algorithm => words_or_null(Algorithm::ALL.into_iter().map(|algorithm| json!(algorithm.as_str()))),
        Shape::Lease => json!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": Limit::MOST },
                { "type": ["string", "null"], "pattern": "^([0-9]+|[0-9]*\\.?[0-9]+ *%)$" },
            ],
        }),
        Shape::Unit => words_or_null(Window::UNITS.into_iter().flat_map(|(unit, _)| {
            let capitalized = unit[..1].to_uppercase() + &unit[1..];
            [json!(unit), json!(capitalized), json!(unit.to_uppercase())]
        })),
        Shape::Maps(level) => json!({ "anyOf": [list(level, 0), nothing] }),
        Shape::MapOrMaps(level) => json!({ "anyOf": [one(level), list(level, 1), nothing] }),
        Shape::Anything => json!({ "type": ["object", "null"] }),
    }
}

fn words_or_null(words: impl Iterator<Item = Value>) -> Value {
    json!({ "enum": words.chain([Value::Null]).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/rules.schema.json");
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == super::schema(), "write it anew: ratelimitd check --schema > config/rules.schema.json");
    }
}
