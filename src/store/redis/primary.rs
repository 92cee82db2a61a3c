//! Where the primary is, and how to get a connection to it: at a fixed address, or wherever the Sentinels say that it is
//! now. It knows addresses, credentials and certificates, and shows none of the secrets; it knows no scripts and no batches.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates, Value,
};
use tokio::time::timeout;

use super::{RedisDeployment, RedisOptions, RedisTls, RedisUrlError};
use crate::store::StoreError;

/// How the primary is found.
pub(super) enum Primary {
    At(Client),
    BySentinels(Sentinels),
}

pub(super) struct Sentinels {
    /// The name that they know the primary by.
    name: String,
    clients: Vec<Client>,
    /// The one that answered last is asked first.
    answered: AtomicUsize,
    /// The primary's connection, but for its address.
    like: ConnectionInfo,
    tls: Option<RedisTls>,
}

/// A Sentinel that takes longer is passed over.
const SENTINEL_MAX: Duration = Duration::from_millis(150);

/// A peer that acknowledges nothing for so long has gone.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

impl Primary {
    /// # Errors
    /// An address, or a certificate, that can't be read.
    pub fn new(options: &RedisOptions) -> Result<Self, RedisUrlError> {
        let refuse = |error: RedisError| RedisUrlError::Certificates(error.to_string());
        let tls = options.tls.as_ref();
        match options.deployment {
            RedisDeployment::Single => {
                let info = with_auth(address(&options.url, tls)?, options.auth.as_deref());
                Ok(Self::At(client(info, tls).map_err(refuse)?))
            }
            RedisDeployment::Sentinel => {
                let mut parts = options.url.split(',').map(str::trim);
                let name = parts.next().filter(|name| !name.is_empty() && !name.contains(':'));
                let name = name.ok_or(RedisUrlError::Sentinels)?;
                let sentinel = |part: &str| {
                    let mut info = address(part, tls)?;
                    let settings = info.redis_settings().clone().set_db(0);
                    info = info.set_redis_settings(settings);
                    client(with_auth(info, options.sentinel_auth.as_deref()), tls).map_err(refuse)
                };
                let clients: Vec<_> = parts.map(sentinel).collect::<Result<_, _>>()?;
                if clients.is_empty() {
                    return Err(RedisUrlError::Sentinels);
                }
                let like = with_auth(address("primary:0", tls)?, options.auth.as_deref());
                let (name, answered, tls) = (name.to_owned(), AtomicUsize::new(0), options.tls.clone());
                Ok(Self::BySentinels(Sentinels { name, clients, answered, like, tls }))
            }
        }
    }

    /// A connection to the primary, which has shown that it answers and that it is one. Takes as long as it takes: whoever
    /// asks bounds it.
    ///
    /// # Errors
    /// [`StoreError::Connection`]: nobody there, no admission, or a Redis that can't serve: loading, or a replica.
    pub async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        let mut connection = match self {
            Self::At(client) => open(client).await?,
            Self::BySentinels(sentinels) => open(&sentinels.primary().await?).await?,
        };
        redis::cmd("PING").query_async::<Value>(&mut connection).await.map_err(no_connection)?;
        // A demoted primary takes connections like any other. Who may not ask for the role finds out by the first write.
        if let Ok(Value::Array(role)) = redis::cmd("ROLE").query_async::<Value>(&mut connection).await
            && role.first().is_some_and(|role| text(role).as_deref() != Some("master"))
        {
            return Err(StoreError::Connection("the Redis there is a replica".to_owned()));
        }
        Ok(connection)
    }
}

impl Sentinels {
    /// The primary, by the first Sentinel that knows it.
    async fn primary(&self) -> Result<Client, StoreError> {
        let first = self.answered.load(Ordering::Relaxed);
        let mut problem = String::new();
        for turn in 0..self.clients.len() {
            let number = (first + turn) % self.clients.len();
            match timeout(SENTINEL_MAX, self.ask(&self.clients[number])).await {
                Ok(Ok(info)) => {
                    self.answered.store(number, Ordering::Relaxed);
                    return client(info, self.tls.as_ref()).map_err(no_connection);
                }
                Ok(Err(error)) => problem = error.to_string(),
                Err(_) => problem = format!("a Sentinel gave no answer within {SENTINEL_MAX:?}"),
            }
        }
        Err(StoreError::Connection(format!("no Sentinel knows the primary `{}`: {problem}", self.name)))
    }

