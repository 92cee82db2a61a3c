//! Settings: flags and environment, turned into what each module takes. [`ServeArgs`] is what was said; [`Settings`] is
//! what it means. Where the reference server has a variable for the same thing, its name and meaning are taken; those of
//! its settings that this server does not have are named, never passed over in silence.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

mod redis;

use crate::config::LoadOptions;
use crate::descriptor::RequestBounds;
use crate::grpc::{LimitHeaders, ReplyOptions};
use crate::hit::FailurePolicy;
use crate::limit::{Algorithm, LimitError, parse_duration};
use crate::limiter::Modes;
use crate::store::RedisOptions;
pub use redis::RedisArgs;

/// How to serve, as it was said on the command line and in the environment.
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    rules: RulesArgs,

    /// Say NOT_SERVING until the rules name a domain
    #[arg(long, env = "HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    healthy_with_at_least_one_config_loaded: bool,

    /// Let every request pass; count and measure all the same
    #[arg(long, env = "SHADOW_MODE", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    shadow_mode: bool,

    /// Deny a request only where all its descriptors are over their limits
    #[arg(long, env = "QUOTA_MODE", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    quota_mode: bool,

    /// Hits above this share of a limit are counted as near it
    #[arg(long, env = "NEAR_LIMIT_RATIO", value_name = "RATIO", default_value = "0.8", value_parser = ratio)]
    near_limit_ratio: f64,

    /// Add response headers that tell the limit, what is left, and when there is more
    #[arg(long, env = "LIMIT_RESPONSE_HEADERS_ENABLED", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    limit_response_headers_enabled: bool,

    /// plain: three headers with a number each, named below; draft-10: RateLimit-Policy and RateLimit of the IETF's draft
    #[arg(long, env = "LIMIT_RESPONSE_HEADERS_FORMAT", value_name = "FORMAT", default_value = "plain", value_parser = headers_format)]
    limit_response_headers_format: HeadersFormat,

    /// Name of the header with the limit
    #[arg(long, env = "LIMIT_LIMIT_HEADER", value_name = "NAME", default_value = "RateLimit-Limit", value_parser = header_name)]
    limit_limit_header: String,

    /// Name of the header with what is left of it
    #[arg(long, env = "LIMIT_REMAINING_HEADER", value_name = "NAME", default_value = "RateLimit-Remaining", value_parser = header_name)]
    limit_remaining_header: String,

    /// Name of the header with the seconds until there is more
    #[arg(long, env = "LIMIT_RESET_HEADER", value_name = "NAME", default_value = "RateLimit-Reset", value_parser = header_name)]
    limit_reset_header: String,

    /// Tell Envoy the request's descriptors, the deciding rule and the rules' metadata as dynamic metadata
    #[arg(long, env = "RESPONSE_DYNAMIC_METADATA", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    response_dynamic_metadata: bool,

    /// Address for gRPC
    #[arg(long, env = "GRPC_HOST", value_name = "IP", default_value = "0.0.0.0")]
    grpc_host: String,

    /// Port for gRPC; 0 takes a free one
    #[arg(long, env = "GRPC_PORT", value_name = "PORT", default_value_t = 8081)]
    grpc_port: u16,

    /// Path of a Unix socket for gRPC, instead of address and port
    #[arg(long, env = "GRPC_UDS", value_name = "PATH", value_parser = path)]
    grpc_uds: Option<PathBuf>,

    /// Address for HTTP: /json, /v1/is_allowed, /healthcheck
    #[arg(long, env = "HOST", value_name = "IP", default_value = "0.0.0.0")]
    host: String,

    /// Port for HTTP; 0 takes a free one
    #[arg(long, env = "PORT", value_name = "PORT", default_value_t = 8080)]
    port: u16,

    /// Address and port for Prometheus; a port alone (":9090") means every address
    #[arg(long, env = "PROMETHEUS_ADDR", value_name = "[IP]:PORT", default_value = ":9090")]
    prometheus_addr: String,

    /// Path of the Prometheus page
    #[arg(long, env = "PROMETHEUS_PATH", value_name = "PATH", default_value = "/metrics")]
    prometheus_path: String,

    /// Address for the admin port: what is loaded, explain, reset
    #[arg(long, env = "DEBUG_HOST", value_name = "IP", default_value = "127.0.0.1")]
    debug_host: String,

    /// Port for admin; 0 takes a free one
    #[arg(long, env = "DEBUG_PORT", value_name = "PORT", default_value_t = 6070)]
    debug_port: u16,

    /// Where counters live: memory or redis [default: redis where REDIS_URL is set, else memory]
    #[arg(long, env = "BACKEND_TYPE", value_name = "STORE")]
    backend_type: Option<String>,

    #[command(flatten)]
    redis: RedisArgs,

    /// Who answers while Redis does not: local (this server by itself), allow, deny or error
    #[arg(long, env = "ON_STORE_FAILURE", value_name = "POLICY", default_value = "local")]
    on_store_failure: FailurePolicy,

    /// The share of each limit that this server enforces by itself while Redis does not answer, above 0
    #[arg(long, env = "FALLBACK_SHARE", value_name = "SHARE", default_value = "1", value_parser = share)]
    fallback_share: f64,

    /// The most counters held in memory (for some requests a few more); beyond, those that expire first go
    #[arg(long, env = "MAX_COUNTERS", value_name = "NUMBER", default_value = "1000000", value_parser = positive)]
    max_counters: usize,

    /// The most descriptors in one request; more are refused
    #[arg(long, env = "MAX_DESCRIPTORS", value_name = "NUMBER", default_value = "1024", value_parser = at_most_65535)]
    max_descriptors: usize,

    /// The most entries in one descriptor; more are refused
    #[arg(long, env = "MAX_ENTRIES", value_name = "NUMBER", default_value = "64", value_parser = positive)]
    max_entries: usize,

    /// The largest request, in bytes, over gRPC and HTTP
    #[arg(long, env = "MAX_REQUEST_BYTES", value_name = "BYTES", default_value = "4194304", value_parser = positive)]
    max_request_bytes: usize,

    /// Threads that serve requests, each with a runtime of its own [default: one per core]
    #[arg(long, env = "SERVING_THREADS", value_name = "NUMBER", value_parser = positive)]
    serving_threads: Option<usize>,

    /// How long listeners stay open after SIGTERM, while the health check already says NOT_SERVING
    #[arg(long, env = "SHUTDOWN_DELAY", value_name = "DURATION", default_value = "0", value_parser = parse_duration)]
    shutdown_delay: Duration,

    /// error, warn, info, debug or trace (in a release build the same as debug)
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    log_level: LogLevel,

    /// text or json
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", default_value = "text", value_parser = log_format)]
    log_format: LogFormat,
}

