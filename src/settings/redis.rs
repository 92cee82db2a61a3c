//! The settings of the Redis store, under the reference server's names, as they were said, and what they mean together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{SettingsError, boolean, path, positive_duration};
use crate::limit::parse_duration;
use crate::store::redis::{DENIALS_DEFAULT, RedisDeployment, RedisSite, RedisTls};
use crate::store::{Clock, RedisOptions};

/// Where Redis is and how it is entered.
#[derive(Args, Clone)]
pub struct RedisArgs {
    /// single, sentinel or cluster
    #[arg(long, env = "REDIS_TYPE", value_name = "TYPE", default_value = "single")]
    redis_type: String,

    /// single: host:port, the path of a Unix socket, or redis://USER:PASSWORD@HOST:PORT/DATABASE. sentinel:
    /// MASTER,HOST:PORT,HOST:PORT/DATABASE... (the primary's). cluster: HOST:PORT,HOST:PORT..., some of its nodes
    #[arg(long, env = "REDIS_URL", value_name = "ADDRESS", hide_env_values = true)]
    redis_url: Option<String>,

    /// PASSWORD or USER:PASSWORD for Redis, in place of the address's
    #[arg(long, env = "REDIS_AUTH", value_name = "SECRET", hide_env_values = true)]
    redis_auth: Option<String>,

    /// PASSWORD or USER:PASSWORD for the Sentinels
    #[arg(long, env = "REDIS_SENTINEL_AUTH", value_name = "SECRET", hide_env_values = true)]
    redis_sentinel_auth: Option<String>,

    /// TLS toward Redis and the Sentinels
    #[arg(long, env = "REDIS_TLS", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    redis_tls: bool,

    /// PEM file of the authorities that may have signed Redis's certificate [default: the system's]
    #[arg(long, env = "REDIS_TLS_CACERT", value_name = "PATH", value_parser = path)]
    redis_tls_cacert: Option<PathBuf>,

    /// PEM file of the certificate to show to Redis
    #[arg(long, env = "REDIS_TLS_CLIENT_CERT", value_name = "PATH", value_parser = path)]
    redis_tls_client_cert: Option<PathBuf>,

    /// PEM file of its key
    #[arg(long, env = "REDIS_TLS_CLIENT_KEY", value_name = "PATH", value_parser = path)]
    redis_tls_client_key: Option<PathBuf>,

    /// Take a certificate of Redis for any host name
    #[arg(long, env = "REDIS_TLS_SKIP_HOSTNAME_VERIFICATION", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    redis_tls_skip_hostname_verification: bool,

    /// How long Redis may take, queueing and connecting included; Envoy gives up after 20ms
    #[arg(long, env = "REDIS_TIMEOUT", value_name = "DURATION", default_value = "10ms", value_parser = positive_duration)]
    redis_timeout: Duration,

    /// Poll for the answer to a lone request in place of sleeping, for so long, if the last one came within it; 0: never
    #[arg(long, env = "REDIS_BUSY_POLL", value_name = "DURATION", default_value = "200us", value_parser = parse_duration)]
    redis_busy_poll: Duration,

    /// Not healthy while Redis does not answer. Leave it off where the failure policy is to answer then
    #[arg(long, env = "REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    redis_health_check_active_connection: bool,

    /// Windows of a second or less are counted in a Redis of their own, at REDIS_PERSECOND_URL
    #[arg(long, env = "REDIS_PERSECOND", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    redis_persecond: bool,

    /// As REDIS_TYPE, of that Redis
    #[arg(long, env = "REDIS_PERSECOND_TYPE", value_name = "TYPE", default_value = "single")]
    redis_persecond_type: String,

    /// As REDIS_URL, of that Redis
    #[arg(long, env = "REDIS_PERSECOND_URL", value_name = "ADDRESS", hide_env_values = true)]
    redis_persecond_url: Option<String>,

    /// As REDIS_AUTH, for that Redis
    #[arg(long, env = "REDIS_PERSECOND_AUTH", value_name = "SECRET", hide_env_values = true)]
    redis_persecond_auth: Option<String>,

    /// As REDIS_SENTINEL_AUTH, for that Redis's Sentinels
    #[arg(long, env = "REDIS_PERSECOND_SENTINEL_AUTH", value_name = "SECRET", hide_env_values = true)]
    redis_persecond_sentinel_auth: Option<String>,

    /// TLS toward that Redis, with the certificates of REDIS_TLS_*
    #[arg(long, env = "REDIS_PERSECOND_TLS", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    redis_persecond_tls: bool,

    /// What each key in Redis begins with
    #[arg(long, env = "CACHE_KEY_PREFIX", value_name = "TEXT", default_value = "")]
    cache_key_prefix: String,

    /// Memory for denials that are answered without asking Redis, 256 bytes each; 0 turns them off [default: room for 65536]
    #[arg(long, env = "LOCAL_CACHE_SIZE_IN_BYTES", value_name = "BYTES")]
    local_cache_size_in_bytes: Option<String>,
}

