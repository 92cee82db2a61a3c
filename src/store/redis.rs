//! The Redis store: counters in one Redis, shared by any number of servers, decided by one script. Requests never queue
//! for a connection: those that arrive while a batch is under way form the next one (group commit), which goes out as one
//! call. It knows neither rules nor protocols; `redis/batch.rs` writes and reads a call, `redis/link.rs` carries it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::Pool;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

mod batch;
mod link;

use super::{Clock, StoreError, StoreFailure};
use crate::hit::{Hit, Verdict};
use crate::metrics::StoreSeries;
use batch::{Ask, Batch};
use link::{Link, Links};

/// A Redis, asked from one runtime: its batch and its connection stay on the thread of whoever asks. Clones share both.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

/// Where Redis is and how long it may take.
#[derive(Clone)]
pub struct RedisOptions {
    /// `host:port`, the path of a Unix socket, or a URL `redis://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub url: String,
    /// One deadline over queueing, connecting and the call. More than 0.
    pub timeout: Duration,
    pub clock: Clock,
}

/// An address that can't be read. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("REDIS_URL is neither host:port, nor the path of a Unix socket, nor redis://USER:PASSWORD@HOST:PORT/DATABASE: {0}")]
pub struct RedisUrlError(String);

struct Inner {
    queue: Mutex<Queue>,
    links: Pool<Links>,
    timeout: Duration,
    series: StoreSeries,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// A task takes batches from the queue until it is empty.
    taken_care_of: bool,
}

/// A request in the queue. Whoever asked may have gone away: then nobody listens to `reply`.
struct Waiting {
    asks: Vec<Ask>,
    reply: oneshot::Sender<Result<Verdict, StoreError>>,
}

/// Connections for each runtime. One is enough: it carries whole batches, one after the other.
const CONNECTIONS: u32 = 1;

/// Requests that may wait for the next batch. Beyond, the failure policy answers at once.
const QUEUE_MAX: usize = 8_192;

/// Hits that one call of the script decides, unless a single request has more. Bounds how long Redis is kept busy.
const BATCH_HITS_MAX: usize = 256;

impl Redis {
    /// A store that connects when it is first asked.
    ///
    /// # Errors
    /// An address that can't be read.
    pub fn new(options: &RedisOptions, series: StoreSeries) -> Result<Self, RedisUrlError> {
        let links = Links::new(&options.url, options.clock.clone()).map_err(RedisUrlError)?;
        // No check at checkout and no ageing: a link finds out by itself that it is broken, and connects anew.
        let links = Pool::builder()
            .max_size(CONNECTIONS)
            .test_on_check_out(false)
            .retry_connection(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(options.timeout)
            .build_unchecked(links);
        Ok(Self(Arc::new(Inner { queue: Mutex::default(), links, timeout: options.timeout, series })))
    }

    /// Decides a request's hits as a whole, within the store's timeout or `within`, whichever is less. Once the batch is
    /// sent, the hits are counted whether or not the caller still waits.
    ///
    /// # Errors
    /// No verdict in time, no connection, a full queue, or an error that Redis answered with.
    pub async fn decide(&self, hits: &[Hit<'_>], within: Option<Duration>) -> Result<Verdict, StoreError> {
        let inner = &self.0;
        inner.series.calls.increment(1);
        let within = within.map_or(inner.timeout, |within| within.min(inner.timeout));
        let deadline = Instant::now() + within;
        let answer = match self.enqueue(hits) {
            Err(error) => Err(error),
            Ok(reply) => match timeout_at(deadline, reply).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(_)) => Err(StoreError::Connection("the batch was given up".to_owned())),
                Err(_) => Err(StoreError::Deadline(within)),
            },
        };
        answer.inspect_err(|error| inner.series.failed(StoreFailure::from(error)))
    }

    /// Waits until nothing is queued or under way, for as long as one batch may take.
    pub async fn drain(&self) {
        let empty = async {
            while self.0.queue.lock().taken_care_of {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // What is still under way after that has had its deadline.
        let _ = timeout(self.0.timeout * 2, empty).await;
    }

    fn enqueue(&self, hits: &[Hit<'_>]) -> Result<oneshot::Receiver<Result<Verdict, StoreError>>, StoreError> {
        if hits.len() > batch::HITS_MAX {
            return Err(StoreError::Reply(format!("{} hits in one request; at most {} can be asked", hits.len(), batch::HITS_MAX)));
        }
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { asks: batch::asks(hits), reply };
        let mut queue = self.0.queue.lock();
        if queue.waiting.len() >= QUEUE_MAX {
            return Err(StoreError::QueueFull);
        }
        queue.waiting.push_back(waiting);
        if !queue.taken_care_of {
            queue.taken_care_of = true;
            // A task of its own, so that a caller that goes away breaks no batch. What is ready to run now runs before it
            // and joins its batch.
            tokio::spawn(Caretaker { redis: Arc::clone(&self.0), finished: false }.run());
        }
        Ok(answer)
    }
}

/// Sends batches until the queue is empty.
struct Caretaker {
    redis: Arc<Inner>,
    /// It has left the queue to the next one who asks.
    finished: bool,
}

impl Caretaker {
    async fn run(mut self) {
        while let Some(requests) = self.next_batch() {
            let batch = Batch::new(requests.iter().map(|waiting| waiting.asks.as_slice()));
            let verdicts = match timeout(self.redis.timeout, self.send(&batch)).await {
                Ok(verdicts) => verdicts,
                Err(_) => Err(StoreError::Deadline(self.redis.timeout)),
            };
            match verdicts {
                Ok(verdicts) => requests.into_iter().zip(verdicts).for_each(|(waiting, verdict)| waiting.answer(verdict)),
                Err(error) => requests.into_iter().for_each(|waiting| waiting.answer(Err(error.clone()))),
            }
        }
    }

    async fn send(&self, batch: &Batch) -> Result<Vec<Result<Verdict, StoreError>>, StoreError> {
        let mut link = self.redis.links.get().await.map_err(|error| StoreError::Connection(format!("{error:?}")))?;
        let reply = Link::call(&mut link, batch).await?;
        batch.read(reply)
    }

    /// The requests of the next batch, in the order of their arrival; None leaves the queue to the next one who asks.
    fn next_batch(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.redis.queue.lock();
        let (mut requests, mut hits) = (Vec::new(), 0);
        while let Some(waiting) = queue.waiting.pop_front() {
            if waiting.reply.is_closed() {
                continue; // Whoever asked has gone or has an answer by policy: it is not counted here as well.
            }
            hits += waiting.asks.len();
            if !requests.is_empty() && hits > BATCH_HITS_MAX {
                queue.waiting.push_front(waiting);
                break;
            }
            requests.push(waiting);
        }
        if requests.is_empty() {
            queue.taken_care_of = false;
            self.finished = true;
            return None;
        }
        Some(requests)
    }
}

impl Drop for Caretaker {
    /// However the task ends (its runtime may be gone), the next one who asks finds the queue open.
    fn drop(&mut self) {
        if !self.finished {
            self.redis.queue.lock().taken_care_of = false;
        }
    }
}

impl Waiting {
    fn answer(self, verdict: Result<Verdict, StoreError>) {
        // Nobody listens where the deadline has passed or the caller has gone.
        let _ = self.reply.send(verdict);
    }
}
