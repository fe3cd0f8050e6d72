//! JSON schemas as the TypeScript types that gpt-oss was trained to read.
//!
//! The layout, with its uneven indents and doubled comments, is openai-harmony's: a model sees these
//! characters, so nothing is tidied.

use std::fmt::Write as _;

use serde_json::Value;

/// The type of `schema`; `indent` stands before the lines of nested objects and variants.
pub(super) fn type_of(schema: &Value, indent: &str) -> String {
    if let Some(variants) = variants(schema) {
        let inner = format!("{indent}   ");
        let lines = variants.iter().map(|variant| {
            let comments = comments(text(variant, "description"), default_of(variant, true));
            format!("\n{indent} | {}{comments}", nullable_type(variant, &inner))
        });
        return lines.collect();
    }
    match schema.get("type") {
        Some(Value::Array(types)) => {
            let names: Vec<&str> = types.iter().filter_map(Value::as_str).map(number_for_integer).collect();
            if names.is_empty() { "any".to_owned() } else { names.join(" | ") }
        }
        Some(Value::String(name)) => match name.as_str() {
            "object" => object(schema, indent),
            "array" => schema
                .get("items")
                .map_or_else(|| "Array<any>".to_owned(), |items| format!("{}[]", type_of(items, indent))),
            "string" => string(schema),
            "number" | "integer" => "number".to_owned(),
            "boolean" => "boolean".to_owned(),
            _ => "any".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

fn number_for_integer(name: &str) -> &str {
    if name == "integer" { "number" } else { name }
}

fn variants(schema: &Value) -> Option<&Vec<Value>> {
    schema.get("oneOf")?.as_array()
}

fn text<'a>(schema: &'a Value, key: &str) -> Option<&'a str> {
    schema.get(key)?.as_str()
}

fn is_enum(schema: &Value) -> bool {
    schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.is_empty())
}

fn string(schema: &Value) -> String {
    let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let quoted: Vec<String> = values.filter_map(Value::as_str).map(|value| format!("\"{value}\"")).collect();
    if quoted.is_empty() { "string".to_owned() } else { quoted.join(" | ") }
}

fn nullable_type(schema: &Value, indent: &str) -> String {
    let name = type_of(schema, indent);
    let nullable = schema.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    if nullable && !name.contains("null") { format!("{name} | null") } else { name }
}

/// `default: …`; the default of an enum stands bare, except among the variants of a bare `oneOf` (`as_json`).
fn default_of(schema: &Value, as_json: bool) -> Option<String> {
    let default = schema.get("default")?;
    Some(match default.as_str() {
        Some(text) if !is_enum(schema) => format!("default: \"{text}\""),
        Some(text) if !as_json => format!("default: {text}"),
        _ => format!("default: {default}"),
    })
}

/// Trailing comment of what there is, or nothing.
fn comments(description: Option<&str>, default: Option<String>) -> String {
    let parts: Vec<String> = description.map(str::to_owned).into_iter().chain(default).collect();
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}

fn object(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    if let Some(description) = text(schema, "description") {
        comment(&mut out, indent, description);
    }
    out.push_str("{\n");
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let name = format!("{key}{}", if required.contains(&key.as_str()) { "" } else { "?" });
        property_comments(&mut out, property, indent);
        match variants(property) {
            Some(variants) => property_variants(&mut out, &name, property, variants, indent),
            None => plain_property(&mut out, &name, property, indent),
        }
    }
    out + indent + "}"
}

fn comment(out: &mut String, indent: &str, text: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(out, "{indent}// {text}");
}

/// Title, description and examples above a property.
fn property_comments(out: &mut String, property: &Value, indent: &str) {
    if let Some(title) = text(property, "title") {
        let _ = write!(out, "{indent}// {title}\n{indent}//\n");
    }
    if let (Some(description), None) = (text(property, "description"), property.get("oneOf")) {
        comment(out, indent, description);
    }
    let examples = property.get("examples").and_then(Value::as_array).filter(|examples| !examples.is_empty());
    if let Some(examples) = examples {
        comment(out, indent, "Examples:");
        for example in examples.iter().filter_map(Value::as_str) {
            comment(out, indent, &format!("- \"{example}\""));
        }
    }
}

fn plain_property(out: &mut String, name: &str, property: &Value, indent: &str) {
    let inner = format!("{indent}    ");
    let default = if property.get("oneOf").is_none() { default_of(property, false) } else { None };
    let _ = writeln!(out, "{indent}{name}: {},{}", nullable_type(property, &inner), comments(None, default));
}

/// A property with variants, one a line. Its description is not repeated at the first variant.
fn property_variants(out: &mut String, name: &str, property: &Value, variants: &[Value], indent: &str) {
    let description = text(property, "description");
    let first = variants.first().and_then(|variant| text(variant, "description"));
    let above = description.filter(|description| first != Some(*description));
    if let Some(description) = above {
        comment(out, indent, description);
    }
    if let Some(default) = default_of(property, false) {
        comment(out, indent, &default);
    }
    let _ = writeln!(out, "{indent}{name}:");
    let inner = format!("{indent}   ");
    for (index, variant) in variants.iter().enumerate() {
        let own = text(variant, "description").filter(|own| Some(*own) != description);
        let own = if index == 0 && above.is_some() { None } else { own };
        let comments = comments(own, default_of(variant, false));
        let _ = writeln!(out, "{indent} | {}{comments}", nullable_type(variant, &inner));
    }
    let _ = writeln!(out, "{indent},");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(schema: &Value, expected: &str) {
        assert_eq!(type_of(schema, ""), expected);
    }

    #[test]
    fn scalars() {
        check(&json!({"type": "integer"}), "number");
        check(&json!({"type": ["integer", "null"]}), "number | null");
        check(&json!({"type": "string", "enum": ["a", "b"]}), "\"a\" | \"b\"");
        check(&json!({"type": "array", "items": {"type": "boolean"}}), "boolean[]");
        check(&json!({"type": "array"}), "Array<any>");
        check(&json!({}), "any");
    }

    #[test]
    fn properties_carry_titles_examples_and_defaults() {
        let schema = json!({"type": "object", "properties": {
            "city": {"type": "string", "title": "City", "examples": ["Rome"], "default": "Oslo"},
            "unit": {"description": "Unit", "default": "c", "oneOf": [
                {"type": "string", "enum": ["c", "f"], "default": "c"},
                {"type": "number", "description": "Code", "nullable": true}]}
        }, "required": ["unit"]});
        let expected = "{\n// City\n//\n// Examples:\n// - \"Rome\"\ncity?: string, // default: \"Oslo\"\n\
                        // Unit\n// default: \"c\"\nunit:\n | \"c\" | \"f\" // default: c\n\
                        \x20| number | null // Code\n,\n}";
        check(&schema, expected);
    }
}
