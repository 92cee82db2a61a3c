//! The tree that a domain's rules stand in, and the walk down it: one level an entry, exact key and value first, then
//! wildcards in file order, then the key alone, and no way back. It knows places, not limits: a node holds the number
//! of its rule in `Rules`.

use std::iter::once;

use hashbrown::HashMap;

use super::{RuleSpec, RulesError, action_of};
use crate::descriptor::Entry;

/// Gives the rule at the end of a path, from the top down, its number, if it does something.
pub(super) type AddRule<'b> = dyn FnMut(&[&RuleSpec]) -> Result<Option<usize>, RulesError> + 'b;

pub(super) struct Tree(Level);

pub(super) struct Node {
    /// None where the place does nothing.
    pub rule: Option<usize>,
    below: Level,
}

/// All rules beside each other.
#[derive(Default)]
struct Level {
    keys: HashMap<Box<str>, ByValue>,
    wildcards: Vec<Wildcard>,
}

/// The rules of one literal key.
#[derive(Default)]
struct ByValue {
    fixed: HashMap<Box<str>, Node>,
    open: Option<Box<Node>>,
}

struct Wildcard {
    key: Pattern,
    /// None takes any value.
    value: Option<Pattern>,
    node: Node,
}

/// One thing that a step asks, and the node that takes the entry, if it does.
struct Candidate<'a> {
    way: Way<'a>,
    node: Option<&'a Node>,
}

enum Way<'a> {
    Exact,
    Wildcard(&'a Wildcard),
    KeyAlone,
}

/// One step of a walk, told: what was asked, as kind and text, up to what took the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub asked: Vec<(&'static str, String)>,
    /// The last that was asked takes the entry.
    pub taken: bool,
}

/// Text in which each `*` stands for any characters, none included; split at the stars.
#[derive(PartialEq)]
struct Pattern {
    first: Box<str>,
    /// Empty where there is no star: then the text is `first` itself.
    after_stars: Box<[Box<str>]>,
}

/// Whether the wildcard of this key and value takes every entry that the other one takes: then its stars take the other's.
pub(super) fn covers(wildcard: (&str, Option<&str>), other: (&str, Option<&str>)) -> bool {
    let value = wildcard.1.is_none_or(|value| Pattern::new(value).takes(other.1.unwrap_or("*")));
    value && Pattern::new(wildcard.0).takes(other.0)
}

impl Tree {
    pub fn build(specs: &[RuleSpec], add: &mut AddRule<'_>) -> Result<Self, RulesError> {
        Ok(Self(Level::build(specs, &mut Vec::new(), add)?))
    }

    /// Follows the entries down to the last one's node. None where the walk stops before, or where there are no entries.
    pub fn walk(&self, entries: &[Entry]) -> Option<&Node> {
        let (last, before) = entries.split_last()?;
        let mut level = &self.0;
        for entry in before {
            level = &level.step(entry)?.below;
        }
        level.step(last)
    }

    /// The same walk, told, up to the entry that it stops at or to the last one.
    pub fn trace(&self, entries: &[Entry]) -> Vec<Step> {
        let (mut steps, mut level) = (Vec::new(), Some(&self.0));
        for entry in entries {
            let Some(asked) = level else { break };
            let mut step = Step { asked: Vec::new(), taken: false };
            level = asked.candidates(entry).find_map(|Candidate { way, node }| {
                step.asked.push(way.shown(entry));
                node.map(|node| &node.below)
            });
            step.taken = level.is_some();
            steps.push(step);
        }
        steps
    }
}

