//! References, generated from what the program itself uses: the configuration language as a JSON schema for editors and
//! as a documentation page, and a page of all metrics.

mod metrics;

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::config::section::{Key, Schema, Section};
use crate::config::{self, keys::KEYS};
use crate::net;

pub use metrics::metrics_page;

/// Every mapping of the language, from the top down, each once.
fn sections() -> Vec<&'static Section> {
    fn visit(section: &'static Section, found: &mut Vec<&'static Section>) {
        if !found.iter().any(|known| known.name == section.name) {
            found.push(section);
            section.keys.iter().for_each(|key| descend(&key.form, found));
        }
    }
    fn descend(form: &Schema, found: &mut Vec<&'static Section>) {
        match form {
            Schema::Section(section) => visit(section(), found),
            Schema::Other(name) => visit(other(name), found),
            Schema::List(form) | Schema::OneOrList(form) | Schema::Map(form) => descend(form, found),
            Schema::Either(forms) => forms.iter().for_each(|form| descend(form, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    visit(&config::TOP, &mut found);
    found
}

/// A mapping that is decoded outside the configuration's own code.
fn other(name: &str) -> &'static Section {
    match name {
        "network" => &net::NETWORK,
        name => unreachable!("nobody decodes {name}"),
    }
}

/// The JSON schema (draft 2020-12) of a configuration.
pub fn schema() -> String {
    let mut definitions: Map<String, Value> =
        sections().iter().map(|section| (section.name.to_owned(), of_section(section))).collect();
    let top = definitions.remove(config::TOP.name).unwrap_or_default();
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of the exporter",
        "patternProperties": {"^x-": true},
        "$defs": definitions,
    });
    if let (Value::Object(schema), Value::Object(top)) = (&mut schema, top) {
        schema.extend(top);
    }
    // Only strings, numbers and lists, which cannot fail to serialize.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

fn of_section(section: &Section) -> Value {
    let is_top = section.name == config::TOP.name;
    let property = |key: &Key| {
        let mut value = of_form(&key.form);
        if is_top {
            // A key at the top level without a value is not set.
            value = json!({"anyOf": [value, {"enum": [null, ""]}]});
        }
        let default = key.default.map(|default| format!(" Default: {default}.")).unwrap_or_default();
        if let Value::Object(value) = &mut value {
            value.insert("description".to_owned(), format!("{}{default}", sentence(key.about)).into());
        }
        (key.name.to_owned(), value)
    };
    let properties: Map<String, Value> = section.keys.iter().map(property).collect();
    let mut document = json!({
        "type": "object",
        "description": section.about,
        "properties": properties,
        "additionalProperties": false,
    });
    let required: Vec<_> = section.keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
    if !required.is_empty() {
        document["required"] = required.into();
    }
    if !section.one_of.is_empty() {
        document["oneOf"] = section.one_of.iter().map(|key| json!({"required": [key]})).collect();
    }
    document
}

fn of_form(form: &Schema) -> Value {
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match form {
        Schema::Text | Schema::Path => json!({"type": "string", "minLength": 1}),
        Schema::LabelText => json!({"type": ["string", "number", "boolean"]}),
        Schema::Name => pattern("^[A-Za-z_][A-Za-z0-9_]*$"),
        Schema::Boolean => json!({"anyOf": [
            {"type": "boolean"},
            {"type": "string", "pattern": "^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$"},
        ]}),
        Schema::Number => json!({"type": "number"}),
        Schema::Duration => pattern("^-?[0-9.]+ *(ns|us|µs|ms|s|min|h)$"),
        Schema::Size => pattern("^[0-9.]+ *(B|[kKMG]B|[KMG]iB)$"),
        Schema::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Schema::Words(words) => {
            let mut all: Vec<String> = Vec::new();
            for word in words() {
                for word in [word.to_owned(), word.to_lowercase()] {
                    if !all.contains(&word) {
                        all.push(word);
                    }
                }
            }
            json!({"enum": all})
        }
        Schema::Section(section) => json!({"$ref": format!("#/$defs/{}", section().name)}),
        Schema::Other(name) => json!({"$ref": format!("#/$defs/{name}")}),
        Schema::List(form) => json!({"type": "array", "items": of_form(form)}),
        Schema::OneOrList(form) => {
            let one = of_form(form);
            json!({"anyOf": [one, {"type": "array", "items": one}]})
        }
        Schema::Map(form) => json!({"type": "object", "additionalProperties": of_form(form)}),
        Schema::Either(forms) => json!({"anyOf": forms.iter().map(of_form).collect::<Vec<_>>()}),
    }
}

/// Returns the documentation page, as Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# Configuration reference\n\n<!-- Generated by `exporter schema --markdown` from the tables that the \
         decoders use: edit those. -->\n\nAll configuration keys. `exporter schema > schema.json` writes a \
         JSON schema; with the first line\n`# yaml-language-server: $schema=schema.json` editors complete and \
         check the file.\n`exporter check FILE` reports every error in a file.\n",
    );
    for section in sections() {
        let _ = write!(page, "\n## {}\n\n{}\n", section.name.replace('_', " "), section.about);
        if !section.one_of.is_empty() {
            let _ = write!(page, "\nExactly one of `{}` is required.\n", section.one_of.join("`, `"));
        }
        let _ = write!(page, "\n| key | value | default | |\n|---|---|---|---|\n");
        for key in section.keys.iter() {
            let default = match (key.default, key.is_required) {
                (Some(default), _) => format!("`{default}`"),
                (None, true) => "required".to_owned(),
                (None, false) => String::new(),
            };
            let about = sentence(key.about);
            let _ = writeln!(page, "| `{}` | {} | {default} | {about} |", key.name, display(&key.form));
        }
    }
    page.push_str("\n## flags and environment\n\n| key | flag | environment |\n|---|---|---|\n");
    for key in KEYS {
        let short = key.short.map(|short| format!(", `-{short}`")).unwrap_or_default();
        let _ = writeln!(page, "| `{}` | `--{}`{short} | `{}` |", key.name, key.flag, key.env);
    }
    page
}

/// The value of a key, in words.
fn display(form: &Schema) -> String {
    let link = |name: &str| format!("[{}](#{})", name.replace('_', " "), name.replace('_', "-"));
    match form {
        Schema::Text => "text".to_owned(),
        Schema::LabelText => "text, a number or a boolean".to_owned(),
        Schema::Name => "a name".to_owned(),
        Schema::Path => "a path".to_owned(),
        Schema::Boolean => "`true`, `false`".to_owned(),
        Schema::Number => "a number".to_owned(),
        Schema::Duration => "a duration (`10ms`)".to_owned(),
        Schema::Size => "a size (`4MiB`)".to_owned(),
        Schema::Integer(least, i64::MAX) => format!("a whole number from {least}"),
        Schema::Integer(least, most) => format!("{least} to {most}"),
        Schema::Words(words) => format!("`{}`", words().join("`, `")),
        Schema::Section(section) => link(section().name),
        Schema::Other(name) => link(name),
        Schema::List(form) => format!("a list of: {}", display(form)),
        Schema::OneOrList(form) => format!("{}, or a list of them", display(form)),
        Schema::Map(form) => format!("by name: {}", display(form)),
        Schema::Either(forms) => forms.iter().map(display).collect::<Vec<_>>().join(", or "),
    }
}

/// Ends with a period.
fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}
