//! A batch of requests as the script takes it, and its reply as verdicts: the one place that knows the interface which
//! decide.lua describes. It knows no connections.

use std::sync::Arc;

use hashbrown::HashMap;
use redis::Value;

use crate::hit::{Hit, Kind, Tally, Verdict};
use crate::limit::Algorithm;
use crate::store::algorithm::Terms;
use crate::store::{StoreError, key};

/// One hit, owned: it waits in the queue when its request may be long gone.
#[derive(Clone)]
pub(super) struct Ask {
    pub key: Box<[u8]>,
    algorithm: u8,
    /// Its place in the request.
    pub descriptor: usize,
    pub kind: Kind,
    count_denied: bool,
    flow: Flow,
    last: Last,
    pub terms: Terms,
}

/// Which way hits go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Taken = 0,
    GivenBack = 1,
    /// From where they were recorded, which `need` then says.
    TakenBack = 2,
    /// As many as fit.
    Granted = 3,
}

/// What ends with a hit.
#[derive(Clone, Copy)]
enum Last {
    Nothing = 0,
    Descriptor = 1,
    Request = 2,
    /// A part of one: the answer says where its hits are recorded.
    Part = 3,
}

/// What the script says of a request.
pub(super) struct Answer {
    pub verdict: Verdict,
    /// Of a part of a request: where each hit is recorded, if it is.
    pub recorded_at: Vec<u64>,
    pub grant: Option<Grant>,
}

/// Hits taken ahead of use.
pub(super) struct Grant {
    pub hits: u64,
    /// What is left beside them, and when more will be.
    pub tally: Tally,
    pub recorded_at: u64,
    /// For how long from the moment of the decision, in microseconds.
    pub lasts: u64,
}

/// Requests encoded for one call of the script.
pub(super) struct Batch {
    requests: Vec<Arc<[Ask]>>,
    /// The counters, each once: the first hit on each, as its request and its place there.
    first_hits: Vec<(usize, usize)>,
    /// The hits, encoded.
    pub encoded: Vec<u8>,
}

/// The most hits of one request: the script is told a hit's counter in two bytes.
pub(super) const HITS_MAX: usize = 65_535;

/// The fixed window's number for the script.
const FIXED_WINDOW: u8 = 3;

/// Bytes of one hit.
const HIT_SIZE: usize = 2 + 2 + 5 * 7 + 4 + 2 * 7;

/// Which of them says that it is plain.
const PLAIN_AT: usize = 1;

/// A request's hits, for the queue, on keys that begin with `prefix`.
pub(super) fn asks(hits: &[Hit<'_>], prefix: &str) -> Arc<[Ask]> {
    let ends = hits.iter().skip(1).map(|next| Some(next.descriptor)).chain([None]);
    hits.iter()
        .zip(ends)
        .map(|(hit, next)| Ask {
            key: key::encode(prefix, &hit.counter).into_boxed_slice(),
            algorithm: match hit.counter.algorithm {
                Algorithm::SlidingWindowLog { .. } => 1,
                Algorithm::TokenBucket { .. } => 2,
                Algorithm::FixedWindow => FIXED_WINDOW,
            },
            descriptor: hit.descriptor,
            kind: hit.kind,
            count_denied: hit.count_denied,
            flow: if hit.cost.is_refund() { Flow::GivenBack } else { Flow::Taken },
            last: match next {
                None => Last::Request,
                Some(next) if next != hit.descriptor => Last::Descriptor,
                Some(_) => Last::Nothing,
            },
            terms: Terms::of(hit),
        })
        .collect()
}

/// Those of a request's hits that are decided apart from the others. There a quota can't deny: it takes all of them to know.
pub(super) fn part<'a>(asks: impl Iterator<Item = &'a Ask> + Clone) -> Arc<[Ask]> {
    let ends = asks.clone().skip(1).map(|next| Some(next.descriptor)).chain([None]);
    asks.zip(ends)
        .map(|(ask, next)| Ask {
            kind: if ask.kind.is_quota() { Kind::Shadow } else { ask.kind },
            last: match next {
                None => Last::Part,
                Some(next) if next != ask.descriptor => Last::Descriptor,
                Some(_) => Last::Nothing,
            },
            ..ask.clone()
        })
        .collect()
}