/// Which rules files, as it was said; the same for serving and for explaining.
#[derive(Args, Clone)]
pub struct RulesArgs {
    /// A rules file, or a folder of them; may be given several times [default: RUNTIME_ROOT's folder, else config/]
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,

    /// Root of the rules folder, as the reference server has it; the default is taken where it exists
    #[arg(long, env = "RUNTIME_ROOT", value_name = "PATH", value_parser = path)]
    runtime_root: Option<PathBuf>,

    /// Folder below the root
    #[arg(long, env = "RUNTIME_SUBDIRECTORY", value_name = "PATH", value_parser = path)]
    runtime_subdirectory: Option<PathBuf>,

    /// Folder below that, with the rules in it
    #[arg(long, env = "RUNTIME_APPDIRECTORY", value_name = "PATH", default_value = "config", value_parser = path)]
    runtime_appdirectory: PathBuf,

    /// Put the rules of several files with the same domain together
    #[arg(long, env = "MERGE_DOMAIN_CONFIG", value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, value_parser = boolean)]
    merge_domain_config: bool,

    /// How limits are counted that don't say: sliding_window_log, token_bucket or fixed_window
    #[arg(long, env = "DEFAULT_ALGORITHM", value_name = "ALGORITHM", default_value = "sliding_window_log", value_parser = algorithm)]
    default_algorithm: Algorithm,
}

