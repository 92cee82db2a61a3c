//! The table of the rules language: which key stands where, what its value looks like, and what it says. A new key gets its
//! line in `KEYS`; `config::language` reads its value, and `config::schema` makes a JSON Schema of the table.

use super::scalars::nearest;
use crate::limit::{Limit, LogEntries};
use Level::{File, Limit as InLimit, Replaced, Rule};
use Shape::{Algorithm, Anything, Duration, Flag, Lease, MapOrMaps, Maps, Number, Policy, Text, Texts, Unit};

/// The kinds of map that a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    File,
    Rule,
    Limit,
    Replaced,
}

/// A key of the language.
pub(super) struct Key {
    pub name: &'static str,
    pub levels: &'static [Level],
    pub shape: Shape,
    /// What it says, for the schema.
    pub about: &'static str,
}

/// What a key's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Texts,
    Flag,
    /// A whole number, from the first to the second.
    Number(u64, u64),
    Duration,
    Policy,
    Algorithm,
    /// Hits, or a percentage.
    Lease,
    /// One of the reference server's units, in any case.
    Unit,
    Maps(Level),
    /// One map, or a list of them.
    MapOrMaps(Level),
    /// A map of anything.
    Anything,
}

/// Which key stands where, and what it says.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("domain", &[File], Text, "The domain of Envoy's rate-limit filter. A file describes one."),
    key("default", &[File], MapOrMaps(InLimit), "What a descriptor gets that no rule takes; nothing without it."),
    key("descriptors", &[File, Rule], Maps(Rule), "The rules; inside a rule, those for the descriptor's next entry."),
    key("key", &[Rule], Text, "The key of an entry. A * stands for any characters."),
    key("value", &[Rule], Text, "The value of an entry. A * stands for any characters; without a value, each one is counted apart."),
    key("rate_limit", &[Rule], MapOrMaps(InLimit), "The limit, or a list of limits, all of which must fit."),
    key("action", &[Rule], Text, "What is counted, by name. Rules with one action share a client's counter."),
    key("client_id", &[Rule], Texts, "The keys whose values say who is counted, instead of all that the rule leaves open."),
    key("count_denied", &[Rule], Flag, "Whether denied hits count. Without it, charges do (a cost above 1, or a descriptor's own hits_addend)."),
    key("shadow_mode", &[Rule], Flag, "Count and measure, but never deny."),
    key("quota_mode", &[Rule], Flag, "Deny only where all quotas of the request are used up."),
    key("exempt", &[Rule], Flag, "Let the whole request pass, and count nothing."),
    key("share_threshold", &[Rule], Flag, "Count all that this wildcard takes together."),
    key("detailed_metric", &[Rule], Flag, "Label the rule's series with the request's own values, at every level."),
    key("value_to_metric", &[Rule], Flag, "Label the series of this rule, and of those below, with the request's own value at this level."),
    key("metadata", &[Rule], Anything, "Sent to Envoy as dynamic metadata where the descriptor is not over."),
    key("on_store_failure", &[File, Rule], Policy, "Who answers while the store does not."),
    key("algorithm", &[File, Rule, InLimit], Algorithm, "How hits are counted."),
    key("log_entries", &[Rule, InLimit], Number(LogEntries::LEAST as u64, LogEntries::MOST as u64), "The most entries of a sliding_window_log; a limit up to this is exact to the microsecond."),
    key("burst", &[Rule, InLimit], Number(1, Limit::MOST), "How many hits a token bucket takes at once; as many as its limit without it."),
    key("lease", &[Rule, InLimit], Lease, "How many hits, or what share of the limit (2%), a server takes from Redis at once, to decide by without asking."),
    key("unit", &[InLimit], Unit, "The window, as the reference server names it."),
    key("requests_per_unit", &[InLimit], Number(0, u32::MAX as u64), "How many hits the unit may hold."),
    key("limit", &[InLimit], Number(0, Limit::MOST), "How many hits the window may hold."),
    key("window", &[InLimit], Duration, "How long a hit counts: 10s, 5m, 1h30m, 250ms."),
    key("name", &[InLimit, Replaced], Text, "Sent back to Envoy; what `replaces` names."),
    key("unlimited", &[InLimit], Flag, "The descriptor passes; the request's others are still judged."),
    key("replaces", &[InLimit], Maps(Replaced), "The limits, by name, that don't count in a request where this one does."),
];

const fn key(name: &'static str, levels: &'static [Level], shape: Shape, about: &'static str) -> Key {
    Key { name, levels, shape, about }
}

/// The keys that the reference server does not have. It ignores its own in a wrong place, so we may only warn of those; it
/// never loaded a file with one of these.
pub(super) const OURS: &[&str] = &[
    "default",
    "action",
    "client_id",
    "count_denied",
    "exempt",
    "on_store_failure",
    "algorithm",
    "log_entries",
    "burst",
    "lease",
    "limit",
    "window",
];

impl Level {
    /// Where such a map's keys stand, for a message.
    pub(super) fn place(self) -> &'static str {
        match self {
            File => "beside `domain`",
            Rule => "beside `key`",
            InLimit => "inside `rate_limit`",
            Replaced => "inside `replaces`",
        }
    }
}

/// The known key that `text` is probably meant to be. Of two equally near ones, the one that may stand here.
pub(super) fn nearest_key(text: &str, level: Level) -> Option<&'static str> {
    let standing = |here: bool| KEYS.iter().filter(move |key| key.levels.contains(&level) == here).map(|key| key.name);
    nearest(text, standing(true).chain(standing(false)))
}
