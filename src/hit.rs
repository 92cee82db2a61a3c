//! The two sides of a store's one call: a [`Hit`] is one thing to count on one [`Counter`], a [`Tally`] is what the
//! store says of it, and a [`Verdict`] is a whole request's. Plain data between `rules` (which makes hits), `store`
//! (which judges and records them) and `limiter` (which makes a decision of the tallies).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use smallvec::SmallVec;

use crate::limit::{Algorithm, Cost, Lease, Limit, Window};

/// What hits add up in. The limit is no part of it: a changed limit judges the hits already recorded, a changed window
/// or algorithm starts anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counter<'a> {
    pub domain: &'a str,
    pub client: Client<'a>,
    pub action: Action<'a>,
    pub algorithm: Algorithm,
    pub window: Window,
}

/// Who is counted: the ordered list of values that the rule left open. The empty list is not the list of one empty value.
pub type Client<'a> = SmallVec<[&'a str; 4]>;

/// What is counted, as text: a rule's own path of keys and fixed values (`path=/export|client`), or a name. Keys,
/// values and names are escaped in it, so that two different paths never read alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action<'a>(Cow<'a, str>);

/// One thing to count. A request's hits are a slice of these, all hits of one descriptor side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    /// The index, in the request, of the descriptor that it belongs to.
    pub descriptor: usize,
    pub kind: Kind,
    pub counter: Counter<'a>,
    pub limit: Limit,
    /// Of a descriptor's hits, all are refunds or none is.
    pub cost: Cost,
    /// The hit is recorded although it, or its request, is denied.
    pub count_denied: bool,
    /// Who answers for it while the store does not; None: whoever answers for the process.
    pub on_store_failure: Option<FailurePolicy>,
    /// It may be decided by hits that were taken from Redis ahead of use, at most so many at once. All hits of its counter are
    /// then recorded in the lease's ticks.
    pub lease: Option<Lease>,
}

/// Who answers while the store does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// This server enforces the limits by itself, in memory.
    #[default]
    Local,
    /// The hit fits.
    Allow,
    /// The hit does not fit.
    Deny,
    /// The caller gets the error.
    Error,
}

/// No word of [`FailurePolicy`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of local, allow, deny, error")]
pub struct UnknownPolicy(String);

/// What a descriptor that is over its limit does to the request. The same for all hits of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It denies the request.
    #[default]
    Enforce,
    /// Nothing: it is counted and measured only.
    Shadow,
    /// It denies the request if every quota descriptor of the request is over.
    Quota,
    /// A quota descriptor that counts as one that fits.
    QuotaShadow,
}

/// How a request's descriptors have fared so far; it decides whether the request is admitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ballot {
    denied: bool,
    quotas: u32,
    quotas_fitting: u32,
}

/// What the store says of one hit, once its request was decided: all numbers are those after the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// It did not fit.
    pub over: bool,
    /// What the counter holds: more than the limit where denied hits count, or where the limit was lowered. Of a token
    /// bucket its level, rounded up to whole hits.
    pub used: u64,
    /// What is left of the limit, or of a token bucket's burst, never below 0.
    pub remaining: u64,
    /// When within: until a log's oldest counted entry leaves, until a token bucket has room for one hit more, 0 if they
    /// are empty; until a fixed window ends. When over: until this cost fits, if nobody else takes it, together with
    /// what the request's earlier hits that fitted asked of the same counter, since all of it is asked again; the window
    /// where it never can.
    pub reset: Duration,
}

/// What the store says of one request: whether it is admitted, and one tally for each hit, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub admitted: bool,
    /// A remembered denial answered, and the store was not asked.
    pub by_denial: bool,
    pub tallies: Tallies,
}

pub type Tallies = SmallVec<[Tally; 2]>;

impl<'a> Action<'a> {
    /// The action of that name.
    pub fn named(name: &'a str) -> Self {
        let mut text = Cow::Borrowed(name);
        if name.bytes().any(|byte| SPECIAL.contains(&byte)) {
            let mut escaped = String::with_capacity(name.len() + 8);
            escape(name, |part| escaped.push_str(part));
            text = Cow::Owned(escaped);
        }
        Self(text)
    }

    /// The action of a rule at the end of this path: a key each, and its value where the rule fixes one (a wildcard
    /// as written).
    pub fn of_path<'p>(path: impl IntoIterator<Item = (&'p str, Option<&'p str>)>) -> Action<'static> {
        let mut text = String::new();
        write_path(path, &mut text);
        Action(Cow::Owned(text))
    }

