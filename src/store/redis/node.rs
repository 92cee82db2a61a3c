//! One Redis as one runtime asks it: requests never queue for a connection. Those that arrive while a batch is under way
//! form the next one (group commit), which goes out as one call; to a node of a Cluster as one call for each slot, together.
//! Connecting is nobody's request: those that wait for it give up at their deadlines, and it goes on. `batch.rs` writes and
//! reads a call, `link.rs` carries it, `breaker.rs` says whether it is asked at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bb8_redis::bb8::Pool;
use hashbrown::HashMap;
use parking_lot::Mutex;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::batch::{self, Answer, Ask, Batch};
use super::breaker::{Breaker, CONNECT_MAX};
use super::link::{Call, Link, Links, Trouble};
use crate::metrics::{RedisSeries, Stage};
use crate::store::StoreError;
use crate::store::denial::Denials;

pub(super) struct Node {
    queue: Mutex<Queue>,
    links: Pool<Links>,
    /// Those of all nodes of the runtime that are at work.
    caretakers: Arc<AtomicUsize>,
    breaker: Arc<Breaker>,
    denials: Arc<Denials>,
    timeout: Duration,
    pub series: RedisSeries,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// A task takes batches from the queue until it is empty.
    taken_care_of: bool,
    connecting_since: Option<Instant>,
    /// How many waiting requests the series knows of.
    told: usize,
}

/// A request, or the part of one that lies in one slot.
#[derive(Clone)]
pub(super) struct Errand {
    pub asks: Arc<[Ask]>,
    /// 0 where the node is alone.
    pub slot: u16,
    pub manner: Manner,
}

/// How a request goes to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// In one call with the others in its slot.
    Batched,
    /// In a call of its own.
    Alone,
    /// The same, to a node that only takes over the slot, and has to be told so.
    Asking,
}

/// Why a node gives no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Failed(StoreError),
    /// Another node serves the slot; the request was not decided. `host:port`.
    #[error("MOVED to {0}, and again")]
    Moved(Box<str>),
    /// Another node takes the slot over, and has the key already, or is to make it; the request was not decided.
    #[error("ASK at {0}, and again")]
    Ask(Box<str>),
    /// Of the call's keys some have gone to another node and some have not; nothing was decided.
    #[error("TRYAGAIN: the request's counters are on their way to another node")]
    TryAgain,
}

/// The answer to come to a request in the queue.
pub(super) struct Pending(oneshot::Receiver<Outcome>);

type Outcome = Result<Answer, Refusal>;

/// A request in the queue.
struct Waiting {
    errand: Errand,
    deadline: Instant,
    /// Whoever asked may have gone away: then nobody listens.
    reply: oneshot::Sender<Outcome>,
}

/// Connections for each runtime. One is enough: it carries whole batches, one after the other.
const CONNECTIONS: u32 = 1;

/// Requests that may wait for the next batch. Beyond, the failure policy answers at once, and the breaker opens.
const QUEUE_MAX: usize = 8_192;

/// Hits that one batch decides, unless a single request has more. Bounds how long Redis is kept busy.
const BATCH_HITS_MAX: usize = 256;

/// Calls of one batch, for as many slots. They cost Redis more than hits do.
const BATCH_CALLS_MAX: usize = 64;

