//! One Redis as one runtime asks it: requests never queue for a connection. Those that arrive while a batch is under way
//! form the next one (group commit), which goes out as one call. Connecting is nobody's request: those that wait for it
//! give up at their deadlines, and it goes on. `batch.rs` writes and reads a call, `link.rs` carries it, `breaker.rs` says
//! whether it is asked at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::Pool;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::batch::{self, Ask, Batch};
use super::breaker::{Breaker, CONNECT_MAX};
use super::link::{Link, Links, Trouble};
use crate::hit::Verdict;
use crate::metrics::{RedisSeries, Stage};
use crate::store::denial::Denials;
use crate::store::{Clock, StoreError};

pub(super) struct Node {
    queue: Mutex<Queue>,
    links: Pool<Links>,
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

/// A request in the queue. Whoever asked may have gone away: then nobody listens to `reply`.
struct Waiting {
    asks: Arc<[Ask]>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Verdict, StoreError>>,
}

/// Connections for each runtime. One is enough: it carries whole batches, one after the other.
const CONNECTIONS: u32 = 1;

/// Requests that may wait for the next batch. Beyond, the failure policy answers at once, and the breaker opens.
const QUEUE_MAX: usize = 8_192;

/// Hits that one call of the script decides, unless a single request has more. Bounds how long Redis is kept busy.
const BATCH_HITS_MAX: usize = 256;

impl Node {
    pub fn new(breaker: Arc<Breaker>, denials: Arc<Denials>, clock: Clock, timeout: Duration, series: RedisSeries) -> Self {
        // No check at checkout and no ageing: a link is found out to be broken, and connected anew, by its user.
        let links = Pool::builder()
            .max_size(CONNECTIONS)
            .test_on_check_out(false)
            .retry_connection(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(timeout)
            .build_unchecked(Links::new(clock));
        Self { queue: Mutex::default(), links, breaker, denials, timeout, series }
    }

    /// Has a request decided, until `deadline`, which is `within` from now. Once its batch is sent, its hits are counted
    /// whether or not the caller still waits.
    pub async fn ask(self: &Arc<Self>, asks: Arc<[Ask]>, deadline: Instant, within: Duration) -> Result<Verdict, StoreError> {
        if self.breaker.is_open() {
            return Err(StoreError::BreakerOpen);
        }
        let reply = self.enqueue(asks, deadline)?;
        match timeout_at(deadline, reply).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(StoreError::Connection("the batch was given up".to_owned())),
            Err(_) => Err(StoreError::Deadline(within)),
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

    fn enqueue(
        self: &Arc<Self>,
        asks: Arc<[Ask]>,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<Verdict, StoreError>>, StoreError> {
        if asks.len() > batch::HITS_MAX {
            return Err(StoreError::Reply(format!("{} hits in one request; at most {} can be asked", asks.len(), batch::HITS_MAX)));
        }
        let (reply, answer) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.connecting_since.is_some_and(|since| since.elapsed() >= self.timeout) {
            return Err(StoreError::Connection("connecting takes longer than a request may".to_owned()));
        }
        if queue.waiting.len() >= QUEUE_MAX {
            drop(queue);
            self.breaker.open(&StoreError::QueueFull);
            return Err(StoreError::QueueFull);
        }
        queue.waiting.push_back(Waiting { asks, deadline, reply });
        if !queue.taken_care_of {
            queue.taken_care_of = true;
            // A task of its own, so that a caller that goes away breaks no batch. What is ready to run now runs before it
            // and joins its batch.
            tokio::spawn(Caretaker { node: Arc::clone(self), finished: false }.run());
        }
        Ok(answer)
    }
}

/// Sends batches until the queue is empty.
struct Caretaker {
    node: Arc<Node>,
    /// It has left the queue to the next one who asks.
    finished: bool,
}

impl Caretaker {
    async fn run(mut self) {
        while self.somebody_waits() {
            match self.node.links.get().await {
                Ok(mut link) => self.serve(&mut link).await,
                Err(error) => self.refuse_all(&StoreError::Connection(format!("{error:?}"))),
            }
        }
    }

    /// Sends one batch, over a link that is connected first if need be.
    async fn serve(&self, link: &mut Link) {
        let waited_for = match self.connect(link).await {
            Ok(stage) => stage,
            Err(error) => {
                self.failed(link, &error, Trouble::Lost);
                return self.refuse_all(&error);
            }
        };
        // Not before: whoever has given up meanwhile has an answer by policy, and is not counted here as well.
        let requests = self.next_batch(waited_for);
        if requests.is_empty() {
            return;
        }
        let batch = Batch::new(requests.iter().map(|waiting| &*waiting.asks));
        self.node.series.batch_hits.record(batch.hits() as f64);
        let verdicts = match link.call(&batch, self.node.timeout).await {
            Ok(reply) => batch.read(reply),
            Err(error) => Err(error),
        };
        let failure = match &verdicts {
            Ok(verdicts) => {
                verdicts.iter().find_map(|verdict| verdict.as_ref().err().and_then(|error| Some((error.clone(), Trouble::of(error)?))))
            }
            Err(error) => Trouble::of(error).map(|trouble| (error.clone(), trouble)),
        };
        match verdicts {
            Ok(verdicts) => requests.into_iter().zip(verdicts).for_each(|(waiting, verdict)| self.answer(waiting, verdict)),
            Err(error) => requests.into_iter().for_each(|waiting| self.answer(waiting, Err(error.clone()))),
        }
        match failure {
            Some((error, trouble)) => self.failed(link, &error, trouble),
            None => link.answered(),
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
        link.connected(connection, epoch);
        Ok(Stage::Connect)
    }

    fn failed(&self, link: &mut Link, error: &StoreError, trouble: Trouble) {
        if *error == StoreError::BreakerOpen {
            return;
        }
        let (given_up, too_many) = link.failed(trouble);
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

    /// The requests of the next batch, in the order of their arrival.
    fn next_batch(&self, waited_for: Stage) -> Vec<Waiting> {
        let mut queue = self.node.queue.lock();
        let (mut requests, mut hits) = (Vec::new(), 0);
        while let Some(waiting) = queue.waiting.pop_front() {
            if waiting.reply.is_closed() {
                self.missed(&waiting, waited_for);
                continue;
            }
            hits += waiting.asks.len();
            if !requests.is_empty() && hits > BATCH_HITS_MAX {
                queue.waiting.push_front(waiting);
                break;
            }
            requests.push(waiting);
        }
        self.tell_depth(&mut queue);
        requests
    }

    /// Answers all that wait with an error.
    fn refuse_all(&self, error: &StoreError) {
        let mut queue = self.node.queue.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        self.tell_depth(&mut queue);
        drop(queue);
        for waiting in waiting {
            self.missed(&waiting, Stage::Connect);
            // Nobody listens where the deadline has passed or the caller has gone.
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    fn answer(&self, waiting: Waiting, verdict: Result<Verdict, StoreError>) {
        self.missed(&waiting, Stage::Call);
        // As above.
        let _ = waiting.reply.send(verdict);
    }

    /// Counts a request whose deadline has passed, by what it waited for.
    fn missed(&self, waiting: &Waiting, stage: Stage) {
        if waiting.reply.is_closed() && waiting.deadline <= Instant::now() {
            self.node.series.missed(stage);
        }
    }

    fn tell_depth(&self, queue: &mut Queue) {
        let depth = queue.waiting.len();
        self.node.series.queue_depth.increment(depth as f64 - queue.told as f64);
        queue.told = depth;
    }
}

impl Drop for Caretaker {
    /// However the task ends (its runtime may be gone), the next one who asks finds the queue open.
    fn drop(&mut self) {
        if !self.finished {
            let mut queue = self.node.queue.lock();
            queue.taken_care_of = false;
            queue.connecting_since = None;
        }
    }
}
