//! A connection to Redis that connects when it is first used, and anew after it broke. bb8 holds the links; its own way
//! of connecting would keep callers waiting with no word of why (a refused connection looks like a timeout there, and
//! redis's stock manager carries no timeouts), so a link connects inside the call, within the caller's deadline.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bb8_redis::bb8::ManageConnection;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind, Value};

use super::batch::Batch;
use crate::store::{Clock, StoreError, algorithm};

/// Makes links to one Redis.
pub(super) struct Links {
    client: Client,
    clock: Clock,
}

/// One place in the pool.
pub(super) struct Link {
    client: Client,
    clock: Clock,
    /// None until first used, and while a call is under way: a call that is cut off leaves nothing to be misread.
    connection: Option<MultiplexedConnection>,
    used: Instant,
}

/// A connection idle for longer is asked for a PING before a batch goes out on it: it may have been cut meanwhile, and a
/// batch that is lost on the way must not be sent again.
const IDLE_MAX: Duration = Duration::from_millis(500);

/// A script and its hash.
struct Script {
    source: String,
    hash: String,
}

impl Links {
    /// # Errors
    /// Why the address can't be read.
    pub fn new(url: &str, clock: Clock) -> Result<Self, String> {
        let url = if url.contains("://") {
            url.to_owned()
        } else if url.starts_with('/') {
            format!("unix://{url}")
        } else {
            format!("redis://{url}")
        };
        let info = url.into_connection_info().map_err(|error| error.to_string())?;
        let client = Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true))).map_err(|error| error.to_string())?;
        Ok(Self { client, clock })
    }
}

impl ManageConnection for Links {
    type Connection = Link;
    type Error = Infallible;

    async fn connect(&self) -> Result<Link, Infallible> {
        Ok(Link { client: self.client.clone(), clock: self.clock.clone(), connection: None, used: Instant::now() })
    }

    async fn is_valid(&self, _: &mut Link) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Link) -> bool {
        false
    }
}

impl Link {
    /// Has the script decide a batch. The script is sent whole only where Redis says that it doesn't know it: then it did
    /// not run, so no hit is counted twice.
    pub async fn call(&mut self, batch: &Batch) -> Result<Value, StoreError> {
        let mut connection = match self.alive().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        self.used = Instant::now();
        let script = self.script();
        let mut answer = self.command("EVALSHA", &script.hash, batch).query_async(&mut connection).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            answer = self.command("EVAL", &script.source, batch).query_async(&mut connection).await;
        }
        match answer {
            Ok(reply) => {
                self.connection = Some(connection);
                Ok(reply)
            }
            Err(error) => {
                if keeps_connection(&error) {
                    self.connection = Some(connection);
                }
                Err(StoreError::from(error))
            }
        }
    }

    /// The connection, if there is one that answers.
    async fn alive(&mut self) -> Option<MultiplexedConnection> {
        let mut connection = self.connection.take()?;
        if self.used.elapsed() > IDLE_MAX {
            redis::cmd("PING").query_async::<Value>(&mut connection).await.ok()?;
        }
        Some(connection)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        // No timeouts of its own: the caller's deadline covers connecting and the call.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        connecting.await.map_err(|error| StoreError::Connection(error.to_string()))
    }

    fn command(&self, name: &str, script: &str, batch: &Batch) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(batch.keys.len());
        for key in &batch.keys {
            command.arg(&**key);
        }
        command.arg(&*batch.hits);
        if let Clock::Stepped(clock) = &self.clock {
            command.arg(clock.now() / 1_000_000).arg(clock.now() % 1_000_000);
        }
        command
    }

    fn script(&self) -> &'static Script {
        static BY_REDIS_TIME: LazyLock<Script> = LazyLock::new(|| Script::reading("local TIME = redis.call('TIME')"));
        static BY_STEPPED_TIME: LazyLock<Script> = LazyLock::new(|| Script::reading("local TIME = { ARGV[2], ARGV[3] }"));
        match self.clock {
            Clock::System => &BY_REDIS_TIME,
            Clock::Stepped(_) => &BY_STEPPED_TIME,
        }
    }
}

impl Script {
    /// The script with this first line, the only one in which time is read.
    fn reading(time: &str) -> Self {
        let source = format!("{time}\n{}", algorithm::SCRIPT);
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Reply(error.to_string()),
            _ => Self::Connection(error.to_string()),
        }
    }
}

/// Whether Redis is where and what it was: an error of the script's own, or a full memory, says nothing against it.
fn keeps_connection(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) || error.code() == Some("OOM")
}