impl Node {
    pub fn new(
        breaker: Arc<Breaker>,
        denials: Arc<Denials>,
        links: Links,
        caretakers: Arc<AtomicUsize>,
        timeout: Duration,
        series: RedisSeries,
    ) -> Self {
        // No check at checkout and no ageing: a link is found out to be broken, and connected anew, by its user.
        let links = Pool::builder()
            .max_size(CONNECTIONS)
            .test_on_check_out(false)
            .retry_connection(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(timeout)
            .build_unchecked(links);
        Self { queue: Mutex::default(), links, caretakers, breaker, denials, timeout, series }
    }

    pub fn is_behind(&self, breaker: &Arc<Breaker>) -> bool {
        Arc::ptr_eq(&self.breaker, breaker)
    }

    /// Puts a request into the queue. Once its batch is sent, its hits are counted whether or not the caller still waits.
    pub fn start(self: &Arc<Self>, errand: Errand, deadline: Instant) -> Result<Pending, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Waiting { errand, deadline, reply }).map_err(Refusal::Failed)?;
        Ok(Pending(answer))
    }

    /// Waits for the answer to what was started, until `deadline`, which is `within` from the start.
    pub async fn finish(started: Result<Pending, Refusal>, deadline: Instant, within: Duration) -> Outcome {
        match timeout_at(deadline, started?.0).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Refusal::Failed(StoreError::Connection("the batch was given up".to_owned()))),
            Err(_) => Err(Refusal::Failed(StoreError::Deadline(within))),
        }
    }

    /// Waits until nothing is queued or under way, for as long as one batch may take.
    pub async fn drain(&self) {
        let empty = async {
            while self.queue.lock().taken_care_of {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // What is still under way after that has had its deadline.
        let _ = timeout(self.timeout * 2, empty).await;
    }

    fn enqueue(self: &Arc<Self>, waiting: Waiting) -> Result<(), StoreError> {
        if self.breaker.is_open() {
            return Err(StoreError::BreakerOpen);
        }
        let hits = waiting.errand.asks.len();
        if hits > batch::HITS_MAX {
            return Err(StoreError::Reply(format!("{hits} hits in one request; at most {} can be asked", batch::HITS_MAX)));
        }
        let mut queue = self.queue.lock();
        if queue.connecting_since.is_some_and(|since| since.elapsed() >= self.timeout) {
            return Err(StoreError::Connection("connecting takes longer than a request may".to_owned()));
        }
        if queue.waiting.len() >= QUEUE_MAX {
            drop(queue);
            self.breaker.open(&StoreError::QueueFull);
            return Err(StoreError::QueueFull);
        }
        queue.waiting.push_back(waiting);
        if !queue.taken_care_of {
            queue.taken_care_of = true;
            // A task of its own, so that a caller that goes away breaks no batch. What is ready to run now runs before it
            // and joins its batch.
            tokio::spawn(Caretaker::of(self).run());
        }
        Ok(())
    }
}

/// Sends batches until the queue is empty.
struct Caretaker {
    node: Arc<Node>,
    /// It has left the queue to the next one who asks.
    finished: bool,
}

impl Caretaker {
    fn of(node: &Arc<Node>) -> Self {
        node.caretakers.fetch_add(1, Ordering::Relaxed);
        Self { node: Arc::clone(node), finished: false }
    }

    async fn run(mut self) {
        let mut first = true;
        while self.somebody_waits() {
            match self.node.links.get().await {
                Ok(mut link) => self.serve(&mut link, first).await,
                Err(error) => self.refuse_all(&StoreError::Connection(format!("{error:?}"))),
            }
            first = false;
        }
    }

    /// Sends one batch, over a link that is connected first if need be. `first`: none is under way, nor was one to this node just
    /// now.
    async fn serve(&self, link: &mut Link, first: bool) {
        let waited_for = match self.connect(link).await {
            Ok(stage) => stage,
            Err(error) => {
                self.failed(link, &error, Trouble::Lost);
                return self.refuse_all(&error);
            }
        };
        // Not before: whoever has given up meanwhile has an answer by policy, and is not counted here as well.
        let groups = self.next_batch(waited_for);
        if groups.is_empty() {
            return;
        }
        let calls: SmallVec<[Call; 1]> = groups.iter().map(|requests| call(requests)).collect();
        calls.iter().for_each(|call| self.node.series.batch_hits.record(call.batch.hits() as f64));
        let lone = is_lone(first, self.node.caretakers.load(Ordering::Relaxed), &groups, Waiting::is_awaited);
        let replies = match link.call(&calls, lone, self.node.timeout).await {
            Ok(replies) => replies.into_iter().map(|reply| reply.map_err(|error| self.refusal(&error))).collect(),
            Err(error) => vec![Err(Refusal::Failed(error)); calls.len()],
        };
        let mut failure = None;
        for ((requests, call), reply) in groups.into_iter().zip(calls).zip(replies) {
            let answers = reply.and_then(|reply| call.batch.read(reply).map_err(Refusal::Failed));
            let outcomes: Vec<Outcome> = match answers {
                Ok(answers) => answers.into_iter().map(|answer| answer.map_err(Refusal::Failed)).collect(),
                Err(refusal) => requests.iter().map(|_| Err(refusal.clone())).collect(),
            };
            for (waiting, outcome) in requests.into_iter().zip(outcomes) {
                if let Err(Refusal::Failed(error)) = &outcome
                    && let Some(trouble) = Trouble::of(error)
                {
                    failure = Some((error.clone(), trouble));
                }
                self.answer(waiting, outcome);
            }
        }
        match failure {
            Some((error, trouble)) => self.failed(link, &error, trouble),
            None => link.answered(),
        }
    }

    /// Why a call was not carried out.
    fn refusal(&self, error: &RedisError) -> Refusal {
        let whole = |address: &str| match self.node.breaker.primary.address().and_then(|address| address.host()) {
            // A node that doesn't know its own host leaves it out, or says `?`.
            Some(host) if address.starts_with([':', '?']) => format!("{host}{}", address.trim_start_matches('?')).into(),
            _ => address.into(),
        };
        match (error.kind(), error.redirect_node()) {
            (ErrorKind::Server(ServerErrorKind::Moved), Some((address, _))) => Refusal::Moved(whole(address)),
            (ErrorKind::Server(ServerErrorKind::Ask), Some((address, _))) => Refusal::Ask(whole(address)),
            (ErrorKind::Server(ServerErrorKind::TryAgain), _) => Refusal::TryAgain,
            _ => Refusal::Failed(StoreError::from(error)),
        }
    }

    /// Connects the link, unless it is. Says what those in the queue have waited for.
    async fn connect(&self, link: &mut Link) -> Result<Stage, StoreError> {
        let breaker = &self.node.breaker;
        let epoch = breaker.epoch();
        if link.is_ready(epoch, self.node.timeout).await {
            return Ok(Stage::Queue);
        }
        if breaker.is_open() {
            return Err(StoreError::BreakerOpen);
        }
        self.node.queue.lock().connecting_since = Some(Instant::now());
        let connected = timeout(CONNECT_MAX, breaker.primary.connect()).await;
        self.node.queue.lock().connecting_since = None;
        let connection = connected.map_err(|_| StoreError::Connection(format!("no connection within {CONNECT_MAX:?}")))??;
        link.connected(connection);
        // Whoever is there now may know less, or more, than what was denied by.
        self.node.denials.clear();
        Ok(Stage::Connect)
    }

    fn failed(&self, link: &mut Link, error: &StoreError, trouble: Trouble) {
        if *error == StoreError::BreakerOpen {
            return;
        }
        let (given_up, too_many) = link.failed(trouble, self.node.breaker.epoch());
        if given_up {
            self.node.denials.clear();
        }
        if too_many {
            self.node.breaker.open(error);
            self.refuse_all(error);
        }
    }

    /// Whether anybody waits; if not, the queue is left to the next one who asks.
    fn somebody_waits(&mut self) -> bool {
        let mut queue = self.node.queue.lock();
        if queue.waiting.is_empty() {
            queue.taken_care_of = false;
            self.finished = true;
        }
        !self.finished
    }

    /// The requests of the next batch, by calls; those of one call in the order of their arrival.
    fn next_batch(&self, waited_for: Stage) -> Vec<Vec<Waiting>> {
        let mut queue = self.node.queue.lock();
        let (mut groups, mut hits) = (Vec::<Vec<Waiting>>::new(), 0);
        // The group of a slot. What goes alone is in none.
        let mut by_slot = HashMap::<u16, usize>::new();
        while let Some(waiting) = queue.waiting.pop_front() {
            if waiting.is_given_up() {
                self.missed(&waiting, waited_for);
                continue;
            }
            hits += waiting.errand.asks.len();
            let batched = waiting.errand.manner == Manner::Batched;
            let group = if batched { by_slot.get(&waiting.errand.slot).copied() } else { None };
            if !groups.is_empty() && (hits > BATCH_HITS_MAX || group.is_none() && groups.len() >= BATCH_CALLS_MAX) {
                queue.waiting.push_front(waiting);
                break;
            }
            match group {
                Some(group) => groups[group].push(waiting),
                None => {
                    if batched {
                        by_slot.insert(waiting.errand.slot, groups.len());
                    }
                    groups.push(vec![waiting]);
                }
            }
        }
        self.tell_depth(&mut queue);
        groups
    }

    /// Answers all that wait with an error.
    fn refuse_all(&self, error: &StoreError) {
        let mut queue = self.node.queue.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        self.tell_depth(&mut queue);
        drop(queue);
        for waiting in waiting {
            self.missed(&waiting, Stage::Connect);
            waiting.tell(Err(Refusal::Failed(error.clone())));
        }
    }

    fn answer(&self, waiting: Waiting, outcome: Outcome) {
        self.missed(&waiting, Stage::Call);
        waiting.tell(outcome);
    }

    /// Counts a request whose deadline has passed, by what it waited for.
    fn missed(&self, waiting: &Waiting, stage: Stage) {
        if waiting.is_given_up() && waiting.deadline <= Instant::now() {
            self.node.series.missed(stage);
        }
    }

    fn tell_depth(&self, queue: &mut Queue) {
        let depth = queue.waiting.len();
        self.node.series.queue_depth.increment(depth as f64 - queue.told as f64);
        queue.told = depth;
    }
}

impl Waiting {
    /// Whether a caller asked, and not a lease, nor what is taken back.
    fn is_awaited(&self) -> bool {
        self.errand.asks.iter().all(Ask::is_awaited)
    }

    /// Whoever asked does not wait any more.
    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }

    fn tell(self, outcome: Outcome) {
        // Nobody listens where the deadline has passed or the caller has gone.
        let _ = self.reply.send(outcome);
    }
}

