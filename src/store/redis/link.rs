//! A connection that carries batches to the script, and what is known of it: whether it answers, how often it lately did
//! not. bb8 holds the links; its stock manager carries no timeouts and hides why it can't connect, so a link is made empty
//! and connected by whoever uses it (`node.rs`), by way of `primary.rs`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;

use bb8_redis::bb8::ManageConnection;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use smallvec::SmallVec;
use tokio::runtime::{self, Handle, RuntimeFlavor};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::batch::Batch;
use super::busy_poll::BusyPoll;
use crate::store::{Clock, StoreError, algorithm};

/// Makes links for one runtime.
pub(super) struct Links {
    clock: Clock,
    busy_poll: Duration,
}

/// One place in the pool.
pub(super) struct Link {
    clock: Clock,
    connection: Option<MultiplexedConnection>,
    /// The breaker's count of openings when it was connected.
    epoch: u64,
    used: Instant,
    failures: u32,
    /// Until when a call may take. It is put off from call to call: a timer that is set already costs no system call, nor do
    /// those of requests, which end later. A new one has tokio write to its eventfd, to wake the thread that sets it.
    deadline: Deadline,
    busy_poll: BusyPoll,
}

/// A timer, which ends with the runtime that set it. The link may outlive that, with its store.
struct Deadline {
    runtime: runtime::Id,
    timer: Pin<Box<Sleep>>,
}

/// One call of the script.
pub(super) struct Call {
    pub batch: Batch,
    /// It follows an ASKING: to a node that takes over the slot.
    pub asking: bool,
}

/// Calls as they are sent.
struct Sent {
    pipeline: Pipeline,
    /// Which of its commands are an ASKING; the others are calls.
    asking: SmallVec<[bool; 1]>,
}

/// What a failed call says of the connection it went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No answer in time. One that comes later is dropped; several in a row are no accident.
    Silent,
    /// It broke, or leads to a Redis that can't serve any more: a replica, one that loads, one that knows us not.
    Lost,
}

/// Failures in a row after which a Redis is taken for dead or hung, and is only probed until it answers again.
pub(super) const FAILURES_MAX: u32 = 3;

/// A connection idle for longer is asked for a PING before a batch goes out on it: it may have been cut meanwhile, and a
/// batch that is lost on the way must not be sent again.
const IDLE_MAX: Duration = Duration::from_millis(500);

/// Errors that say that this Redis can't serve now, wherever they stand in an answer: Redis 6 wraps those of a script.
const LOST: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "WRONGPASS"];

/// A script and its hash.
struct Script {
    source: String,
    hash: String,
}

impl Links {
    pub fn new(clock: Clock, busy_poll: Duration) -> Self {
        Self { clock, busy_poll }
    }
}

impl ManageConnection for Links {
    type Connection = Link;
    type Error = Infallible;

    async fn connect(&self) -> Result<Link, Infallible> {
        let deadline = Deadline::new();
        // The threads of another one wake each other: who polls may not be the one who reads from connections.
        let is_alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        let busy_poll = BusyPoll::new(if is_alone { self.busy_poll } else { Duration::ZERO });
        Ok(Link { clock: self.clock.clone(), connection: None, epoch: 0, used: Instant::now(), failures: 0, deadline, busy_poll })
    }

    async fn is_valid(&self, _: &mut Link) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Link) -> bool {
        false
    }
}

impl Trouble {
    /// None where an error is the request's own affair, or (a full memory) will pass without us.
    pub fn of(error: &StoreError) -> Option<Self> {
        match error {
            StoreError::Deadline(_) => Some(Self::Silent),
            StoreError::Connection(_) => Some(Self::Lost),
            StoreError::Reply(why) if LOST.iter().any(|code| why.contains(code)) => Some(Self::Lost),
            StoreError::Reply(_) | StoreError::QueueFull | StoreError::BreakerOpen => None,
        }
    }
}

impl Link {
    /// Whether a batch can go out on it: it was connected since the breaker last opened, and answers if it was idle.
    pub async fn is_ready(&mut self, epoch: u64, within: Duration) -> bool {
        if self.epoch != epoch {
            // Its failures have had their effect.
            (self.connection, self.failures, self.epoch) = (None, 0, epoch);
        }
        let Some(connection) = &mut self.connection else { return false };
        if self.used.elapsed() > IDLE_MAX {
            let ping = redis::cmd("PING");
            if !matches!(timeout(within, ping.query_async::<Value>(connection)).await, Ok(Ok(_))) {
                self.connection = None;
                return false;
            }
        }
        true
    }

    pub fn connected(&mut self, connection: MultiplexedConnection) {
        self.connection = Some(connection);
    }

    /// Sends calls together, each to be carried out or refused by itself. The script is sent whole only where Redis says that
    /// it doesn't know it: then it did not run, so no hit is counted twice.
    /// `lone`: they are for one request, and nothing else is under way.
    pub async fn call(&mut self, calls: &[Call], lone: bool, within: Duration) -> Result<Vec<Result<Value, RedisError>>, StoreError> {
        self.used = Instant::now();
        let Some(mut connection) = self.connection.clone() else { return Err(StoreError::Connection("not connected".to_owned())) };
        let Self { clock, deadline, used, busy_poll, .. } = self;
        let script = Script::by(clock);
        let asking = async {
            let mut replies = Sent::of(calls.iter(), clock, "EVALSHA", &script.hash).carry(&mut connection).await?;
            let unknown: Vec<usize> = (0..calls.len()).filter(|at| replies[*at].as_ref().is_err_and(is_unknown_script)).collect();
            if !unknown.is_empty() {
                let again = unknown.iter().map(|at| &calls[*at]);
                let again = Sent::of(again, clock, "EVAL", &script.source).carry(&mut connection).await?;
                unknown.into_iter().zip(again).for_each(|(at, reply)| replies[at] = reply);
            }
            Ok(replies)
        };
        let deadline = deadline.put_off(*used + within);
        let answer = async {
            tokio::select! {
                biased;
                replies = asking => replies.map_err(|error: RedisError| StoreError::from(&error)),
                () = deadline => Err(StoreError::Deadline(within)),
            }
        };
        if lone { busy_poll.wait(answer).await } else { answer.await }
    }