/// Takes hits back, as if they had never been, each from where it was recorded.
pub(super) fn take_back<'a>(recorded: impl Iterator<Item = (&'a Ask, u64)>) -> Arc<[Ask]> {
    let mut asks: Vec<_> = recorded
        .map(|(ask, at)| Ask {
            kind: Kind::Shadow,
            count_denied: false,
            flow: Flow::TakenBack,
            last: Last::Descriptor,
            terms: Terms { need: at, ..ask.terms },
            ..ask.clone()
        })
        .collect();
    if let Some(ask) = asks.last_mut() {
        ask.last = Last::Request;
    }
    asks.into()
}

/// Asks for so many hits ahead of use, once others, each with the hits and where they were recorded, are taken back.
pub(super) fn grant(ask: &Ask, hits: u64, unspent: &[(u64, u64)]) -> Arc<[Ask]> {
    let of = |flow, terms, last| Ask { kind: Kind::Shadow, count_denied: false, flow, last, terms, ..ask.clone() };
    let back = unspent.iter().map(|(amount, at)| of(Flow::TakenBack, Terms { amount: *amount, need: *at, ..ask.terms }, Last::Descriptor));
    back.chain([of(Flow::Granted, Terms { amount: hits, need: 1, ..ask.terms }, Last::Part)]).collect()
}

/// Takes back what was granted and not spent: hits, and where they were recorded.
pub(super) fn give_back(ask: &Ask, unspent: &[(u64, u64)]) -> Arc<[Ask]> {
    let asks: Vec<_> = unspent.iter().map(|(amount, _)| Ask { terms: Terms { amount: *amount, ..ask.terms }, ..ask.clone() }).collect();
    take_back(asks.iter().zip(unspent.iter().map(|(_, at)| *at)))
}

impl Batch {
    pub fn new(requests: Vec<Arc<[Ask]>>) -> Self {
        let (mut first_hits, mut encoded) = (Vec::new(), Vec::<u8>::new());
        // Of each counter its place, and where its first hit is encoded.
        let mut places: HashMap<&[u8], (u16, usize)> = HashMap::new();
        for (request, asks) in requests.iter().enumerate() {
            for (hit, ask) in asks.iter().enumerate() {
                let at = encoded.len();
                let (place, first_at) = *places.entry(&ask.key).or_insert_with(|| {
                    first_hits.push((request, hit));
                    // It fits: a batch has a few hundred hits, or is one request of HITS_MAX at most.
                    (first_hits.len() as u16, at)
                });
                let alone = first_at == at;
                ask.write(alone && asks.len() == 1 && ask.is_plain(), place, &mut encoded);
                if !alone {
                    encoded[first_at + PLAIN_AT] = 0;
                }
            }
        }
        drop(places);
        Self { requests, first_hits, encoded }
    }

    /// The counters, each once.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.first_hits.iter().map(|(request, hit)| &*self.requests[*request][*hit].key)
    }

    /// How many hits it has.
    pub fn hits(&self) -> usize {
        self.encoded.len() / HIT_SIZE
    }

    /// The answers to the batch's requests, in order.
    ///
    /// # Errors
    /// A reply of another form than decide.lua's.
    pub fn read(&self, reply: Value) -> Result<Vec<Result<Answer, StoreError>>, StoreError> {
        let Value::BulkString(bytes) = reply else { return Err(malformed()) };
        let mut reader = Reader(&bytes);
        let answers = self.requests.iter().map(|asks| read_request(asks, &mut reader)).collect::<Option<_>>();
        answers.filter(|_| reader.0.is_empty()).ok_or_else(malformed)
    }
}

impl Ask {
    pub fn is_refund(&self) -> bool {
        self.flow == Flow::GivenBack
    }

    /// Whether a denial of it would change nothing in its counter.
    pub fn leaves_nothing_when_denied(&self) -> bool {
        !self.count_denied && !self.is_refund()
    }

    /// Whether it is recorded if its request is admitted, and only then.
    pub fn is_ordinary(&self) -> bool {
        self.leaves_nothing_when_denied() && self.terms.amount > 0
    }

    /// Whether an empty counter has nothing to wait for.
    pub fn is_free_when_empty(&self) -> bool {
        self.algorithm != FIXED_WINDOW
    }