/// Whether the requests of a batch, by calls, are a single one that a caller waits for, the first that a caretaker takes care of,
/// with no other caretaker at work. Where more are under way they wait for each other, and the thread has more to do.
fn is_lone<T>(first: bool, caretakers: usize, groups: &[Vec<T>], is_awaited: impl Fn(&T) -> bool) -> bool {
    let [group] = groups else { return false };
    first && caretakers == 1 && group.len() == 1 && group.iter().all(is_awaited)
}

/// The call that decides requests of one slot.
fn call(requests: &[Waiting]) -> Call {
    let batch = Batch::new(requests.iter().map(|waiting| Arc::clone(&waiting.errand.asks)));
    Call { batch, asking: requests.iter().any(|waiting| waiting.errand.manner == Manner::Asking) }
}

impl Drop for Caretaker {
    /// However the task ends (its runtime may be gone), the next one who asks finds the queue open.
    fn drop(&mut self) {
        self.node.caretakers.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            let mut queue = self.node.queue.lock();
            queue.taken_care_of = false;
            queue.connecting_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_is_one_request_with_nothing_else_under_way() {
        let is_lone = |first, caretakers, groups: &[Vec<bool>]| is_lone(first, caretakers, groups, |awaited| *awaited);
        assert!(is_lone(true, 1, &[vec![true]]));
        assert!(!is_lone(false, 1, &[vec![true]]), "it came while another one was under way");
        assert!(!is_lone(true, 2, &[vec![true]]), "another node is asked");
        assert!(!is_lone(true, 1, &[vec![true, true]]));
        assert!(!is_lone(true, 1, &[vec![true], vec![true]]), "two slots");
        assert!(!is_lone(true, 1, &[vec![false]]), "a lease");
    }
}
