//! A request as it was received, in plain data: a domain and descriptors, each a list of entries. Whoever decodes a
//! foreign format (protobuf, JSON) builds one of these; [`Request::new`] is the one place that judges whether it may
//! be asked at all. It knows no rules; `rules` turns it into hits.

use crate::limit::{Cost, Limit, Window};

/// One question: may this pass? Never without a domain or a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    domain: String,
    descriptors: Vec<Descriptor>,
    hits_addend: u32,
}

/// One thing to be judged. Its entries may be none (Envoy sends that), and their keys and values may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub entries: Vec<Entry>,
    /// A limit that the request brings along; it wins over the rules'.
    pub limit: Option<LimitOverride>,
    /// Wins over the request's; 0 is a peek.
    pub hits_addend: Option<u64>,
    /// The hits are given back instead of taken.
    pub is_negative_hits: bool,
}

/// A key and its value, compared as two strings, never joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
}

/// A limit inside a request's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOverride {
    Limit {
        limit: Limit,
        window: Window,
    },
    /// Its unit is UNKNOWN or undefined, or its unit times its multiplier (both as sent) is nothing or above 10 years: it
    /// is dropped, and the rules apply.
    NoWindow {
        unit: i32,
        multiplier: u32,
    },
}

/// The most that one request may hold. Only counts are bounded; long keys and values are not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    pub descriptors: usize,
    pub entries_per_descriptor: usize,
}

/// Why a request can't be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the domain must not be empty: set `domain` in the rate-limit filter")]
    EmptyDomain,
    #[error("the descriptor list must not be empty: a request needs at least one descriptor")]
    NoDescriptors,
    #[error("{found} descriptors in one request; at most {bound} are accepted (MAX_DESCRIPTORS)")]
    TooManyDescriptors { found: usize, bound: usize },
    #[error("descriptor {descriptor} has {found} entries; at most {bound} are accepted (MAX_ENTRIES)")]
    TooManyEntries { descriptor: usize, found: usize, bound: usize },
}

impl Request {
    /// # Errors
    /// An empty domain, no descriptors, or more descriptors or entries than `bounds` allow.
    pub fn new(domain: String, descriptors: Vec<Descriptor>, hits_addend: u32, bounds: RequestBounds) -> Result<Self, RequestError> {
        if domain.is_empty() {
            return Err(RequestError::EmptyDomain);
        }
        if descriptors.is_empty() {
            return Err(RequestError::NoDescriptors);
        }
        if descriptors.len() > bounds.descriptors {
            return Err(RequestError::TooManyDescriptors { found: descriptors.len(), bound: bounds.descriptors });
        }
        for (descriptor, Descriptor { entries, .. }) in descriptors.iter().enumerate() {
            if entries.len() > bounds.entries_per_descriptor {
                let (found, bound) = (entries.len(), bounds.entries_per_descriptor);
                return Err(RequestError::TooManyEntries { descriptor, found, bound });
            }
        }
        Ok(Self { domain, descriptors, hits_addend })
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// As it was sent; 0 where it was not.
    pub fn hits_addend(&self) -> u32 {
        self.hits_addend
    }

    /// What each hit of `descriptor` weighs: its own hits_addend, else the request's, whose 0 means 1.
    pub fn cost(&self, descriptor: &Descriptor) -> Cost {
        let hits = descriptor.hits_addend.unwrap_or(u64::from(self.hits_addend.max(1)));
        if descriptor.is_negative_hits { Cost::refund(hits) } else { Cost::take(hits) }
    }
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self { descriptors: 1_024, entries_per_descriptor: 64 }
    }
}

impl Entry {
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(hits_addend: u32, own: Option<u64>, is_negative_hits: bool) -> Cost {
        let descriptor = Descriptor { hits_addend: own, is_negative_hits, ..Descriptor::default() };
        let request = Request::new("d".into(), vec![descriptor], hits_addend, RequestBounds::default()).unwrap();
        request.cost(&request.descriptors()[0])
    }

    #[test]
    fn a_descriptors_hits_addend_wins_over_the_requests_and_the_requests_0_means_1() {
        assert_eq!(ask(0, None, false), Cost::Take(1));
        assert_eq!(ask(u32::MAX, None, false), Cost::Take(u64::from(u32::MAX)));
        assert_eq!(ask(3, Some(0), false), Cost::Take(0));
        assert_eq!(ask(3, Some(9), true), Cost::Refund(9));
        assert_eq!(ask(3, None, true), Cost::Refund(3));
    }

    #[test]
    fn only_counts_are_refused() {
        let bounds = RequestBounds { descriptors: 2, entries_per_descriptor: 1 };
        let with = |domain: &str, descriptors: Vec<Descriptor>| Request::new(domain.into(), descriptors, 1, bounds).map(|_| ());
        let entry = || Entry::new("", "");
        let wide = Descriptor { entries: vec![entry(), entry()], ..Descriptor::default() };
        assert_eq!(with("", vec![Descriptor::default()]), Err(RequestError::EmptyDomain));
        assert_eq!(with("d", vec![]), Err(RequestError::NoDescriptors));
        assert_eq!(with("d", vec![Descriptor::default(); 3]), Err(RequestError::TooManyDescriptors { found: 3, bound: 2 }));
        assert_eq!(with("d", vec![Descriptor::default(), wide]), Err(RequestError::TooManyEntries { descriptor: 1, found: 2, bound: 1 }));
        let long = Descriptor { entries: vec![Entry::new("k".repeat(1 << 20), "")], ..Descriptor::default() };
        assert_eq!(with("d", vec![long]), Ok(()));
    }
}