/// How to serve, as it is meant.
#[derive(Clone, Debug)]
pub struct Settings {
    pub rules: Vec<PathBuf>,
    pub load_options: LoadOptions,
    pub modes: Modes,
    pub reply: ReplyOptions,
    pub grpc: Address,
    pub http: SocketAddr,
    pub metrics: SocketAddr,
    pub metrics_path: String,
    pub admin: SocketAddr,
    pub health: HealthSettings,
    pub store: StoreSettings,
    pub on_store_failure: FailurePolicy,
    /// Of each limit, what this server enforces by itself while the store does not answer; above 0.
    pub fallback_share: f64,
    pub counters_max: usize,
    pub request_bounds: RequestBounds,
    pub request_bytes_max: usize,
    pub serving_threads: usize,
    pub shutdown_delay: Duration,
    /// What to tell the user of the settings, once there is a log.
    pub warnings: Vec<String>,
}

/// What the server waits for before it calls itself healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthSettings {
    /// For rules that name a domain.
    pub once_loaded: bool,
    /// For a store that answers; without it the server is not healthy any more.
    pub with_store: bool,
}

/// Where gRPC listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Which store keeps the counters.
#[derive(Clone, Debug)]
pub enum StoreSettings {
    Memory,
    Redis(Box<RedisOptions>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    // The reference's log has two levels above error; here they are one.
    #[value(aliases = ["panic", "fatal"])]
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// The form of the response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HeadersFormat {
    Plain,
    #[value(name = "draft-10")]
    Draft10,
}

/// A setting that contradicts another, or that would change an answer and is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

/// The reference server's default for RUNTIME_ROOT.
const RUNTIME_ROOT: &str = "/srv/runtime_data/current";

/// Settings of the reference server that would change answers, with the value that asks for nothing special. Any other
/// value is refused until it is supported.
const REFUSED: [(&str, &[&str]); 2] = [("CONFIG_TYPE", &["FILE"]), ("GRPC_SERVER_USE_TLS", FALSE)];

/// Settings of the reference server that change no answer. Named in one warning where they are set. (REDIS_SOCKET_TYPE and
/// USE_PROMETHEUS need no word: REDIS_URL shows what it is, and Prometheus is always on.)
const IGNORED: [&str; 27] = [
    "USE_STATSD",
    "USE_DOG_STATSD",
    "STATSD_HOST",
    "STATSD_PORT",
    "EXTRA_TAGS",
    "DISABLE_STATS",
    "PROMETHEUS_MAPPER_YAML",
    "PROMETHEUS_RESPONSE_TIME_AS_MILLISECONDS",
    "FORCE_START_WITHOUT_INITIAL_CONFIG",
    "GRPC_MAX_CONNECTION_AGE",
    "GRPC_MAX_CONNECTION_AGE_GRACE",
    "RUNTIME_IGNOREDOTFILES",
    "RUNTIME_WATCH_ROOT",
    "EXPIRATION_JITTER_MAX_SECONDS",
    "STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT",
    "REDIS_POOL_SIZE",
    "REDIS_POOL_ON_EMPTY_BEHAVIOR",
    "REDIS_PIPELINE_WINDOW",
    "REDIS_PIPELINE_LIMIT",
    "REDIS_CLUSTER_PIPELINE_PARALLELISM",
    "REDIS_PERSECOND_POOL_SIZE",
    "REDIS_PERSECOND_POOL_ON_EMPTY_BEHAVIOR",
    "REDIS_PERSECOND_PIPELINE_WINDOW",
    "REDIS_PERSECOND_PIPELINE_LIMIT",
    "REDIS_PERSECOND_TIMEOUT",
    "TRACING_ENABLED",
    "MEMCACHE_HOST_PORT",
];

/// As Go reads booleans; case does not matter here.
const FALSE: &[&str] = &["0", "f", "false"];

impl ServeArgs {
    pub fn log(&self) -> (LogLevel, LogFormat) {
        (self.log_level, self.log_format)
    }