    pub fn answered(&mut self) {
        self.failures = 0;
    }

    /// Takes note of a failure; says whether the connection is given up for it, and whether it was one too many. One from
    /// before the breaker last opened tells nothing new.
    pub fn failed(&mut self, trouble: Trouble, epoch: u64) -> (bool, bool) {
        if self.epoch != epoch {
            return (true, false);
        }
        self.failures += 1;
        let too_many = self.failures >= FAILURES_MAX;
        let given_up = too_many || trouble == Trouble::Lost;
        if given_up {
            self.connection = None;
        }
        if too_many {
            self.failures = 0;
        }
        (given_up, too_many)
    }
}

impl Deadline {
    fn new() -> Self {
        Self { runtime: Handle::current().id(), timer: Box::pin(sleep(Duration::ZERO)) }
    }

    fn put_off(&mut self, to: Instant) -> Pin<&mut Sleep> {
        if self.runtime != Handle::current().id() {
            *self = Self::new();
        }
        self.timer.as_mut().reset(to);
        self.timer.as_mut()
    }
}

impl Call {
    fn command(&self, clock: &Clock, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        let keys = self.batch.keys();
        command.arg(script).arg(keys.len());
        keys.for_each(|key| {
            command.arg(key);
        });
        command.arg(&*self.batch.encoded);
        if let Clock::Stepped(clock) = clock {
            command.arg(clock.now() / 1_000_000).arg(clock.now() % 1_000_000);
        }
        command
    }
}

impl Script {
    /// The one that reads the time of this clock.
    fn by(clock: &Clock) -> &'static Self {
        static BY_REDIS_TIME: LazyLock<Script> = LazyLock::new(|| Script::reading("local TIME = redis.call('TIME')"));
        static BY_STEPPED_TIME: LazyLock<Script> = LazyLock::new(|| Script::reading("local TIME = { ARGV[2], ARGV[3] }"));
        match clock {
            Clock::System => &BY_REDIS_TIME,
            Clock::Stepped(_) => &BY_STEPPED_TIME,
        }
    }

    /// The script with this first line, the only one in which time is read.
    fn reading(time: &str) -> Self {
        let source = format!("{time}\n{}", algorithm::SCRIPT);
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }
}

impl Sent {
    fn of<'c>(calls: impl Iterator<Item = &'c Call>, clock: &Clock, name: &str, script: &str) -> Self {
        let mut sent = Self { pipeline: Pipeline::new(), asking: SmallVec::new() };
        for call in calls {
            if call.asking {
                sent.pipeline.cmd("ASKING");
                sent.asking.push(true);
            }
            sent.pipeline.add_command(call.command(clock, name, script));
            sent.asking.push(false);
        }
        sent
    }

    /// The reply to each call.
    async fn carry(self, connection: &mut MultiplexedConnection) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let replies = connection.send_packed_commands(&self.pipeline, 0, self.asking.len()).await?;
        let replies = replies.into_iter().zip(self.asking).filter(|(_, asking)| !asking);
        Ok(replies
            .map(|(reply, _)| match reply {
                Value::ServerError(error) => Err(error.into()),
                reply => Ok(reply),
            })
            .collect())
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

impl From<&RedisError> for StoreError {
    fn from(error: &RedisError) -> Self {
        match error.kind() {
            // As Redis said it: redis-rs has words of its own for the codes that it knows.
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Reply(match (error.code(), error.detail()) {
                (Some(code), Some(detail)) => format!("{code} {detail}"),
                _ => error.to_string(),
            }),
            _ => Self::Connection(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_whether_its_connection_can_be_kept() {
        let reply = |text: &str| {
            let Value::ServerError(error) = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap() else { panic!("{text}") };
            let error = StoreError::from(&RedisError::from(error));
            assert_eq!(error, StoreError::Reply(text.to_owned()), "as Redis said it");
            Trouble::of(&error)
        };
        assert_eq!(reply("READONLY You can't write against a read only replica."), Some(Trouble::Lost));
        assert_eq!(reply("ERR Error running script (call to f_1): -READONLY You can't write"), Some(Trouble::Lost), "as Redis 6 says it");
        assert_eq!(reply("LOADING Redis is loading the dataset in memory"), Some(Trouble::Lost));
        assert_eq!(reply("MASTERDOWN Link with MASTER is down"), Some(Trouble::Lost));
        assert_eq!(reply("NOAUTH Authentication required."), Some(Trouble::Lost));
        assert_eq!(reply("OOM command not allowed when used memory > 'maxmemory'."), None);
        assert_eq!(reply("WRONGTYPE Operation against a key holding the wrong kind of value"), None);
        assert_eq!(reply("CLUSTERDOWN The cluster is down"), None);
        assert_eq!(Trouble::of(&StoreError::Deadline(Duration::ZERO)), Some(Trouble::Silent));
    }
}
