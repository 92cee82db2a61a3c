//! What a Redis store is told: where it is, how it is entered, how long it may take. Plain data; Debug shows no secret.

use std::fmt;
use std::time::Duration;

use crate::store::Clock;

/// Where Redis is, how it is entered, and how long it may take.
#[derive(Clone)]
pub struct RedisOptions {
    pub site: RedisSite,
    /// Another one, for windows of a second or less.
    pub per_second: Option<RedisSite>,
    /// What each key begins with. Without braces: the hash tag's come first.
    pub key_prefix: String,
    /// One deadline over queueing, connecting and the call. More than 0.
    pub timeout: Duration,
    /// For how long a thread polls for the answer to a lone request, in place of sleeping until it comes, if the last such answer
    /// came within it; 0: never. In a runtime of several threads they sleep.
    pub busy_poll: Duration,
    /// The most denials that are remembered; 0 has every request ask.
    pub denials_max: usize,
    pub clock: Clock,
}

/// Where a Redis is and how it is entered.
#[derive(Clone)]
pub struct RedisSite {
    pub deployment: RedisDeployment,
    /// Single: `host:port`, the path of a Unix socket, or a URL `redis://USER:PASSWORD@HOST:PORT/DATABASE` (`rediss://` for
    /// TLS). Sentinel: `MASTER,HOST:PORT,HOST:PORT`, the name of the primary and the Sentinels that watch it; a database after
    /// any of them (`HOST:PORT/DATABASE`) is the primary's. Cluster: `HOST:PORT,HOST:PORT`, some of its nodes.
    pub url: String,
    /// `PASSWORD` or `USER:PASSWORD`, in place of the URL's.
    pub auth: Option<String>,
    /// The same, for the Sentinels.
    pub sentinel_auth: Option<String>,
    /// Everything goes over TLS.
    pub tls: Option<RedisTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisDeployment {
    /// One address, whoever stands behind it.
    #[default]
    Single,
    /// The primary that Sentinels name.
    Sentinel,
    /// The nodes of a Redis Cluster, each with its share of the counters.
    Cluster,
}

/// TLS toward Redis. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct RedisTls {
    /// The authorities that may have signed the server's certificate; None takes the system's.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate and its key, where the server asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Any name in the server's certificate will do.
    pub skip_hostname_verification: bool,
}

/// An address, or a certificate, that can't be read. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    #[error("REDIS_URL is neither host:port, nor the path of a Unix socket, nor redis://USER:PASSWORD@HOST:PORT/DATABASE: {0}")]
    Address(String),
    #[error(
        "with REDIS_TYPE=sentinel, REDIS_URL is MASTER,HOST:PORT,HOST:PORT/DATABASE...: the primary's name, at least one Sentinel, and at most one database"
    )]
    Sentinels,
    #[error("with REDIS_TYPE=cluster, REDIS_URL is HOST:PORT,HOST:PORT...: some of the Cluster's nodes, and no database but 0")]
    Seeds,
    #[error("REDIS_TLS_CACERT, REDIS_TLS_CLIENT_CERT or REDIS_TLS_CLIENT_KEY holds no PEM that can be used: {0}")]
    Certificates(String),
}

/// A Redis on the same machine answers well within it, one in the next rack may.
const BUSY_POLL_DEFAULT: Duration = Duration::from_micros(200);

/// Denials remembered unless told otherwise; a few hundred bytes each.
pub const DENIALS_DEFAULT: usize = 65_536;

impl RedisOptions {
    /// A single Redis, with nothing special.
    pub fn new(url: impl Into<String>, timeout: Duration) -> Self {
        Self {
            site: RedisSite { deployment: RedisDeployment::Single, url: url.into(), auth: None, sentinel_auth: None, tls: None },
            per_second: None,
            key_prefix: String::new(),
            timeout,
            busy_poll: BUSY_POLL_DEFAULT,
            denials_max: DENIALS_DEFAULT,
            clock: Clock::System,
        }
    }
}

impl fmt::Debug for RedisOptions {
    /// Without the address and the credentials, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site: RedisSite { deployment, tls, .. }, per_second, key_prefix, timeout, busy_poll, denials_max, .. } = self;
        f.debug_struct("Redis")
            .field("deployment", deployment)
            .field("tls", &tls.is_some())
            .field("per_second", &per_second.is_some())
            .field("key_prefix", key_prefix)
            .field("timeout", timeout)
            .field("busy_poll", busy_poll)
            .field("denials_max", denials_max)
            .finish_non_exhaustive()
    }
}
