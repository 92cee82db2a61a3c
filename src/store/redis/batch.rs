//! A batch of requests as the script takes it, and its reply as verdicts: the one place that knows the interface which
//! decide.lua describes. It knows no connections.

use std::ops::Range;
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
#[derive(Clone, Copy, PartialEq, Eq)]
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
    /// In the order in which the script is told of them.
    requests: Vec<Request>,
    /// Each once, in the order of their places.
    counters: Vec<Counted>,
    /// The hits, encoded.
    pub encoded: Vec<u8>,
}

/// A request of a batch.
struct Request {
    asks: Arc<[Ask]>,
    /// Its place among those that the batch was made of.
    number: usize,
    /// Those of its hits among all of the batch.
    hits: Range<usize>,
    plain: bool,
}

/// A counter of a batch.
struct Counted {
    /// The first hit on it: its request, and its place there.
    first: (usize, usize),
    /// There is no other.
    only: bool,
    /// Among the batch's, from 0 on.
    place: Option<usize>,
}

/// Requests of one plain hit each, on the same terms: they are encoded as one.
struct Run<'a> {
    first: &'a Ask,
    /// Where that is encoded.
    at: usize,
    requests: u16,
}

/// The most hits of one request: the script is told a hit's counter in two bytes.
pub(super) const HITS_MAX: usize = 65_535;

/// The fixed window's number for the script.
const FIXED_WINDOW: u8 = 3;

/// The most hits of a request that the script may take without tables for them, one within the other.
const PLAIN_HITS_MAX: usize = 16;

/// Bytes of one hit.
const HIT_SIZE: usize = 1 + 2 + 1 + 2 + 5 * 7 + 4 + 2 * 7;

/// Which of them say for how many requests it stands, 0 where it is not plain.
const RUN_AT: Range<usize> = 1..3;

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

/// Whether a request takes hits, not too many, and is told no more than tallies. It is plain if no other hits are on its counters.
fn is_plain(asks: &[Ask]) -> bool {
    let told = asks.last().is_some_and(|ask| ask.last == Last::Request);
    told && asks.len() <= PLAIN_HITS_MAX && asks.iter().all(|ask| ask.flow == Flow::Taken)
}

/// The counters of some requests, and of each hit which of them is its own.
fn counters(requests: &[Request]) -> (Vec<Counted>, Vec<usize>) {
    let (mut counters, mut counter_of) = (Vec::<Counted>::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
    let mut known: HashMap<&[u8], usize> = HashMap::with_capacity(requests.len());
    for ask in requests.iter().flat_map(|request| &*request.asks) {
        let counter = *known.entry(&ask.key).or_insert(counters.len());
        match counters.get_mut(counter) {
            Some(counted) => counted.only = false,
            None => counters.push(Counted { first: (0, 0), only: true, place: None }),
        }
        counter_of.push(counter);
    }
    (counters, counter_of)
}

impl Batch {
    /// Of requests in the order of their arrival.
    pub fn new(requests: impl IntoIterator<Item = Arc<[Ask]>>) -> Self {
        let mut hits = 0;
        let request = |(number, asks): (usize, Arc<[Ask]>)| {
            let from = hits;
            hits += asks.len();
            Request { asks, number, hits: from..hits, plain: false }
        };
        let mut requests: Vec<Request> = requests.into_iter().enumerate().map(request).collect();
        let (mut counters, counter_of) = counters(&requests);
        for request in &mut requests {
            request.plain = is_plain(&request.asks) && counter_of[request.hits.clone()].iter().all(|counter| counters[*counter].only);
        }
        // Those of one plain hit have their counters for themselves, so it is the same when they are decided: by their terms, for
        // the longest runs, after the others, which keep their order.
        requests.sort_by_key(|request| request.only_plain_hit().map(Ask::told));
        let (mut encoded, mut placed) = (Vec::new(), 0);
        let mut run: Option<Run<'_>> = None;
        for (at, request) in requests.iter().enumerate() {
            let only = request.only_plain_hit();
            let goes_on = matches!((only, &run), (Some(ask), Some(run)) if ask.told() == run.first.told());
            if !goes_on {
                run = only.map(|first| Run { first, at: encoded.len(), requests: 1 });
            }
            for (hit, (ask, counter)) in request.asks.iter().zip(&counter_of[request.hits.clone()]).enumerate() {
                let counted = &mut counters[*counter];
                let place = *counted.place.get_or_insert_with(|| {
                    counted.first = (at, hit);
                    placed += 1;
                    placed - 1
                });
                match &mut run {
                    // Its counter follows the one before it: both have their places from the only hit on them.
                    Some(run) if goes_on => run.go_on(&mut encoded),
                    _ => ask.write(request.plain, request.plain && hit + 1 < request.asks.len(), place, &mut encoded),
                }
            }
        }
        counters.sort_unstable_by_key(|counted| counted.place);
        Self { requests, counters, encoded }
    }

    /// The counters, each once.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.counters.iter().map(|Counted { first: (request, hit), .. }| &*self.requests[*request].asks[*hit].key)
    }

    pub fn hits(&self) -> usize {
        self.requests.iter().map(|request| request.asks.len()).sum()
    }

    /// The answers to the batch's requests, in the order of their arrival.
    ///
    /// # Errors
    /// A reply of another form than decide.lua's.
    pub fn read(&self, reply: Value) -> Result<Vec<Result<Answer, StoreError>>, StoreError> {
        let Value::BulkString(bytes) = reply else { return Err(malformed()) };
        let mut reader = Reader(&bytes);
        let answers = self.requests.iter().map(|request| read_request(&request.asks, &mut reader)).collect::<Option<_>>();
        let answers: Vec<_> = answers.filter(|_| reader.0.is_empty()).ok_or_else(malformed)?;
        if self.requests.is_sorted_by_key(|request| request.number) {
            return Ok(answers);
        }
        let mut numbered: Vec<_> = self.requests.iter().map(|request| request.number).zip(answers).collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        Ok(numbered.into_iter().map(|(_, answer)| answer).collect())
    }
}

