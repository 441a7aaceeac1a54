//! Label selectors as people write them (`app=web,tier!=db,env in (a,b),!canary`).

use std::collections::BTreeMap;

use kube::core::{Expression, Selector, SelectorExt as _};

/// Whether a text has something that a selector has and no name does.
#[must_use]
pub fn is_selector(text: &str) -> bool {
    text.contains(['=', '!', '(', ',']) || text.contains(" in ") || text.contains(" notin ")
}

/// A label selector.
#[derive(Debug)]
pub struct LabelSelector(Selector);

impl LabelSelector {
    /// Reads a selector.
    ///
    /// # Errors
    /// The requirement that makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut expressions = Vec::new();
        for requirement in split(text) {
            expressions.push(expression(requirement.trim()).ok_or_else(|| {
                format!(
                    "`{}` in the label selector `{text}` is none of KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY \
                     notin (A,B)",
                    requirement.trim()
                )
            })?);
        }
        Ok(Self(Selector::from_iter(expressions)))
    }

    /// Whether labels meet all requirements.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

/// By commas, but for those in parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn expression(text: &str) -> Option<Expression> {
    if let Some(key) = text.strip_prefix('!') {
        return Some(Expression::DoesNotExist(name(key)?));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Expression::NotEqual(name(key)?, value_of(value)?));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Expression::Equal(name(key)?, value_of(value)?));
    }
    if let Some(rest) = text.strip_suffix(')') {
        let (head, values) = rest.split_once('(')?;
        let (key, operator) = head.trim().rsplit_once(' ')?;
        let values = values.split(',').map(value_of).collect::<Option<_>>()?;
        return match operator {
            "in" => Some(Expression::In(name(key)?, values)),
            "notin" => Some(Expression::NotIn(name(key)?, values)),
            _ => None,
        };
    }
    Some(Expression::Exists(name(text)?))
}

/// Of letters, digits and `-_./`, as label keys are.
fn name(text: &str) -> Option<String> {
    let text = text.trim();
    let is_name = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    is_name.then(|| text.to_owned())
}

/// As a key, without `/`; it may be empty.
fn value_of(text: &str) -> Option<String> {
    let text = text.trim();
    let is_value = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_value.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(selector: &str) -> bool {
        let labels = [("app", "web"), ("example.com/tier", "front"), ("empty", "")];
        let labels = labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        LabelSelector::parse(selector)
            .unwrap_or_else(|error| panic!("{error}"))
            .matches(&labels)
    }

    #[test]
    fn selectors_mean_what_they_mean_to_kubectl() {
        for selector in [
            "app=web",
            "app == web , example.com/tier!=db",
            "app in (db, web),!canary",
            "app notin (db)",
            "missing!=x",
            "app",
            "empty=",
        ] {
            assert!(matches(selector), "{selector}");
        }
        for selector in [
            "app=db",
            "!app",
            "app in (db)",
            "app notin (web,db)",
            "app=web,missing",
        ] {
            assert!(!matches(selector), "{selector}");
        }
        for selector in ["app=a=b", "=x", "app in web", "app within (a)", "a,,b", "", "a b"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
        assert!(is_selector("app=web") && is_selector("!x") && !is_selector("shop/cart-1"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
        }
    }
}
