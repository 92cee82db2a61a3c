//! A batch of requests as the script takes it, and its reply as verdicts: the one place that knows the interface which
//! decide.lua describes. It knows no connections.

use std::sync::Arc;

use hashbrown::HashMap;
use redis::Value;

use crate::hit::{Hit, Kind, Verdict};
use crate::limit::Algorithm;
use crate::store::algorithm::Terms;
use crate::store::{StoreError, key};

/// One hit, owned: it waits in the queue when its request may be long gone.
pub(super) struct Ask {
    pub key: Box<[u8]>,
    algorithm: u8,
    kind: Kind,
    count_denied: bool,
    refund: bool,
    last: Last,
    pub terms: Terms,
}

/// What ends with a hit.
#[derive(Clone, Copy)]
enum Last {
    Nothing = 0,
    Descriptor = 1,
    Request = 2,
}

/// Requests encoded for one call of the script.
pub(super) struct Batch {
    /// The counters, each once.
    pub keys: Vec<Box<[u8]>>,
    /// The hits, encoded.
    pub encoded: Vec<u8>,
    requests: Vec<Vec<Terms>>,
}

/// The most hits of one request: the script is told a hit's counter in two bytes.
pub(super) const HITS_MAX: usize = 65_535;

/// Bytes of one hit.
const HIT_SIZE: usize = 5 + 2 + 7 * 7;

/// A request's hits, for the queue, on keys that begin with `prefix`.
pub(super) fn asks(hits: &[Hit<'_>], prefix: &str) -> Arc<[Ask]> {
    let ends = hits.iter().skip(1).map(|next| Some(next.descriptor)).chain([None]);
    hits.iter()
        .zip(ends)
        .map(|(hit, next)| Ask {
            key: key::encode(prefix, &hit.counter),
            algorithm: match hit.counter.algorithm {
                Algorithm::SlidingWindowLog { .. } => 1,
                Algorithm::TokenBucket { .. } => 2,
                Algorithm::FixedWindow => 3,
            },
            kind: hit.kind,
            count_denied: hit.count_denied,
            refund: hit.cost.is_refund(),
            last: match next {
                None => Last::Request,
                Some(next) if next != hit.descriptor => Last::Descriptor,
                Some(_) => Last::Nothing,
            },
            terms: Terms::of(hit),
        })
        .collect()
}

impl Batch {
    pub fn new<'q>(requests: impl ExactSizeIterator<Item = &'q [Ask]>) -> Self {
        let mut batch = Self { keys: Vec::new(), encoded: Vec::new(), requests: Vec::with_capacity(requests.len()) };
        let mut places: HashMap<&[u8], u16> = HashMap::new();
        for asks in requests {
            for ask in asks {
                let place = *places.entry(&ask.key).or_insert_with(|| {
                    batch.keys.push(ask.key.clone());
                    // It fits: a batch has a few hundred hits, or is one request of HITS_MAX at most.
                    batch.keys.len() as u16
                });
                ask.write(place, &mut batch.encoded);
            }
            batch.requests.push(asks.iter().map(|ask| ask.terms).collect());
        }
        batch
    }

    /// How many hits it has.
    pub fn hits(&self) -> usize {
        self.encoded.len() / HIT_SIZE
    }

    /// The verdicts of the batch's requests, in order.
    ///
    /// # Errors
    /// A reply of another form than decide.lua's.
    pub fn read(&self, reply: Value) -> Result<Vec<Result<Verdict, StoreError>>, StoreError> {
        let Value::Array(values) = reply else { return Err(malformed()) };
        let mut values = values.into_iter();
        self.requests.iter().map(|hits| read_request(hits, &mut values)).collect()
    }
}

impl Ask {
    fn write(&self, place: u16, out: &mut Vec<u8>) {
        out.reserve(HIT_SIZE);
        let kind = match self.kind {
            Kind::Enforce => 0,
            Kind::Shadow => 1,
            Kind::Quota => 2,
            Kind::QuotaShadow => 3,
        };
        out.extend([self.algorithm, kind, u8::from(self.count_denied), u8::from(self.refund), self.last as u8]);
        out.extend(place.to_be_bytes());
        let Terms { limit, most, window, need, amount, pace, pace_denied } = self.terms;
        for number in [limit, most, window, need, amount, pace, pace_denied] {
            out.extend(&number.to_be_bytes()[1..]);
        }
    }
}

fn read_request(hits: &[Terms], values: &mut impl Iterator<Item = Value>) -> Result<Result<Verdict, StoreError>, StoreError> {
    let admitted = match values.next() {
        Some(Value::Int(admitted)) => admitted == 1,
        Some(Value::BulkString(why)) => return Ok(Err(StoreError::Reply(String::from_utf8_lossy(&why).into_owned()))),
        _ => return Err(malformed()),
    };
    let tallies = hits.iter().map(|terms| match (values.next(), values.next(), values.next()) {
        (Some(Value::Int(over)), Some(Value::Int(used)), Some(Value::Int(wait))) => {
            // A wait of -1 says: never.
            Ok(terms.tally(over == 1, used.unsigned_abs(), u64::try_from(wait).ok()))
        }
        _ => Err(malformed()),
    });
    Ok(Ok(Verdict { admitted, by_denial: false, tallies: tallies.collect::<Result<_, _>>()? }))
}

fn malformed() -> StoreError {
    StoreError::Reply("the script's reply has another form than expected".to_owned())
}