    async fn ask(&self, sentinel: &Client) -> Result<ConnectionInfo, StoreError> {
        let mut connection = open(sentinel).await?;
        let answer = redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(&self.name).query_async(&mut connection).await;
        let known: Option<(String, u16)> = answer.map_err(no_connection)?;
        let (host, port) = known.ok_or_else(|| StoreError::Connection("the Sentinel knows no such primary".to_owned()))?;
        let address = match self.like.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Ok(self.like.clone().set_addr(address))
    }
}

/// Reads `host:port`, the path of a Unix socket, or a URL.
fn address(text: &str, tls: Option<&RedisTls>) -> Result<ConnectionInfo, RedisUrlError> {
    let url = if text.contains("://") {
        text.to_owned()
    } else if text.starts_with('/') {
        format!("unix://{text}")
    } else {
        format!("redis://{text}")
    };
    let info = url.into_connection_info().map_err(|error| RedisUrlError::Address(error.to_string()))?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true).set_user_timeout(USER_TIMEOUT));
    Ok(match (tls, info.addr()) {
        (Some(tls), ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) => {
            let mut address = ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None };
            address.set_danger_accept_invalid_hostnames(tls.skip_hostname_verification);
            info.set_addr(address)
        }
        _ => info,
    })
}

/// With the credentials of `USER:PASSWORD` or `PASSWORD`, which win over the address's own.
fn with_auth(info: ConnectionInfo, auth: Option<&str>) -> ConnectionInfo {
    let Some(auth) = auth else { return info };
    let settings = info.redis_settings().clone();
    let settings = match auth.split_once(':') {
        Some((user, password)) => settings.set_username(user).set_password(password),
        None => settings.set_password(auth),
    };
    info.set_redis_settings(settings)
}

fn client(info: ConnectionInfo, tls: Option<&RedisTls>) -> Result<Client, RedisError> {
    match (tls, info.addr()) {
        (Some(tls), ConnectionAddr::TcpTls { .. }) => {
            let client_tls = tls.client.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
            let skip = tls.skip_hostname_verification;
            let client = Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: tls.ca.clone() })?;
            if !skip {
                return Ok(client);
            }
            // Building has put the certificates into the address, and would forget what it is told before.
            let info = client.get_connection_info().clone();
            let mut address = info.addr().clone();
            address.set_danger_accept_invalid_hostnames(true);
            Client::open(info.set_addr(address))
        }
        _ => Client::open(info),
    }
}

/// A connection without timeouts of its own: the caller's cover everything.
async fn open(client: &Client) -> Result<MultiplexedConnection, StoreError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(no_connection)
}

fn no_connection(error: RedisError) -> StoreError {
    StoreError::Connection(error.to_string())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: RedisOptions) -> String {
        Primary::new(&options).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_can_not_be_an_address_or_a_certificate_is_told_without_its_secrets() {
        let plain = |url: &str| RedisOptions::new(url, Duration::from_millis(10));
        let sentinel = |url: &str| RedisOptions { deployment: RedisDeployment::Sentinel, ..plain(url) };
        let tls =
            |ca: &[u8]| RedisOptions { tls: Some(RedisTls { ca: Some(ca.to_vec()), ..RedisTls::default() }), ..plain("localhost:6379") };
        for fine in
            [plain("localhost:6379"), plain("/run/redis.sock"), plain("redis://u:p@h:1/2"), plain("rediss://h:1"), sentinel("m,a:1,b:2")]
        {
            assert_eq!(refused(fine.clone()), "", "{}", fine.url);
        }
        let told = refused(plain("redis://:hunter2@h:port/x"));
        assert!(told.contains("neither host:port") && !told.contains("hunter2"), "{told}");
        for wrong in ["a:1,b:2", "", ",a:1", "m"] {
            assert!(refused(sentinel(wrong)).contains("MASTER,HOST:PORT"), "{wrong}");
        }
        assert!(refused(sentinel("m,a:x")).contains("neither host:port"));
        let told = refused(tls(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n"));
        assert!(told.contains("REDIS_TLS_CACERT"), "{told}");
    }
}
