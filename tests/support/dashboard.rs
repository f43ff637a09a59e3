//! Reads the parts of a Grafana dashboard that tests need: its panels and their queries.
//!
//! The format is Grafana's own JSON model ("Dashboard JSON model" in its manual).

use std::path::Path;

use serde_json::Value;

/// A dashboard. [`Dashboard::panels`] does not include rows.
pub struct Dashboard {
    pub json: Value,
    pub panels: Vec<Panel>,
}

/// A panel that displays data (not a row).
pub struct Panel {
    pub title: String,
    pub queries: Vec<Query>,
}

/// A panel's query, with Grafana's variables not yet substituted.
pub struct Query {
    pub ref_id: String,
    pub expr: String,
}

/// A name, and the value to substitute for `$name` and `${name}`.
pub type Variable<'a> = (&'a str, &'a str);

/// Values for Grafana's built-in variables, suitable for a server that has only been scraped for a few seconds.
pub const BUILT_IN_VARIABLES: &[Variable] =
    &[("__rate_interval", "1m"), ("__interval", "15s"), ("__range", "5m")];

impl Dashboard {
    /// Reads and parses a dashboard file.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or has no panels.
    pub fn load(path: &Path) -> Result<Dashboard, String> {
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Dashboard::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Parses a dashboard.
    ///
    /// # Errors
    /// If the text is not JSON or has no panels.
    pub fn parse(text: &str) -> Result<Dashboard, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let list = json["panels"].as_array().ok_or("no list of panels")?;
        // A collapsed row contains its panels.
        let panels: Vec<Panel> = list
            .iter()
            .flat_map(|p| std::iter::once(p).chain(p["panels"].as_array().into_iter().flatten()))
            .filter(|p| p["type"] != "row")
            .map(Panel::read)
            .collect();
        if panels.is_empty() {
            return Err("no panel besides rows".into());
        }
        Ok(Dashboard { json, panels })
    }
}

impl Panel {
    fn read(json: &Value) -> Panel {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let queries = json["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| Query { ref_id: text(&t["refId"]), expr: text(&t["expr"]) })
            .collect();
        Panel { title: text(&json["title"]), queries }
    }
}

/// Returns what Grafana 11 to 13 substitute for a variable with `multi` or `includeAll` when these values are chosen, with
/// the feature toggle of the compose file; without it, quotes are not escaped.
pub fn chosen(values: &[&str]) -> String {
    let escaped: Vec<String> = values
        .iter()
        .map(|value| {
            let mut escaped = String::new();
            for c in value.chars() {
                match c {
                    '\\' => escaped.push_str(r"\\\\"),
                    '"' => escaped.push_str(r#"\\\""#),
                    '$' | '^' | '*' | '{' | '}' | '[' | ']' | '\'' | '+' | '?' | '.' | '(' | ')' | '|' => {
                        escaped.push_str(r"\\");
                        escaped.push(c);
                    }
                    c => escaped.push(c),
                }
            }
            escaped
        })
        .collect();
    match escaped.as_slice() {
        [one] => one.clone(),
        several => format!("({})", several.join("|")),
    }
}

/// Substitutes Grafana's variables. `$1` (of `label_replace`) is not a variable and stays.
///
/// # Errors
/// If a variable has no value, or a `${` is not closed.
pub fn substitute(expr: &str, variables: &[&[Variable]]) -> Result<String, String> {
    let mut out = String::with_capacity(expr.len());
    let mut rest = expr;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let braced = rest.strip_prefix('{');
        let body = braced.unwrap_or(rest);
        let end = body.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(body.len());
        let name = &body[..end];
        if name.starts_with(|c: char| c.is_ascii_digit()) || (name.is_empty() && braced.is_none()) {
            out.push('$');
            continue;
        }
        let value = variables.iter().copied().flatten().find(|(n, _)| *n == name);
        let (_, value) = value.ok_or_else(|| format!("no value for the variable ${name} in: {expr}"))?;
        out.push_str(value);
        rest = &body[end..];
        if braced.is_some() {
            rest = rest.strip_prefix('}').ok_or_else(|| format!("${{{name} has no end in: {expr}"))?;
        }
    }
    out.push_str(rest);
    Ok(out)
}
