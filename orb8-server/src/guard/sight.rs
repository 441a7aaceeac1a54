//! What one person may see.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    refusal::Refusal,
    review::{Person, Reviews},
};

/// Namespaces that a request may name, and those of one answer's peers that are looked at: the peers of further ones are
/// told without names.
pub(super) const NAMED: usize = 256;
/// Namespaces of somebody who may see all: as many as agents take in one filter, with room for other conditions.
const ALL: usize = 1000;
const AT_ONCE: usize = 16;

/// What a person may see of one answer.
pub(super) struct Sight {
    reviews: Arc<Reviews>,
    person: Person,
    /// They may get pods in every namespace.
    all: bool,
    /// Whose rows they get.
    own: BTreeSet<String>,
    /// Others, which peers and Services may be in.
    others: HashMap<String, bool>,
}

impl Sight {
    /// Of somebody who asks for these namespaces; none: for all that they may see among those `known`, of which `most` are
    /// looked at.
    pub(super) async fn new(
        reviews: Arc<Reviews>,
        person: Person,
        named: &[String],
        known: impl FnOnce() -> Vec<String>,
        most: usize,
    ) -> Result<Self, Refusal> {
        let named: BTreeSet<String> = named.iter().map(|name| name.trim().to_owned()).collect();
        if named.len() > NAMED {
            return Err(Refusal::Condition(format!(
                "{} namespaces are more than the {NAMED} that one question may name",
                named.len()
            )));
        }
        if let Some(wrong) = named.iter().find(|name| !is_namespace(name)) {
            let shown: String = wrong.chars().take(64).collect();
            return Err(Refusal::Condition(format!("`{shown}` is not a namespace's name")));
        }
        let all = reviews.may_see(&person, "").await?;
        let mut sight = Self {
            reviews,
            person,
            all,
            own: BTreeSet::new(),
            others: HashMap::new(),
        };
        sight.own = if named.is_empty() {
            let known = known();
            let most = if all { ALL } else { most };
            if known.len() > most {
                return Err(Refusal::Condition(format!(
                    "the cluster has {} namespaces, more than the {most} that are looked at for what you may see: say \
                     which, with --namespace",
                    known.len()
                )));
            }
            let visible = sight.visible(known).await?;
            if visible.is_empty() {
                return Err(Refusal::Nothing);
            }
            visible
        } else {
            let visible = sight.visible(named.iter().cloned().collect()).await?;
            if let Some(hidden) = named.into_iter().find(|name| !visible.contains(name)) {
                return Err(Refusal::Namespace(hidden));
            }
            visible
        };
        Ok(sight)
    }

    async fn visible(&self, namespaces: Vec<String>) -> Result<BTreeSet<String>, Refusal> {
        if self.all {
            return Ok(namespaces.into_iter().collect());
        }
        futures::stream::iter(namespaces)
            .map(|name| async move {
                let seen = self.reviews.may_see(&self.person, &name).await?;
                Ok(seen.then_some(name))
            })
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|name| std::future::ready(Ok(name)))
            .try_collect()
            .await
    }

    /// Finds out about these, so that [`Sight::sees`] knows. What can't be found out is not seen.
    pub(super) async fn learn(&mut self, namespaces: BTreeSet<String>) {
        if self.all {
            return;
        }
        let unknown: Vec<String> = namespaces
            .into_iter()
            .filter(|name| is_namespace(name) && !self.own.contains(name) && !self.others.contains_key(name))
            .take(NAMED.saturating_sub(self.others.len()))
            .collect();
        let found: Vec<(String, bool)> = futures::stream::iter(unknown)
            .map(|name| {
                let (reviews, person) = (&self.reviews, &self.person);
                async move {
                    let seen = reviews.may_see(person, &name).await.unwrap_or(false);
                    (name, seen)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        self.others.extend(found);
    }

    /// Whether rows of workloads in this namespace are theirs to see.
    pub(super) fn owns(&self, namespace: &str) -> bool {
        self.own.contains(namespace)
    }

    /// Whether names of this namespace may be told.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        !namespace.is_empty()
            && (self.all || self.owns(namespace) || self.others.get(namespace).copied().unwrap_or(false))
    }

    /// Whose rows they get, for a filter.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.own.iter().cloned().collect()
    }

    /// Whether they may still see what they saw: permissions may have been withdrawn.
    pub(super) async fn renew(&mut self, token: &str) -> Result<(), Refusal> {
        if !self.reviews.still(&self.person, token).await? {
            return Err(Refusal::Token);
        }
        self.all = self.reviews.may_see(&self.person, "").await?;
        self.others.clear();
        let visible = self.visible(self.namespaces()).await?;
        match self.own.iter().find(|name| !visible.contains(*name)) {
            Some(hidden) => Err(Refusal::Namespace(hidden.clone())),
            None => Ok(()),
        }
    }
}

/// Whether it can be a namespace: a DNS label.
pub(super) fn is_namespace(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