    /// What was said, put together. `environment` looks a variable up.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn settle(self, environment: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let mut warnings = unsupported(&environment)?;
        let store = self.store(&mut warnings)?;
        Ok(Settings {
            grpc: match self.grpc_uds.as_ref().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) => Address::Unix(path.clone()),
                None => Address::Tcp(address("GRPC_HOST", &self.grpc_host, self.grpc_port)?),
            },
            http: address("HOST", &self.host, self.port)?,
            metrics: prometheus_address(&self.prometheus_addr)?,
            metrics_path: prometheus_path(&self.prometheus_path)?,
            // Unlike the other addresses, an empty one is loopback as well: whoever reaches this port can clear counters.
            admin: address("DEBUG_HOST", if self.debug_host.is_empty() { "127.0.0.1" } else { &self.debug_host }, self.debug_port)?,
            health: HealthSettings {
                once_loaded: self.healthy_with_at_least_one_config_loaded,
                with_store: self.redis.is_part_of_health() && matches!(store, StoreSettings::Redis(_)),
            },
            store,
            load_options: self.rules.options(),
            modes: Modes { shadow: self.shadow_mode, quota: self.quota_mode, near_limit_ratio: self.near_limit_ratio },
            reply: self.reply(),
            on_store_failure: self.on_store_failure,
            fallback_share: self.fallback_share,
            counters_max: self.max_counters,
            request_bounds: RequestBounds { descriptors: self.max_descriptors, entries_per_descriptor: self.max_entries },
            request_bytes_max: self.max_request_bytes,
            serving_threads: self.serving_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
            shutdown_delay: self.shutdown_delay,
            rules: self.rules.paths(),
            warnings,
        })
    }

    fn reply(&self) -> ReplyOptions {
        let headers = match self.limit_response_headers_format {
            HeadersFormat::Plain => LimitHeaders::Plain {
                limit: self.limit_limit_header.clone(),
                remaining: self.limit_remaining_header.clone(),
                reset: self.limit_reset_header.clone(),
            },
            HeadersFormat::Draft10 => LimitHeaders::Draft10,
        };
        ReplyOptions { headers: self.limit_response_headers_enabled.then_some(headers), dynamic_metadata: self.response_dynamic_metadata }
    }

    fn store(&self, warnings: &mut Vec<String>) -> Result<StoreSettings, SettingsError> {
        let mut redis =
            || Ok(self.redis.settle(warnings)?.map_or(StoreSettings::Memory, |options| StoreSettings::Redis(Box::new(options))));
        match self.backend_type.as_deref().filter(|store| !store.is_empty()) {
            None => redis(),
            Some("memory") => Ok(StoreSettings::Memory),
            Some("redis") if self.redis.has_address() => redis(),
            Some("redis") => Err(SettingsError("BACKEND_TYPE is redis, but REDIS_URL is not set: give it host:port".to_owned())),
            Some(other) => Err(SettingsError(format!("BACKEND_TYPE is memory or redis, not `{other}`"))),
        }
    }
}

impl RulesArgs {
    pub fn options(&self) -> LoadOptions {
        LoadOptions { merge_domains: self.merge_domain_config, default_algorithm: self.default_algorithm }
    }

    /// Where they are.
    pub fn paths(self) -> Vec<PathBuf> {
        if !self.config.is_empty() {
            return self.config;
        }
        let default_root = PathBuf::from(RUNTIME_ROOT);
        match self.runtime_root.filter(|root| !root.as_os_str().is_empty()).or_else(|| default_root.is_dir().then_some(default_root)) {
            Some(root) => {
                let below = |folder: PathBuf| folder.strip_prefix("/").map(Path::to_owned).unwrap_or(folder);
                vec![root.join(below(self.runtime_subdirectory.unwrap_or_default())).join(below(self.runtime_appdirectory))]
            }
            None => vec![PathBuf::from("config")],
        }
    }
}