impl Level {
    fn build<'s>(specs: &'s [RuleSpec], path: &mut Vec<&'s RuleSpec>, add: &mut AddRule<'_>) -> Result<Self, RulesError> {
        let mut level = Self::default();
        for spec in specs {
            if spec.key.is_empty() {
                return Err(RulesError::EmptyKey { parent: action_of(path).to_string() });
            }
            path.push(spec);
            let node = Node { rule: add(path)?, below: Self::build(&spec.children, path, add)? };
            if level.insert(spec, node).is_some() {
                return Err(RulesError::DuplicateRule { path: action_of(path).to_string() });
            }
            path.pop();
        }
        Ok(level)
    }

    /// Puts a node in its place, and gives back one that is too many there.
    fn insert(&mut self, spec: &RuleSpec, node: Node) -> Option<Node> {
        let value = spec.value();
        if spec.is_wildcard() {
            let (key, value) = (Pattern::new(&spec.key), value.map(Pattern::new));
            if self.wildcards.iter().any(|other| other.key == key && other.value == value) {
                return Some(node);
            }
            self.wildcards.push(Wildcard { key, value, node });
            return None;
        }
        let by_value = self.keys.entry(spec.key.as_str().into()).or_default();
        match value {
            Some(value) => by_value.fixed.insert(value.into(), node),
            None => by_value.open.replace(Box::new(node)).map(|node| *node),
        }
    }

    fn step(&self, entry: &Entry) -> Option<&Node> {
        self.candidates(entry).find_map(|candidate| candidate.node)
    }

    /// What a step asks, in order; the first with a node takes the entry.
    fn candidates<'a>(&'a self, entry: &Entry) -> impl Iterator<Item = Candidate<'a>> {
        let by_value = self.keys.get(entry.key.as_str());
        let fixed = by_value.and_then(|by_value| by_value.fixed.get(entry.value.as_str()));
        let open = by_value.and_then(|by_value| by_value.open.as_deref());
        let wildcards = self.wildcards.iter().map(|wildcard| {
            let node = wildcard.takes(entry).then_some(&wildcard.node);
            Candidate { way: Way::Wildcard(wildcard), node }
        });
        once(Candidate { way: Way::Exact, node: fixed }).chain(wildcards).chain(once(Candidate { way: Way::KeyAlone, node: open }))
    }
}

impl Way<'_> {
    fn shown(&self, entry: &Entry) -> (&'static str, String) {
        match self {
            Self::Exact => ("exact", format!("{}={}", entry.key, entry.value)),
            Self::Wildcard(wildcard) => ("wildcard", wildcard.shown()),
            Self::KeyAlone => ("key alone", entry.key.clone()),
        }
    }
}

impl Wildcard {
    fn shown(&self) -> String {
        self.value.as_ref().map_or_else(|| self.key.shown(), |value| format!("{}={}", self.key.shown(), value.shown()))
    }

    fn takes(&self, entry: &Entry) -> bool {
        self.key.takes(&entry.key) && self.value.as_ref().is_none_or(|value| value.takes(&entry.value))
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut parts = text.split('*').map(Box::from);
        Self { first: parts.next().unwrap_or_default(), after_stars: parts.collect() }
    }

    fn shown(&self) -> String {
        self.after_stars.iter().fold(self.first.to_string(), |text, part| text + "*" + part)
    }

    /// Parts in the middle are taken at their first place: if any way fits, this one does.
    fn takes(&self, text: &str) -> bool {
        let Some((last, middle)) = self.after_stars.split_last() else { return *text == *self.first };
        let Some(mut rest) = text.strip_prefix(&*self.first).and_then(|rest| rest.strip_suffix(&**last)) else { return false };
        for part in middle {
            let Some(at) = rest.find(&**part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_what_takes_no_more_than_it() {
        let yes = [
            (("k", Some("a*")), ("k", Some("ab*"))),
            (("k", Some("a*")), ("k", Some("ab"))),
            (("k", Some("*")), ("k", None)),
            (("*", None), ("k", None)),
            (("h-*", None), ("h-a*", Some("x"))),
            (("k", Some("*a*")), ("k", Some("b*a"))),
        ];
        let no = [
            (("k", Some("ab*")), ("k", Some("a*"))),
            (("k", Some("a*")), ("k", None)),
            (("k", Some("a*")), ("l", Some("ab"))),
            (("k", Some("a*a")), ("k", Some("a*"))),
        ];
        assert!(yes.iter().all(|(wildcard, other)| covers(*wildcard, *other)));
        assert!(!no.iter().any(|(wildcard, other)| covers(*wildcard, *other)));
    }

    #[test]
    fn a_star_stands_for_any_characters_anywhere() {
        for (pattern, yes, no) in [
            ("*", &["", "a", "*"][..], &[][..]),
            ("a*", &["a", "ab", "a*"], &["", "ba"]),
            ("*a", &["a", "ba"], &["", "ab"]),
            ("a*b*c", &["abc", "a-b-c", "abcbc"], &["ab", "acb", "abcd"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("**", &["", "x"], &[]),
            ("a.c", &["a.c"], &["abc"]),
        ] {
            let pattern = Pattern::new(pattern);
            assert!(yes.iter().all(|text| pattern.takes(text)), "{yes:?}");
            assert!(!no.iter().any(|text| pattern.takes(text)), "{no:?}");
        }
    }
}