impl Request {
    /// The plain hit that is all of it.
    fn only_plain_hit(&self) -> Option<&Ask> {
        match &*self.asks {
            [ask] if self.plain => Some(ask),
            _ => None,
        }
    }
}

impl Run<'_> {
    /// Takes one request more. (A batch has a few hundred at most.)
    fn go_on(&mut self, encoded: &mut [u8]) {
        self.requests += 1;
        encoded[self.at..][RUN_AT].copy_from_slice(&self.requests.to_be_bytes());
    }
}

impl Ask {
    /// Whether a caller waits for it. None does for what is granted ahead of use, or taken back.
    pub fn is_awaited(&self) -> bool {
        matches!(self.flow, Flow::Taken | Flow::GivenBack)
    }

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

    /// What the script is told of a plain hit, but for its counter.
    fn told(&self) -> impl Ord + use<> {
        (self.algorithm, self.kind, self.count_denied, self.terms)
    }

    /// `more`: more hits of its plain request follow. `place`: its counter's among the batch's, from 0 on.
    fn write(&self, plain: bool, more: bool, place: usize, out: &mut Vec<u8>) {
        out.reserve(HIT_SIZE);
        let kind = match self.kind {
            Kind::Enforce => 0,
            Kind::Shadow => 1,
            Kind::Quota => 2,
            Kind::QuotaShadow => 3,
        };
        let Terms { limit, most, window, need, amount, pace, pace_denied } = self.terms;
        out.push(self.algorithm);
        out.extend(u16::from(plain).to_be_bytes());
        out.push(u8::from(more));
        // It fits: a batch has a few hundred hits, or is one request of HITS_MAX at most.
        out.extend((place as u16 + 1).to_be_bytes());
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
        0 => true,
        1 => false,
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

    const MORE_AT: usize = 3;
    const PLACE_AT: Range<usize> = 4..6;

    /// A hit on that client's counter.
    fn hit(client: &str) -> Hit<'_> {
        let (client, algorithm) = ([client].into_iter().collect(), Algorithm::default());
        let counter = Counter { domain: "d", client, action: Action::named("a"), algorithm, window: Window::MINUTE };
        let (limit, cost) = (Limit::from(1), Cost::take(1));
        Hit { descriptor: 0, kind: Kind::Enforce, counter, limit, cost, count_denied: false, on_store_failure: None, lease: None }
    }

    /// What each encoded hit says: for how many requests it stands, whether more of its own follow, and its counter's place.
    fn runs(batch: &Batch) -> Vec<(u16, u8, u16)> {
        let number = |bytes: &[u8]| u16::from_be_bytes(bytes.try_into().unwrap());
        batch.encoded.chunks(HIT_SIZE).map(|hit| (number(&hit[RUN_AT]), hit[MORE_AT], number(&hit[PLACE_AT]))).collect()
    }