fn unsupported(environment: &impl Fn(&str) -> Option<String>) -> Result<Vec<String>, SettingsError> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    for (name, harmless) in REFUSED {
        if set(name).is_some_and(|value| !harmless.iter().any(|harmless| harmless.eq_ignore_ascii_case(&value))) {
            return Err(SettingsError(format!(
                "{name} is not supported yet by this version, and to ignore it would change answers: unset it"
            )));
        }
    }
    let ignored: Vec<_> = IGNORED.into_iter().filter(|name| set(name).is_some()).collect();
    if ignored.is_empty() { Ok(Vec::new()) } else { Ok(vec![format!("set, but without effect here: {}", ignored.join(", "))]) }
}

fn address(name: &str, host: &str, port: u16) -> Result<SocketAddr, SettingsError> {
    let ip = match host {
        "" => "0.0.0.0",
        "localhost" => "127.0.0.1",
        host => host.trim_start_matches('[').trim_end_matches(']'),
    };
    let ip = ip.parse().map_err(|_| SettingsError(format!("{name} must be an IP address, not `{host}`")))?;
    Ok(SocketAddr::new(ip, port))
}

fn prometheus_address(text: &str) -> Result<SocketAddr, SettingsError> {
    let refuse = || SettingsError(format!("PROMETHEUS_ADDR must be IP:PORT or :PORT, not `{text}`"));
    let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    address("PROMETHEUS_ADDR", host, port.parse().map_err(|_| refuse())?)
}

/// The router reads braces and stars as patterns.
fn prometheus_path(text: &str) -> Result<String, SettingsError> {
    if text.starts_with('/') && !text.contains(['{', '}', '*']) {
        Ok(text.to_owned())
    } else {
        Err(SettingsError(format!("PROMETHEUS_PATH must begin with a slash and hold no brace or star, not `{text}`")))
    }
}

/// Takes an empty one, which compose files and charts set for a variable that nobody filled in: it is as good as unset.
fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(PathBuf::from(text))
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    if text.is_empty() {
        Ok(LogLevel::Info)
    } else {
        LogLevel::from_str(text, true).map_err(|_| "error, warn, info, debug or trace".to_owned())
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    if text.is_empty() { Ok(LogFormat::Text) } else { LogFormat::from_str(text, true).map_err(|_| "text or json".to_owned()) }
}

fn headers_format(text: &str) -> Result<HeadersFormat, String> {
    if text.is_empty() { Ok(HeadersFormat::Plain) } else { HeadersFormat::from_str(text, true).map_err(|_| "plain or draft-10".to_owned()) }
}

/// As Go reads booleans, in which the reference server's settings are written; an empty one is as good as unset.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share: &f64| *share > 0.0 && share.is_finite()).ok_or_else(|| "must be a number above 0".to_owned())
}

fn header_name(text: &str) -> Result<String, String> {
    let name = axum::http::HeaderName::from_bytes(text.as_bytes());
    name.map(|_| text.to_owned()).map_err(|_| "must be the name of a header".to_owned())
}

/// An empty one is as good as none.
pub(crate) fn algorithm(text: &str) -> Result<Algorithm, LimitError> {
    if text.is_empty() { Ok(Algorithm::default()) } else { text.parse() }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("must be a positive integer".to_owned()),
    }
}

