//! How much one client may have going on at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts what each key has going on. Knows only keys that have something: no more than there are requests.
#[derive(Debug)]
pub(super) struct Places<K: Hash + Eq> {
    most: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    pub(super) const fn most(&self) -> usize {
        self.most
    }

    /// A place, until it is dropped; `None`: all are taken.
    pub(super) fn take(&self, key: &K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(key).copied().unwrap_or_default();
        if own >= self.most {
            return None;
        }
        taken.insert(key.clone(), own + 1);
        Some(Place {
            key: key.clone(),
            taken: self.taken.clone(),
        })
    }
}

/// One of a client's places.
#[derive(Debug)]
pub(super) struct Place<K: Hash + Eq> {
    key: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_places_of_its_own() {
        let places = Places::new(2);
        let (first, _second) = (places.take(&"a"), places.take(&"a"));
        assert!(first.is_some());
        assert!(places.take(&"a").is_none());
        assert!(places.take(&"b").is_some());
        drop(first);
        assert!(places.take(&"a").is_some());
        assert_eq!(
            places.taken.lock().unwrap().len(),
            1,
            "who has nothing is forgotten"
        );
    }
}