    /// Whether it takes hits, and its request ends with it and is told no more than tallies. (Whether it is all of the request is
    /// not known here.)
    fn is_plain(&self) -> bool {
        matches!((self.flow, self.last), (Flow::Taken, Last::Request))
    }

    fn write(&self, plain: bool, place: u16, out: &mut Vec<u8>) {
        out.reserve(HIT_SIZE);
        let kind = match self.kind {
            Kind::Enforce => 0,
            Kind::Shadow => 1,
            Kind::Quota => 2,
            Kind::QuotaShadow => 3,
        };
        let Terms { limit, most, window, need, amount, pace, pace_denied } = self.terms;
        out.extend([self.algorithm, u8::from(plain)]);
        out.extend(place.to_be_bytes());
        for number in [limit, window, need, amount, pace] {
            out.extend(&number.to_be_bytes()[1..]);
        }
        out.extend([kind, u8::from(self.count_denied), self.flow as u8, self.last as u8]);
        for number in [most, pace_denied] {
            out.extend(&number.to_be_bytes()[1..]);
        }
    }
}

/// A reply, as far as it is not read yet. None: it ends too soon.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn bytes(&mut self, count: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A big-endian number of so many bytes, 8 at most.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// None: it has another form.
fn read_request(asks: &[Ask], reader: &mut Reader<'_>) -> Option<Result<Answer, StoreError>> {
    let admitted = match reader.number(1)? {
        0 => false,
        1 => true,
        2 => {
            let length = reader.number(2)? as usize;
            return Some(Err(StoreError::Reply(String::from_utf8_lossy(reader.bytes(length)?).into_owned())));
        }
        _ => return None,
    };
    let tallies = asks.iter().map(|Ask { terms, .. }| {
        let (over, used, wait) = (reader.number(1)?, reader.number(7)?, reader.number(7)?);
        Some(terms.tally(over == 1, used, wait.checked_sub(1)))
    });
    let verdict = Verdict { admitted, by_denial: false, tallies: tallies.collect::<Option<_>>()? };
    let (last, mut grant) = (asks.last(), None);
    let is_part = last.is_some_and(|ask| matches!(ask.last, Last::Part));
    let recorded_at: Vec<u64> = asks.iter().filter(|_| is_part).map(|_| reader.number(7)).collect::<Option<_>>()?;
    let is_grant = last.is_some_and(|ask| matches!(ask.flow, Flow::Granted));
    if let (true, Some(tally), Some(at)) = (is_grant, verdict.tallies.last(), recorded_at.last()) {
        let (hits, lasts) = (reader.number(7)?, reader.number(7)?);
        grant = Some(Grant { hits, tally: *tally, recorded_at: *at, lasts });
    }
    Some(Ok(Answer { verdict, recorded_at, grant }))
}

fn malformed() -> StoreError {
    StoreError::Reply("the script's reply has another form than expected".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hit::{Action, Counter};
    use crate::limit::{Cost, Limit, Window};

    #[test]
    fn a_hit_is_plain_where_it_is_all_of_its_request_and_no_other_one_of_the_batch_is_on_its_counter() {
        let asked = |clients: &[&'static str], cost: Cost| {
            let hit = |client| {
                let (client, algorithm) = ([client].into_iter().collect(), Algorithm::default());
                let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm, window: Window::MINUTE };
                let limit = Limit::from(1);
                Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
            };
            asks(&clients.iter().copied().map(hit).collect::<Vec<_>>(), "")
        };
        let taken = |clients: &[&'static str]| asked(clients, Cost::take(1));
        let elsewhere = taken(&["f", "g", "h"]);
        let batch = Batch::new(vec![
            taken(&["a"]),
            taken(&["b", "c"]),
            taken(&["a"]),
            taken(&["d"]),
            asked(&["e"], Cost::refund(1)),
            part(elsewhere[..1].iter()),
            take_back([(&elsewhere[1], 0)].into_iter()),
            grant(&elsewhere[2], 1, &[]),
            taken(&["i", "i"]),
        ]);
        let plain: Vec<u8> = batch.encoded.chunks(HIT_SIZE).map(|hit| hit[PLAIN_AT]).collect();
        assert_eq!(plain, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "d alone");
        assert_eq!(batch.keys().len(), 9);
    }
}