    /// The action of a limit that came with the request, on a descriptor of these keys: never a rule's.
    pub fn of_override<'p>(keys: impl IntoIterator<Item = &'p str>) -> Action<'static> {
        let mut text = String::from("%limit");
        for key in keys {
            text.push('|');
            escape(key, |part| text.push_str(part));
        }
        Action(Cow::Owned(text))
    }

    /// The same action, borrowed.
    pub fn borrowed(&self) -> Action<'_> {
        Action(Cow::Borrowed(&self.0))
    }

    pub fn into_owned(self) -> Action<'static> {
        Action(Cow::Owned(self.0.into_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Kind {
    pub fn is_quota(self) -> bool {
        matches!(self, Self::Quota | Self::QuotaShadow)
    }

    pub fn is_shadow(self) -> bool {
        matches!(self, Self::Shadow | Self::QuotaShadow)
    }
}

impl Hit<'_> {
    /// The tally of a hit that nobody was asked about, because something else answered for its request: it fits.
    pub fn unasked(&self) -> Tally {
        Tally { over: false, used: 0, remaining: self.limit.get(), reset: Duration::ZERO }
    }
}

impl Ballot {
    /// Takes one descriptor's outcome: over, where any of its limits is.
    pub fn cast(&mut self, kind: Kind, over: bool) {
        self.denied |= over && kind == Kind::Enforce;
        if kind.is_quota() {
            self.quotas += 1;
            self.quotas_fitting += u32::from(!over || kind.is_shadow());
        }
    }

    /// No enforcing descriptor is over, and of the quota descriptors, where there are any, at least one fits.
    pub fn admits(self) -> bool {
        !self.denied && (self.quotas == 0 || self.quotas_fitting > 0)
    }
}

impl FailurePolicy {
    pub const ALL: [Self; 4] = [Self::Local, Self::Allow, Self::Deny, Self::Error];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
        }
    }
}

impl FromStr for FailurePolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// The characters that stand for themselves nowhere in an action or a store key.
const SPECIAL: [u8; 5] = *b"%|={}";

/// Tells `out`, part by part, `text` with each special character as % and its two hex digits. Different texts stay different, and the
/// result holds none of `|`, `=`, `{` and `}`.
pub(crate) fn escape(text: &str, mut out: impl FnMut(&str)) {
    let mut rest = text;
    // Each is one byte, and no byte of another character's.
    while let Some(at) = rest.bytes().position(|byte| SPECIAL.contains(&byte)) {
        out(&rest[..at]);
        out(match rest.as_bytes()[at] {
            b'%' => "%25",
            b'|' => "%7C",
            b'=' => "%3D",
            b'{' => "%7B",
            _ => "%7D",
        });
        rest = &rest[at + 1..];
    }
    out(rest);
}

fn write_path<'p>(path: impl IntoIterator<Item = (&'p str, Option<&'p str>)>, text: &mut String) {
    for (depth, (key, value)) in path.into_iter().enumerate() {
        if depth > 0 {
            text.push('|');
        }
        escape(key, |part| text.push_str(part));
        if let Some(value) = value {
            text.push('=');
            escape(value, |part| text.push_str(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_paths_and_names_never_read_alike() {
        let paths: [&[(&str, Option<&str>)]; 8] = [
            &[("a", None)],
            &[("a", None), ("b", None)],
            &[("a|b", None)],
            &[("a", Some("b"))],
            &[("a=b", None)],
            &[("a", Some(""))],
            &[("a%7Cb", None)],
            &[("a", Some("b|c")), ("d", None)],
        ];
        let mut texts: Vec<String> = paths.iter().map(|path| Action::of_path(path.iter().copied()).as_str().to_owned()).collect();
        texts.push(Action::of_override(["a"]).as_str().to_owned());
        texts.push(Action::of_override(["a", "b"]).as_str().to_owned());
        texts.push(Action::named("limit|a").as_str().to_owned());
        let count = texts.len();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), count, "{texts:?}");
    }

    #[test]
    fn one_enforcing_descriptor_denies_and_quotas_deny_together() {
        use Kind::{Enforce, Quota, QuotaShadow, Shadow};
        for (descriptors, admitted) in [
            (&[][..], true),
            (&[(Enforce, false)], true),
            (&[(Enforce, false), (Enforce, true)], false),
            (&[(Shadow, true)], true),
            (&[(Quota, true)], false),
            (&[(Quota, true), (Quota, false)], true),
            (&[(Quota, true), (Quota, true), (Enforce, false)], false),
            (&[(Quota, true), (QuotaShadow, true)], true),
            (&[(Quota, false), (Enforce, true)], false),
        ] {
            let mut ballot = Ballot::default();
            descriptors.iter().for_each(|(kind, over)| ballot.cast(*kind, *over));
            assert_eq!(ballot.admits(), admitted, "{descriptors:?}");
        }
    }

    #[test]
    fn a_name_without_special_characters_stays_as_it_is() {
        assert_eq!(Action::named("login").as_str(), "login");
        assert_eq!(Action::named("{a}|b=%").as_str(), "%7Ba%7D%7Cb%3D%25");
    }
}