    #[test]
    fn plain_are_requests_that_take_hits_with_no_others_of_the_batch_on_their_counters() {
        let taken = |clients: &[&str]| asks(&clients.iter().copied().map(hit).collect::<Vec<_>>(), "");
        let elsewhere = taken(&["f", "g", "h"]);
        let batch = Batch::new([
            taken(&["a"]),
            taken(&["b", "c"]),
            taken(&["a"]),
            taken(&["d"]),
            asks(&[Hit { cost: Cost::refund(1), ..hit("e") }], ""),
            part(elsewhere[..1].iter()),
            take_back([(&elsewhere[1], 0)].into_iter()),
            grant(&elsewhere[2], 1, &[]),
            taken(&["i", "i"]),
            taken(&["j", "k", "l"]),
            asks(&[hit("m"), Hit { cost: Cost::refund(1), ..hit("n") }], ""),
            taken(&["o", "a"]),
        ]);
        let plain: Vec<(u16, u8)> = runs(&batch).into_iter().map(|(run, more, _)| (run, more)).collect();
        let [a, bc, d, jkl] = [&[(0, 0)][..], &[(1, 1), (1, 0)], &[(1, 0)], &[(1, 1), (1, 1), (1, 0)]];
        assert_eq!(plain, [a, bc, a, &[(0, 0); 6], jkl, &[(0, 0); 4], d].concat(), "what is alone on its counter comes last");
        assert_eq!((batch.keys().len(), batch.hits()), (15, 18));
    }

    #[test]
    fn a_request_of_many_hits_is_not_plain() {
        let clients: Vec<String> = (0..=PLAIN_HITS_MAX).map(|number| number.to_string()).collect();
        let hits: Vec<_> = clients.iter().map(|client| hit(client)).collect();
        let plain = |hits: &[Hit<'_>]| runs(&Batch::new([asks(hits, "")])).iter().all(|(run, ..)| *run == 1);
        assert!(plain(&hits[1..]));
        assert!(!plain(&hits));
    }

    fn under(limit: u32, client: &str) -> Arc<[Ask]> {
        asks(&[Hit { limit: Limit::from(limit), ..hit(client) }], "")
    }

    #[test]
    fn plain_hits_on_the_same_terms_are_encoded_as_one_whatever_comes_between() {
        let [a, b, c, d, e, f, g, h, i] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|client| under(1, client));
        let denied_too = asks(&[Hit { count_denied: true, ..hit("y") }], "");
        let shadow = asks(&[Hit { kind: Kind::Shadow, ..hit("z") }], "");
        let twice = d.clone();
        let batch = Batch::new([a, b, c, d, twice, e, f, under(2, "x"), g, denied_too, h, shadow, i]);
        let seen = [(0, 1), (0, 1), (8, 2), (1, 10), (1, 11), (1, 12)];
        assert_eq!(runs(&batch), seen.map(|(run, place)| (run, 0, place)));
        assert_eq!((batch.keys().len(), batch.hits()), (12, 13));
        // A key reads 1{d|CLIENT}...
        let clients: String = batch.keys().map(|key| char::from(key[4])).collect();
        assert_eq!(clients, "dabcefghixyz");
    }

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let two = asks(&[hit("e"), hit("f")], "");
        let batch = Batch::new([under(2, "a"), under(1, "b"), two, under(2, "c"), under(1, "d")]);
        assert_eq!(runs(&batch), [(1, 1, 1), (1, 0, 2), (2, 0, 3), (2, 0, 5)]);
        let told = |used: u64| [&[0][..], &used.to_be_bytes()[1..], &[0; 7]].concat();
        let one = |used| [vec![0], told(used)].concat();
        let refused = [&[2, 0, 2][..], b"no"].concat();
        let mut reply = [vec![0], told(1), told(2), one(3), refused, one(5), one(6)].concat();
        let used: Vec<Result<Vec<u64>, StoreError>> = (batch.read(Value::BulkString(reply.clone())).unwrap().into_iter())
            .map(|answer| Ok(answer?.verdict.tallies.iter().map(|tally| tally.used).collect()))
            .collect();
        let no = Err(StoreError::Reply("no".to_owned()));
        assert_eq!(used, [Ok(vec![5]), Ok(vec![3]), Ok(vec![1, 2]), Ok(vec![6]), no]);
        reply.pop();
        assert!(batch.read(Value::BulkString(reply)).is_err(), "it ends too soon");
    }
}
