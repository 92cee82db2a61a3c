//! What a rule's `metadata` says: a tree of plain values that goes to Envoy as dynamic metadata. How it is written in YAML
//! is `config`'s affair, how it is sent is `grpc`'s.

use std::collections::BTreeMap;

/// One value of the tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Metadata>),
    Map(BTreeMap<String, Metadata>),
}

impl Metadata {
    /// Adds what `other` has and this one does not, map by map; where both have a value, this one's stays.
    pub fn merge(&mut self, other: &Self) {
        let (Self::Map(mine), Self::Map(theirs)) = (self, other) else { return };
        for (key, value) in theirs {
            match mine.get_mut(key) {
                Some(known) => known.merge(value),
                None => {
                    mine.insert(key.clone(), value.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(pairs: [(&str, Metadata); N]) -> Metadata {
        Metadata::Map(pairs.map(|(key, value)| (key.to_owned(), value)).into())
    }

    #[test]
    fn maps_are_merged_at_any_depth_and_the_first_value_stays() {
        let (one, two) = (Metadata::Number(1.0), Metadata::Number(2.0));
        let mut first = map([("a", one.clone()), ("in", map([("x", one.clone())]))]);
        first.merge(&map([("a", two.clone()), ("b", two.clone()), ("in", map([("x", two.clone()), ("y", two.clone())]))]));
        assert_eq!(first, map([("a", one.clone()), ("b", two.clone()), ("in", map([("x", one), ("y", two)]))]));
    }

    #[test]
    fn a_map_and_another_value_are_not_merged() {
        let mut first = map([("a", Metadata::Bool(true))]);
        first.merge(&map([("a", map([]))]));
        assert_eq!(first, map([("a", Metadata::Bool(true))]));
    }
}
