//! Puts everything together: binds all listeners before anything is served, deals each accepted connection to the serving
//! thread with the fewest, runs sweeps and metrics beside them, and drains it all when told to stop. Whoever calls decides
//! when that is. It knows every part and none of their insides.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

mod listener;
mod thread;

use crate::config::{self, LoadOptions, Problems};
use crate::grpc::HEALTH_SERVICE;
use crate::limiter::{Fallback, Notices};
use crate::metrics::Metrics;
use crate::rules::LiveRules;
use crate::settings::{Address, Settings, StoreSettings};
use crate::store::redis::RedisUrlError;
use crate::store::{Clock, Memory, Redis, RedisOptions, Store};
use listener::{Listener, Protocol};
use thread::{Blueprint, ServingThread};

/// A server whose listeners are bound. Nothing is answered before [`Server::run`].
pub struct Server {
    grpc: Listener,
    http: Listener,
    metrics_page: TcpListener,
    metrics_path: String,
    health: HealthReporter,
    serving: Arc<AtomicBool>,
    threads: Vec<ServingThread>,
    /// The store, or the fallback's.
    memory: Arc<Memory>,
    metrics: Arc<Metrics>,
    shutdown_delay: Duration,
}

/// Why a server does not start, or stops by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{0}")]
    Rules(#[from] Problems),
    #[error("can't listen for {what} on {address}: {error}")]
    Bind { what: &'static str, address: String, error: io::Error },
    #[error(transparent)]
    RedisUrl(#[from] RedisUrlError),
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("a serving thread can't be started: {0}")]
    Thread(io::Error),
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// How often expired counters are swept out of memory, and recorded times folded into their histograms.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

impl Server {
    /// Loads the rules, binds every listener, and starts the threads. To be called in the runtime that goes on to `run`.
    ///
    /// # Errors
    /// Rules that don't load (then no port is opened), an address that is taken, a store address that can't be read.
    pub async fn bind(settings: Settings) -> Result<Self, ServerError> {
        for warning in &settings.warnings {
            warn!("{warning}");
        }
        let metrics = Arc::new(Metrics::new()?);
        let rules = Arc::new(load_rules(&settings.rules, settings.load_options, &metrics)?);
        let (stores, memory) = stores(&settings, &metrics)?;
        let grpc = Listener::bind("gRPC", &settings.grpc).await?;
        let http = Listener::bind("HTTP", &Address::Tcp(settings.http)).await?;
        let metrics_page = bind_metrics_page(settings.metrics).await?;

        // A memory store always answers: its fallback is itself.
        let fallback = memory.unwrap_or_else(|| Arc::new(Memory::new(settings.counters_max, Clock::System, metrics.store("fallback"))));
        let (health, _) = tonic_health::server::health_reporter();
        health.set_service_status(HEALTH_SERVICE, ServingStatus::Serving).await;
        let serving = Arc::new(AtomicBool::new(true));
        let blueprint = Blueprint {
            rules,
            fallback: Fallback { policy: settings.on_store_failure, memory: Arc::clone(&fallback) },
            modes: settings.modes,
            notices: Arc::new(Notices::default()),
            metrics: Arc::clone(&metrics),
            health: health.clone(),
            serving: Arc::clone(&serving),
            request_bounds: settings.request_bounds,
            reply: settings.reply.clone(),
            request_bytes_max: settings.request_bytes_max,
        };
        let start = |(number, store)| ServingThread::start(number, store, blueprint.clone()).map_err(ServerError::Thread);
        let threads: Vec<ServingThread> = stores.into_iter().enumerate().map(start).collect::<Result<_, _>>()?;
        info!(threads = threads.len(), store = ?settings.store, on_store_failure = settings.on_store_failure.as_str(), "ready to serve");
        Ok(Self {
            grpc,
            http,
            metrics_page,
            metrics_path: settings.metrics_path,
            health,
            serving,
            threads,
            memory: fallback,
            metrics,
            shutdown_delay: settings.shutdown_delay,
        })
    }

    /// Serves until `shutdown` ends; then says NOT_SERVING, keeps the listeners open for the shutdown delay, and lets the
    /// calls under way finish.
    ///
    /// # Errors
    /// A listener or a thread ended by itself.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let threads = Arc::new(self.threads);
        let mut doors = JoinSet::new();
        doors.spawn(listener::deal(self.grpc, Protocol::Grpc, Arc::clone(&threads)));
        doors.spawn(listener::deal(self.http, Protocol::Http, Arc::clone(&threads)));
        let mut upkeep = JoinSet::new();
        upkeep.spawn(keep_up(self.memory, Arc::clone(&self.metrics)));
        upkeep.spawn(serve_metrics(self.metrics_page, self.metrics_path, self.metrics));

        tokio::select! {
            () = shutdown => {}
            _ = doors.join_next() => return Err(ServerError::Ended("a listener")),
            _ = upkeep.join_next() => return Err(ServerError::Ended("the metrics page")),
            () = thread::any_ended(&threads) => return Err(ServerError::Ended("a serving thread")),
        }
        self.serving.store(false, Ordering::Relaxed);
        for service in ["", HEALTH_SERVICE] {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        info!(delay = ?self.shutdown_delay, "stopping: not serving any more, listeners stay open for the delay");
        sleep(self.shutdown_delay).await;
        doors.shutdown().await;
        // Ends the streams of those who watch it, which would hold the drain up.
        for service in ["", HEALTH_SERVICE] {
            self.health.clear_service_status(service).await;
        }
        thread::drain(&threads).await;
        info!("stopped");
        Ok(())
    }
}

fn load_rules(paths: &[PathBuf], options: LoadOptions, metrics: &Metrics) -> Result<LiveRules, Problems> {
    let loaded = config::load(paths, options)?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let (domains, rules) = loaded.rules.counts();
    info!(files = loaded.files, domains, rules, hash = loaded.hash, "rules loaded");
    metrics.rules_loaded.set(rules as f64);
    metrics.domains_loaded.set(domains as f64);
    Ok(LiveRules::new(loaded.rules.counted_in(metrics)))
}

/// A store for each thread; and the memory that all of them share, where that is the store. Toward Redis each has a batch
/// and a connection of its own, so that a request never leaves its thread.
fn stores(settings: &Settings, metrics: &Metrics) -> Result<(Vec<Store>, Option<Arc<Memory>>), ServerError> {
    match &settings.store {
        StoreSettings::Memory => {
            let memory = Arc::new(Memory::new(settings.counters_max, Clock::System, metrics.store("memory")));
            let stores = (0..settings.serving_threads).map(|_| Store::Memory(Arc::clone(&memory))).collect();
            Ok((stores, Some(memory)))
        }
        StoreSettings::Redis { url, timeout } => {
            let options = RedisOptions { url: url.clone(), timeout: *timeout, clock: Clock::System };
            let store = |_| Ok(Store::Redis(Redis::new(&options, metrics.store("redis"))?));
            Ok(((0..settings.serving_threads).map(store).collect::<Result<_, RedisUrlError>>()?, None))
        }
    }
}

async fn bind_metrics_page(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let refuse = |error| ServerError::Bind { what: "metrics", address: address.to_string(), error };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    info!(address = %listener.local_addr().map_err(refuse)?, "listening for metrics");
    Ok(listener)
}

async fn serve_metrics(listener: TcpListener, path: String, metrics: Arc<Metrics>) {
    let page = move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()) };
    // It ends only with the process: axum goes on after a failed accept.
    let _ = axum::serve(listener, Router::new().route(&path, get(page))).await;
}

async fn keep_up(memory: Arc<Memory>, metrics: Arc<Metrics>) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        memory.sweep();
        metrics.upkeep();
    }
}
