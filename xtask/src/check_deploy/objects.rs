//! Kubernetes objects as rendered, and how two sets of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

/// What tells one object from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) kind: String,
    namespace: Option<String>,
    pub(super) name: String,
    api_version: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// Objects by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects(BTreeMap<Name, Value>);

impl Objects {
    /// Reads YAML documents, in any order.
    pub(super) fn parse(yaml: &str) -> Result<Self> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(yaml).context("what is rendered is not YAML")?;
        let mut objects = BTreeMap::new();
        for object in documents {
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let name = Name {
                kind: text("/kind").context("a document has no kind")?,
                namespace: text("/metadata/namespace"),
                name: text("/metadata/name").context("a document has no metadata.name")?,
                api_version: text("/apiVersion").context("a document has no apiVersion")?,
            };
            if objects.contains_key(&name) {
                bail!("{name} is there twice");
            }
            objects.insert(name, object);
        }
        Ok(Self(objects))
    }

    /// All but those of a kind.
    pub(super) fn without_kind(&self, kind: &str) -> Self {
        let mut others = self.clone();
        others.0.retain(|name, _| name.kind != kind);
        others
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Value)> {
        self.0.iter()
    }
}

/// Each difference with its path, and the value on both sides.
pub(super) fn differences(left_name: &str, left: &Objects, right_name: &str, right: &Objects) -> Vec<String> {
    let names: BTreeSet<&Name> = left.0.keys().chain(right.0.keys()).collect();
    let width = left_name.len().max(right_name.len()) + 1;
    let mut found = Vec::new();
    for name in names {
        match (left.0.get(name), right.0.get(name)) {
            (Some(_), None) => found.push(format!("{name}: only {left_name} makes it")),
            (None, Some(_)) => found.push(format!("{name}: only {right_name} makes it")),
            (left, right) => compare("", left, right, &mut |path, left, right| {
                found.push(format!(
                    "{name}: {path}\n  {:width$} {}\n  {:width$} {}",
                    format!("{left_name}:"),
                    show(left),
                    format!("{right_name}:"),
                    show(right),
                ));
            }),
        }
    }
    found
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "(nothing)".to_owned(), Value::to_string)
}

/// Calls `differ` with the path and both values wherever they are not the same.
pub(super) fn compare<'v>(
    path: &str,
    left: Option<&'v Value>,
    right: Option<&'v Value>,
    differ: &mut impl FnMut(&str, Option<&'v Value>, Option<&'v Value>),
) {
    match (left, right) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                compare(&below(path, key), left.get(key), right.get(key), differ);
            }
        }
        (Some(left @ Value::Array(left_items)), Some(right @ Value::Array(right_items))) => {
            let (Some(left_named), Some(right_named)) = (by_name(left_items), by_name(right_items)) else {
                for index in 0..left_items.len().max(right_items.len()) {
                    let path = format!("{path}[{index}]");
                    compare(&path, left_items.get(index), right_items.get(index), differ);
                }
                return;
            };
            let names: BTreeSet<&str> = left_named.keys().chain(right_named.keys()).copied().collect();
            for name in names {
                let (left, right) = (left_named.get(name), right_named.get(name));
                compare(&format!("{path}[{name}]"), left.copied(), right.copied(), differ);
            }
            let order = |items: &'v [Value]| items.iter().map(|item| &item["name"]);
            if left_named.keys().eq(right_named.keys()) && !order(left_items).eq(order(right_items)) {
                differ(&format!("{path} (the order)"), Some(left), Some(right));
            }
        }
        (left, right) if left != right => differ(path, left, right),
        _ => {}
    }
}

/// The items of a list in which each has a name of its own (containers, variables, volumes), by that name.
fn by_name(items: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let named: BTreeMap<&str, &Value> = items
        .iter()
        .map(|item| Some((item.get("name")?.as_str()?, item)))
        .collect::<Option<_>>()?;
    (named.len() == items.len()).then_some(named)
}

fn below(path: &str, key: &str) -> String {
    if !key
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    {
        format!("{path}[{key:?}]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The value at a path of keys; an empty map is no value.
pub(super) fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Takes the value at a path of keys away.
pub(super) fn remove(values: &mut Value, path: &[String]) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let parent = parents
        .iter()
        .try_fold(values, |value, key| value.get_mut(key))
        .and_then(Value::as_object_mut);
    parent.map(|parent: &mut Map<String, Value>| parent.shift_remove(last));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: ns}\n";

    fn service(rest: &str) -> Objects {
        Objects::parse(&format!("{SERVICE}{rest}")).unwrap()
    }

    fn between(left: &str, right: &str) -> Vec<String> {
        differences("left", &service(left), "right", &service(right))
    }

    #[test]
    fn order_of_documents_and_maps_is_no_difference() {
        let role = "kind: Role\napiVersion: v1\nmetadata: {name: a, namespace: ns}\n";
        let left = Objects::parse(&format!("{SERVICE}spec: {{a: 1, b: [x, y]}}\n---\n{role}")).unwrap();
        let right = Objects::parse(&format!(
            "# comment\n---\n{role}---\n{SERVICE}spec:\n  b:\n  - x\n  - y\n  a: 1\n"
        ))
        .unwrap();
        assert_eq!(differences("left", &left, "right", &right), [""; 0]);
    }

    #[test]
    fn a_difference_is_told_with_its_path() {
        assert_eq!(
            between(
                "spec: {ports: [{name: m, port: 1}]}",
                "spec: {ports: [{name: m, port: 2}]}"
            ),
            ["Service ns/a: spec.ports[m].port\n  left:  1\n  right: 2"]
        );
        assert_eq!(
            between("spec: {labels: {a.b/c: x}}", "spec: {labels: {}}"),
            ["Service ns/a: spec.labels[\"a.b/c\"]\n  left:  \"x\"\n  right: (nothing)"]
        );
        assert_eq!(
            between("spec: {add: [A]}", "spec: {add: [A, B]}"),
            ["Service ns/a: spec.add[1]\n  left:  (nothing)\n  right: \"B\""]
        );
    }

    #[test]
    fn types_and_the_order_of_lists_are_differences() {
        assert_eq!(between("spec: \"9091\"", "spec: 9091").len(), 1);
        assert_eq!(between("spec: \"true\"", "spec: true").len(), 1);
        assert_eq!(between("spec: null", "").len(), 1);
        assert_eq!(between("spec: []", "").len(), 1);
        assert_eq!(between("spec: [a, b]", "spec: [b, a]").len(), 2);
        let found = between("spec: [{name: a}, {name: b}]", "spec: [{name: b}, {name: a}]");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("spec (the order)"), "{found:?}");
    }

    #[test]
    fn an_object_of_one_side_is_a_difference() {
        let none = Objects::default();
        assert_eq!(
            differences("left", &service(""), "right", &none),
            ["Service ns/a: only left makes it"]
        );
        assert_eq!(
            differences("left", &none, "right", &service("")),
            ["Service ns/a: only right makes it"]
        );
        assert_eq!(
            differences("left", &none, "right", &service("").without_kind("Service")),
            [""; 0]
        );
    }

    #[test]
    fn what_kubernetes_would_not_take_is_an_error() {
        let twice = Objects::parse(&format!("{SERVICE}---\n{SERVICE}")).unwrap_err();
        assert_eq!(twice.to_string(), "Service ns/a is there twice");
        assert!(Objects::parse("kind: Service").is_err());
        assert!(Objects::parse(&format!("{SERVICE}kind: Role\n")).is_err());
    }
}
