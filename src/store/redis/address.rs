//! An address of a Redis as it was written, with the credentials and certificates that open it. Shows none of the secrets;
//! who is found there is for others to ask.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates,
};

use super::{RedisTls, RedisUrlError};
use crate::store::StoreError;

/// Where a Redis is and how it is entered.
#[derive(Clone)]
pub(super) struct Address {
    info: ConnectionInfo,
    tls: Option<RedisTls>,
    client: Client,
}

/// A peer that acknowledges nothing for so long has gone.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

impl Address {
    /// Reads `host:port`, the path of a Unix socket, or a URL. The credentials of `auth`, which are `USER:PASSWORD` or
    /// `PASSWORD`, win over the address's own.
    ///
    /// # Errors
    /// Text that is none of these, or certificates that can't be read.
    pub fn read(text: &str, auth: Option<&str>, tls: Option<&RedisTls>) -> Result<Self, RedisUrlError> {
        let url = if text.contains("://") {
            text.to_owned()
        } else if text.starts_with('/') {
            format!("unix://{text}")
        } else {
            format!("redis://{text}")
        };
        let info = url.into_connection_info().map_err(|error| RedisUrlError::Address(error.to_string()))?;
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true).set_user_timeout(USER_TIMEOUT));
        let info = match (tls, info.addr()) {
            (Some(tls), ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) => {
                let mut address = ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None };
                address.set_danger_accept_invalid_hostnames(tls.skip_hostname_verification);
                info.set_addr(address)
            }
            _ => info,
        };
        let info = with_auth(info, auth);
        let client = client(info.clone(), tls).map_err(|error| RedisUrlError::Certificates(error.to_string()))?;
        Ok(Self { info, tls: tls.cloned(), client })
    }

    /// Another Redis that is entered like this one.
    ///
    /// # Errors
    /// In practice none: the certificates have been read before.
    pub fn at(&self, host: &str, port: u16) -> Result<Self, StoreError> {
        let host = host.to_owned();
        let address = match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let info = self.info.clone().set_addr(address);
        let client = client(info.clone(), self.tls.as_ref()).map_err(no_connection)?;
        Ok(Self { info, tls: self.tls.clone(), client })
    }

    /// The database 0, whatever was written.
    pub fn without_database(self) -> Result<Self, RedisUrlError> {
        let settings = self.info.redis_settings().clone().set_db(0);
        let info = self.info.set_redis_settings(settings);
        let client = client(info.clone(), self.tls.as_ref()).map_err(|error| RedisUrlError::Certificates(error.to_string()))?;
        Ok(Self { info, tls: self.tls, client })
    }

    pub fn database(&self) -> i64 {
        self.info.redis_settings().db()
    }

    /// Where that is a host, and not a socket.
    pub fn host(&self) -> Option<&str> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Some(host),
            _ => None,
        }
    }

    /// A connection without timeouts of its own: the caller's cover everything.
    ///
    /// # Errors
    /// [`StoreError::Connection`]: nobody there, or no admission.
    pub async fn open(&self) -> Result<MultiplexedConnection, StoreError> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(no_connection)
    }
}

impl fmt::Display for Address {
    /// Host and port, or the path of the socket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.addr().fmt(f)
    }
}

fn with_auth(info: ConnectionInfo, auth: Option<&str>) -> ConnectionInfo {
    let Some(auth) = auth else { return info };
    // Of the address's own credentials nothing stays, the user neither.
    let plain = RedisConnectionInfo::default().set_db(info.redis_settings().db()).set_protocol(info.redis_settings().protocol());
    let settings = match auth.split_once(':') {
        // An empty user, as in a URL, is the default one.
        Some(("", password)) => plain.set_password(password),
        Some((user, password)) => plain.set_username(user).set_password(password),
        None => plain.set_password(auth),
    };
    info.set_redis_settings(settings)
}

fn client(info: ConnectionInfo, tls: Option<&RedisTls>) -> Result<Client, RedisError> {
    match (tls, info.addr()) {
        (Some(tls), ConnectionAddr::TcpTls { .. }) => {
            let client_tls = tls.client.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
            let client = Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: tls.ca.clone() })?;
            if !tls.skip_hostname_verification {
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

pub(super) fn no_connection(error: RedisError) -> StoreError {
    StoreError::Connection(error.to_string())
}
