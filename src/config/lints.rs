//! What loads and is probably not meant: a rule that no request reaches, a wildcard that says what a literal beside it says,
//! rules of one action that don't share what they count. Each is a warning, with its place.

use std::collections::HashMap;

use crate::hit::Action;
use crate::rules::{Limits, RateLimit, RuleSpec};

use super::Report;
use super::language::shown;
use super::yaml::Place;

/// What is known of a domain's rules so far.
#[derive(Default)]
pub(super) struct Lints {
    /// The limits of each action, and the lines of their rules.
    actions: HashMap<String, Vec<(RateLimit, usize)>>,
}

impl Lints {
    /// Looks at rules beside each other, in file order.
    pub fn level(&mut self, rules: &[RuleSpec], places: &[Place], report: &mut Report<'_>) {
        let wildcards: Vec<_> = rules.iter().zip(places).enumerate().filter(|(_, (rule, _))| rule.is_wildcard()).collect();
        for (number, (rule, place)) in rules.iter().zip(places).enumerate() {
            // A bare key is asked after all wildcards, a wildcard after those before it, a fixed value before any.
            let before = if rule.is_wildcard() { number } else { rules.len() };
            let mut covering = wildcards.iter().take_while(|(at, _)| *at < before).filter(|(_, (wildcard, _))| wildcard.covers(rule));
            let Some((_, (wildcard, first))) = covering.next() else { continue };
            let (rule_text, wildcard_text, line) = (shown(rule), shown(wildcard), first.line);
            if rule.is_wildcard() || rule.value.is_none() {
                let narrower = rule.is_wildcard() && !rule.covers(wildcard);
                let advice = if narrower { "put the narrower one first" } else { "remove one of the two" };
                let what = format!("`{rule_text}` is never reached: `{wildcard_text}` in line {line} takes all that it would; {advice}");
                report.warning(*place, what);
            } else if says_the_same(wildcard, rule) {
                let what = format!(
                    "`{rule_text}` has the limit of the wildcard `{wildcard_text}` in line {line}, which takes it too: \
                     remove it, or give it another limit"
                );
                report.warning(*place, what);
            }
        }
    }

    /// Looks at a rule's limits beside those of the domain's earlier rules with the same action.
    pub fn counters(&mut self, place: Place, path: &[(String, Option<String>)], rule: &RuleSpec, report: &mut Report<'_>) {
        let Limits::All(limits) = &rule.limits else { return };
        let path = path.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
        let action = rule.action.as_deref().map_or_else(|| Action::of_path(path), Action::named).to_string();
        let known = self.actions.entry(action.clone()).or_default();
        for limit in limits {
            let sharing = known.iter().find(|(other, _)| other.shares_a_counter_with(limit));
            let (what, line) = match (sharing, known.first()) {
                (Some((other, line)), _) if other.limit != limit.limit => ("another limit in line {line} for the same hits", line),
                (Some(_), _) | (None, None) => continue,
                (None, Some((other, line))) if other.window == limit.window => {
                    ("another algorithm in line {line}, so each is counted apart", line)
                }
                (None, Some((_, line))) => ("another window in line {line}, so each is counted apart", line),
            };
            let what = what.replace("{line}", &line.to_string());
            report.warning(place, format!("the action `{action}` has {what}: make them the same, or name two actions"));
        }
        known.extend(limits.iter().map(|limit| (limit.clone(), place.line)));
    }
}

/// A literal that differs from a wildcard in its value alone, and not in what it decides or tells.
fn says_the_same(wildcard: &RuleSpec, literal: &RuleSpec) -> bool {
    let as_wildcard = RuleSpec { key: wildcard.key.clone(), value: wildcard.value.clone(), ..literal.clone() };
    let limits = matches!(literal.limits, Limits::All(_)) && !wildcard.share_threshold && literal.action.is_none();
    limits && literal.children.is_empty() && as_wildcard == *wildcard
}