/// A batch numbers its counters in 16 bits.
fn at_most_65535(text: &str) -> Result<usize, String> {
    positive(text).and_then(|number| if number <= 65_535 { Ok(number) } else { Err("must be at most 65535".to_owned()) })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::store::redis::RedisDeployment;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn settle(args: &[&str], environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let cli = Cli::try_parse_from([&["ratelimitd"], args].concat()).unwrap();
        cli.serve.settle(|name| environment.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn redis_is_the_store_where_its_address_is_given() {
        assert!(matches!(settle(&[], &[]).unwrap().store, StoreSettings::Memory));
        assert!(matches!(settle(&["--redis-url", "r:6379"], &[]).unwrap().store, StoreSettings::Redis(_)));
        assert!(matches!(settle(&["--redis-url", "r:6379", "--backend-type", "memory"], &[]).unwrap().store, StoreSettings::Memory));
        assert!(settle(&["--backend-type", "redis"], &[]).is_err());
        assert!(settle(&["--backend-type", "memcache"], &[]).unwrap_err().to_string().contains("not `memcache`"));
    }

    #[test]
    fn no_password_shows_in_debug_output() {
        let secrets = ["--redis-url", "redis://:hunter2@r:6379", "--redis-auth", "user:hunter2", "--redis-sentinel-auth", "hunter2"];
        assert!(!format!("{:?}", settle(&secrets, &[]).unwrap()).contains("hunter2"));
    }

    #[test]
    fn the_redis_settings_read_as_the_reference_server_reads_them() {
        let redis = |args: &[&str]| match settle(&[&["--redis-url", "r:6379"], args].concat(), &[])?.store {
            StoreSettings::Redis(options) => Ok::<_, SettingsError>(*options),
            StoreSettings::Memory => panic!("an address is set"),
        };
        let options: RedisOptions = redis(&["--redis-type", "SINGLE", "--redis-auth", "", "--local-cache-size-in-bytes="]).unwrap();
        assert_eq!((options.site.deployment, options.site.auth, options.denials_max), (RedisDeployment::Single, None, 65_536));
        assert_eq!(options.busy_poll, RedisOptions::new("r:6379", options.timeout).busy_poll, "as a library's");
        assert_eq!(redis(&["--redis-busy-poll", "0"]).unwrap().busy_poll, Duration::ZERO);
        let options = redis(&["--redis-type", "Sentinel", "--redis-auth", "u:p", "--local-cache-size-in-bytes", "0"]).unwrap();
        assert_eq!((options.site.deployment, options.denials_max), (RedisDeployment::Sentinel, 0));
        assert_eq!(options.site.auth.as_deref(), Some("u:p"));
        assert_eq!(redis(&["--redis-type", "CLUSTER"]).unwrap().site.deployment, RedisDeployment::Cluster);
        assert!(options.site.tls.is_none() && redis(&["--redis-tls"]).unwrap().site.tls.is_some());
        let by_address = settle(&["--redis-type", "sentinel", "--redis-url", "m,a:1, rediss://b:1"], &[]).unwrap().store;
        assert!(matches!(by_address, StoreSettings::Redis(options) if options.site.tls.is_some()), "the primary's too");
        assert!(redis(&["--redis-persecond-url", "s:1"]).unwrap().per_second.is_none(), "it was not asked for");
        let other =
            ["--redis-persecond", "--redis-persecond-url", "s:1", "--redis-persecond-auth", "q", "--redis-persecond-type", "cluster"];
        let other = redis(&other).unwrap().per_second.unwrap();
        assert_eq!((other.url.as_str(), other.auth.as_deref(), other.deployment), ("s:1", Some("q"), RedisDeployment::Cluster));
        for (wrong, says) in [
            (&["--redis-type", "ring"][..], "not `ring`"),
            (&["--redis-persecond"], "set REDIS_PERSECOND_URL"),
            (&["--redis-persecond", "--redis-persecond-url", "s:1", "--redis-persecond-type", "x"], "REDIS_PERSECOND_TYPE"),
            (&["--cache-key-prefix", "a{b"], "brace"),
            (&["--redis-tls", "--redis-tls-cacert", "/nowhere.pem"], "REDIS_TLS_CACERT: /nowhere.pem can't be read"),
            (&["--redis-tls", "--redis-tls-client-key", "Cargo.toml"], "go together"),
        ] {
            assert!(redis(wrong).unwrap_err().to_string().contains(says), "{wrong:?}");
        }
    }

    #[test]
    fn the_default_algorithm_is_read_by_its_name_and_an_empty_one_is_none() {
        let of = |name: &str| settle(&["--default-algorithm", name], &[]).unwrap().load_options.default_algorithm.as_str();
        assert_eq!((of("fixed_window"), of("")), ("fixed_window", "sliding_window_log"));
    }

    #[test]
    fn a_long_redis_timeout_is_warned_about() {
        assert!(settle(&["--redis-url", "r:1", "--redis-timeout", "10s"], &[]).unwrap().warnings[0].contains("REDIS_TIMEOUT is 10s"));
        assert!(settle(&["--redis-url", "r:1"], &[]).unwrap().warnings.is_empty());
    }

    #[test]
    fn settings_of_the_reference_server_are_never_passed_over_in_silence() {
        assert!(settle(&[], &[("GRPC_SERVER_USE_TLS", "true")]).unwrap_err().to_string().contains("GRPC_SERVER_USE_TLS"));
        assert!(settle(&[], &[("CONFIG_TYPE", "File"), ("GRPC_SERVER_USE_TLS", "")]).unwrap().warnings.is_empty());
        let warnings = settle(&[], &[("USE_STATSD", "true"), ("EXTRA_TAGS", "a:b")]).unwrap().warnings;
        assert_eq!(warnings, ["set, but without effect here: USE_STATSD, EXTRA_TAGS"]);
    }

    #[test]
    fn addresses_read_as_the_reference_server_reads_them() {
        let settings = settle(&["--prometheus-addr", "127.0.0.1:1", "--host", "::1", "--grpc-host", ""], &[]).unwrap();
        assert_eq!((settings.metrics.to_string(), settings.http.to_string()), ("127.0.0.1:1".into(), "[::1]:8080".into()));
        assert_eq!(settings.grpc, Address::Tcp("0.0.0.0:8081".parse().unwrap()));
        assert_eq!(settle(&["--debug-host", ""], &[]).unwrap().admin, "127.0.0.1:6070".parse().unwrap());
        assert!(settle(&["--prometheus-addr", "9090"], &[]).is_err());
        assert!(settle(&["--host", "example.com"], &[]).is_err());
    }

    #[test]
    fn rules_come_from_the_flag_else_the_runtime_root_else_config() {
        assert_eq!(settle(&["--config", "a", "--config", "b"], &[]).unwrap().rules, [PathBuf::from("a"), PathBuf::from("b")]);
        let root = settle(&["--runtime-root", "/r", "--runtime-subdirectory", "s"], &[]).unwrap().rules;
        assert_eq!(root, [PathBuf::from("/r/s/config")]);
        let slashed = settle(&["--runtime-root", "/r", "--runtime-subdirectory", "/s", "--runtime-appdirectory", "/a"], &[]).unwrap().rules;
        assert_eq!(slashed, [PathBuf::from("/r/s/a")], "below the root all the same");
    }

    #[test]
    fn modes_and_headers_read_as_the_reference_server_reads_them() {
        let settings = settle(&["--shadow-mode", "--quota-mode=T", "--near-limit-ratio", "0.5"], &[]).unwrap();
        assert_eq!(settings.modes, Modes { shadow: true, quota: true, near_limit_ratio: 0.5 });
        assert_eq!(settings.reply, ReplyOptions::default());
        let reply = settle(&["--limit-response-headers-enabled", "--limit-reset-header", "X-Reset"], &[]).unwrap().reply;
        let (limit, remaining, reset) = ("RateLimit-Limit".into(), "RateLimit-Remaining".into(), "X-Reset".into());
        assert_eq!(reply.headers, Some(LimitHeaders::Plain { limit, remaining, reset }));
        for wrong in [["--shadow-mode", "yes"], ["--near-limit-ratio", "1.1"], ["--limit-reset-header", "a b"]] {
            assert!(Cli::try_parse_from([&["ratelimitd"], &wrong[..]].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_setting_is_as_good_as_unset() {
        let empty = [
            "--runtime-root=",
            "--runtime-subdirectory=",
            "--grpc-uds=",
            "--redis-url=",
            "--backend-type=",
            "--log-level=",
            "--log-format=",
            "--shadow-mode=",
        ];
        let settings = settle(&empty, &[]).unwrap();
        assert_eq!((settings.rules, settings.grpc), (vec![PathBuf::from("config")], Address::Tcp("0.0.0.0:8081".parse().unwrap())));
        assert!(settle(&["--prometheus-path", "/{x"], &[]).is_err() && settle(&["--prometheus-path", "x"], &[]).is_err());
    }
}
