//! Where the primary is, and how to get a connection to it: at a fixed address, or wherever the Sentinels say that it is
//! now. It knows no scripts and no batches; `address.rs` opens the connections.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::address::{Address, no_connection};
use super::{RedisSite, RedisUrlError};
use crate::store::StoreError;

/// How the primary is found.
pub(super) enum Primary {
    At(Address),
    BySentinels(Sentinels),
}

pub(super) struct Sentinels {
    /// The name that they know the primary by.
    name: String,
    addresses: Vec<Address>,
    /// The one to be asked first.
    first: AtomicUsize,
    /// The primary's, but for host and port.
    like: Address,
}

/// An attempt to get to the primary by what one Sentinel says.
struct Turn<'s> {
    sentinels: &'s Sentinels,
    number: usize,
    has_failed: bool,
}

/// A Sentinel that takes longer is passed over.
const SENTINEL_MAX: Duration = Duration::from_millis(150);

impl Primary {
    /// # Errors
    /// An address, or a certificate, that can't be read.
    pub fn at(site: &RedisSite) -> Result<Self, RedisUrlError> {
        Ok(Self::At(Address::read(&site.url, site.auth.as_deref(), site.tls.as_ref())?))
    }

    /// # Errors
    /// The same, or no list of Sentinels.
    pub fn by_sentinels(site: &RedisSite) -> Result<Self, RedisUrlError> {
        let tls = site.tls.as_ref();
        let mut parts = site.url.split(',').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty() && !name.contains(':')).ok_or(RedisUrlError::Sentinels)?;
        let named: Vec<_> = parts.map(|part| Address::read(part, site.sentinel_auth.as_deref(), tls)).collect::<Result<_, _>>()?;
        // Sentinels have no databases: one that is named is the primary's.
        let mut databases: Vec<_> = named.iter().map(Address::database).filter(|database| *database != 0).collect();
        databases.dedup();
        if named.is_empty() || databases.len() > 1 {
            return Err(RedisUrlError::Sentinels);
        }
        let like = Address::read(&format!("primary:0/{}", databases.first().unwrap_or(&0)), site.auth.as_deref(), tls)?;
        let addresses = named.into_iter().map(Address::without_database).collect::<Result<_, _>>()?;
        Ok(Self::BySentinels(Sentinels { name: name.to_owned(), addresses, first: AtomicUsize::new(0), like }))
    }

    /// Where that does not change.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::At(address) => Some(address),
            Self::BySentinels(_) => None,
        }
    }

    /// A connection to the primary, which has shown that it answers and that it is one. Takes as long as it takes: whoever
    /// asks bounds it.
    ///
    /// # Errors
    /// [`StoreError::Connection`]: nobody there, no admission, or a Redis that can't serve: loading, or a replica.
    pub async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        match self {
            Self::At(address) => open(address).await,
            Self::BySentinels(sentinels) => {
                let (turn, primary) = sentinels.primary().await?;
                let connection = open(&primary).await?;
                // Not before: one that names a Redis which is no primary any more must not be asked first for ever.
                turn.succeeded();
                Ok(connection)
            }
        }
    }
}

impl fmt::Display for Primary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::BySentinels(sentinels) => write!(f, "the Sentinels' {}", sentinels.name),
        }
    }
}

impl Sentinels {
    /// The primary by the first Sentinel that knows one, whose turn it then is.
    async fn primary(&self) -> Result<(Turn<'_>, Address), StoreError> {
        let (first, mut problem) = (self.first.load(Ordering::Relaxed), String::new());
        for number in 0..self.addresses.len() {
            let turn = Turn { sentinels: self, number: (first + number) % self.addresses.len(), has_failed: true };
            match timeout(SENTINEL_MAX, self.ask(&self.addresses[turn.number])).await {
                Ok(Ok((host, port))) => return Ok((turn, self.like.at(&host, port)?)),
                Ok(Err(error)) => problem = error.to_string(),
                Err(_) => problem = format!("a Sentinel gave no answer within {SENTINEL_MAX:?}"),
            }
        }
        Err(StoreError::Connection(format!("no Sentinel knows the primary `{}`: {problem}", self.name)))
    }

    async fn ask(&self, sentinel: &Address) -> Result<(String, u16), StoreError> {
        let mut connection = sentinel.open().await?;
        let answer = redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(&self.name).query_async(&mut connection).await;
        let known: Option<(String, u16)> = answer.map_err(no_connection)?;
        known.ok_or_else(|| StoreError::Connection("the Sentinel knows no such primary".to_owned()))
    }
}

impl Turn<'_> {
    fn succeeded(mut self) {
        self.has_failed = false;
        self.sentinels.first.store(self.number, Ordering::Relaxed);
    }
}

impl Drop for Turn<'_> {
    /// Also where the attempt is cut short: many Sentinels may be silent. The next one begins with the next of them.
    fn drop(&mut self) {
        if self.has_failed {
            let next = (self.number + 1) % self.sentinels.addresses.len();
            // Unless somebody else has seen to it.
            let _ = self.sentinels.first.compare_exchange(self.number, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// A connection to a primary, if there is one.
async fn open(address: &Address) -> Result<MultiplexedConnection, StoreError> {
    let mut connection = address.open().await?;
    redis::cmd("PING").query_async::<Value>(&mut connection).await.map_err(no_connection)?;
    // A demoted primary takes connections like any other. Who may not ask for the role finds out by the first write.
    if let Ok(Value::Array(role)) = redis::cmd("ROLE").query_async::<Value>(&mut connection).await
        && role.first().is_some_and(|role| text(role).as_deref() != Some("master"))
    {
        return Err(StoreError::Connection("the Redis there is a replica".to_owned()));
    }
    Ok(connection)
}

/// What Redis says in text of either kind.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}