/// Envoy's default timeout is 20 ms; a Redis timeout above this leaves no time for the failure policy's answer.
const REDIS_TIMEOUT_SENSIBLE: Duration = Duration::from_millis(15);

/// What a denial takes, key included.
const DENIAL_SIZE: usize = 256;

impl RedisArgs {
    pub(super) fn has_address(&self) -> bool {
        said(&self.redis_url).is_some()
    }

    pub(super) fn is_part_of_health(&self) -> bool {
        self.redis_health_check_active_connection
    }

    /// What was said, put together; None where there is no address.
    pub(super) fn settle(&self, warnings: &mut Vec<String>) -> Result<Option<RedisOptions>, SettingsError> {
        let Some(url) = said(&self.redis_url) else { return Ok(None) };
        if self.redis_timeout > REDIS_TIMEOUT_SENSIBLE {
            let timeout = self.redis_timeout;
            warnings
                .push(format!("REDIS_TIMEOUT is {timeout:?}: Envoy gives up after 20ms unless told otherwise, so keep it at 15ms or less"));
        }
        let site = RedisSite {
            deployment: deployment("REDIS_TYPE", &self.redis_type)?,
            url,
            auth: said(&self.redis_auth),
            sentinel_auth: said(&self.redis_sentinel_auth),
            tls: self.tls(self.redis_tls, &self.redis_url)?,
        };
        if self.cache_key_prefix.contains(['{', '}']) {
            return Err(SettingsError(
                "CACHE_KEY_PREFIX must hold no brace: the braces of a key say where it lives in a Cluster".to_owned(),
            ));
        }
        let denials_max = match said(&self.local_cache_size_in_bytes).map(|bytes| bytes.parse::<usize>()) {
            None => DENIALS_DEFAULT,
            Some(Ok(bytes)) => bytes.div_ceil(DENIAL_SIZE),
            Some(Err(_)) => return Err(SettingsError("LOCAL_CACHE_SIZE_IN_BYTES must be a number of bytes".to_owned())),
        };
        Ok(Some(RedisOptions {
            site,
            per_second: self.per_second()?,
            key_prefix: self.cache_key_prefix.clone(),
            timeout: self.redis_timeout,
            busy_poll: self.redis_busy_poll,
            denials_max,
            clock: Clock::System,
        }))
    }

    /// The Redis for windows of a second or less, where there is one.
    fn per_second(&self) -> Result<Option<RedisSite>, SettingsError> {
        if !self.redis_persecond {
            return Ok(None);
        }
        let url = said(&self.redis_persecond_url)
            .ok_or_else(|| SettingsError("REDIS_PERSECOND needs an address: set REDIS_PERSECOND_URL".to_owned()))?;
        Ok(Some(RedisSite {
            deployment: deployment("REDIS_PERSECOND_TYPE", &self.redis_persecond_type)?,
            url,
            auth: said(&self.redis_persecond_auth),
            sentinel_auth: said(&self.redis_persecond_sentinel_auth),
            tls: self.tls(self.redis_persecond_tls, &self.redis_persecond_url)?,
        }))
    }

    /// TLS, where it is wanted: asked for, or by any rediss:// address, which has all of them meant.
    fn tls(&self, asked: bool, url: &Option<String>) -> Result<Option<RedisTls>, SettingsError> {
        let in_addresses = |url: &str| url.split(',').any(|address| address.trim().starts_with("rediss://"));
        if !asked && !url.as_deref().is_some_and(in_addresses) {
            return Ok(None);
        }
        let ca = read("REDIS_TLS_CACERT", &self.redis_tls_cacert)?;
        let certificate = read("REDIS_TLS_CLIENT_CERT", &self.redis_tls_client_cert)?;
        let key = read("REDIS_TLS_CLIENT_KEY", &self.redis_tls_client_key)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(SettingsError("REDIS_TLS_CLIENT_CERT and REDIS_TLS_CLIENT_KEY go together: set both or none".to_owned())),
        };
        Ok(Some(RedisTls { ca, client, skip_hostname_verification: self.redis_tls_skip_hostname_verification }))
    }
}

fn deployment(setting: &str, said: &str) -> Result<RedisDeployment, SettingsError> {
    match said.to_ascii_lowercase().as_str() {
        "" | "single" => Ok(RedisDeployment::Single),
        "sentinel" => Ok(RedisDeployment::Sentinel),
        "cluster" => Ok(RedisDeployment::Cluster),
        other => Err(SettingsError(format!("{setting} is single, sentinel or cluster, not `{other}`"))),
    }
}

/// An empty setting is as good as unset.
fn said(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

fn read(name: &str, file: &Option<PathBuf>) -> Result<Option<Vec<u8>>, SettingsError> {
    let Some(file) = file.as_deref().filter(|file| *file != Path::new("")) else { return Ok(None) };
    std::fs::read(file).map(Some).map_err(|error| SettingsError(format!("{name}: {} can't be read: {error}", file.display())))
}
