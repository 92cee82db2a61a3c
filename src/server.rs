//! Puts everything together: binds all listeners before anything is served, deals each accepted connection to the serving
//! thread with the fewest, runs sweeps, metrics, admin and reloads beside them, and drains it all when told to stop. Whoever calls decides
//! when that is. It knows every part and none of their insides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

mod health;
mod listener;
mod thread;

use crate::admin::Admin;
use crate::config::Problems;
use crate::config::watch::RulesFiles;
use crate::limiter::{Fallback, Notices, RateLimiter};
use crate::metrics::{Metrics, RedisSeries};
use crate::settings::{Address, Settings, StoreSettings};
use crate::store::redis::RedisUrlError;
use crate::store::{Clock, Memory, Redis, Store};
use health::Health;
use listener::{Listener, Protocol};
use thread::{Blueprint, ServingThread};

/// A server whose listeners are bound. Nothing is answered before [`Server::run`].
pub struct Server {
    grpc: Listener,
    http: Listener,
    metrics_page: TcpListener,
    metrics_path: String,
    admin_page: TcpListener,
    admin: Admin,
    rules: Arc<RulesFiles>,
    health: Health,
    /// Asked whether it answers, where health hangs on it.
    store: Store,
    /// Its leases are swept.
    upkeep: Store,
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

/// Where many counters have expired at once, a sweep leaves the processor to others now and then, of so many steps.
const SWEEP_STEPS: usize = 4;
const SWEEP_PAUSE: Duration = Duration::from_millis(1);

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
        let rules = RulesFiles::load(settings.rules.clone(), settings.load_options, Arc::clone(&metrics))?;
        let Stores { serving, admin, upkeep, memory } = stores(&settings, &metrics)?;
        let grpc = Listener::bind("gRPC", &settings.grpc).await?;
        let http = Listener::bind("HTTP", &Address::Tcp(settings.http)).await?;
        let metrics_page = bind_page("metrics", settings.metrics).await?;
        let admin_page = bind_page("admin", settings.admin).await?;

        // A memory store always answers: its fallback is itself.
        let fallback = memory.unwrap_or_else(|| Arc::new(Memory::new(settings.counters_max, Clock::System, metrics.store("fallback"))));
        let policy = Fallback { policy: settings.on_store_failure, share: settings.fallback_share, memory: Arc::clone(&fallback) };
        let health = Health::new(settings.health).await;
        let store = admin.clone();
        let limiter = RateLimiter::new(Arc::clone(rules.live()), admin, policy.clone(), Arc::clone(&metrics));
        let limiter = limiter.in_modes(settings.modes);
        let blueprint = Blueprint {
            rules: Arc::clone(rules.live()),
            fallback: policy,
            modes: settings.modes,
            notices: Arc::new(Notices::of_rules(&settings.rules)),
            metrics: Arc::clone(&metrics),
            health: health.grpc.clone(),
            serving: Arc::clone(&health.http),
            request_bounds: settings.request_bounds,
            reply: settings.reply.clone(),
            request_bytes_max: settings.request_bytes_max,
        };
        let start = |(number, store)| ServingThread::start(number, store, blueprint.clone()).map_err(ServerError::Thread);
        let threads: Vec<ServingThread> = serving.into_iter().enumerate().map(start).collect::<Result<_, _>>()?;
        info!(threads = threads.len(), store = ?settings.store, on_store_failure = settings.on_store_failure.as_str(), "ready to serve");
        Ok(Self {
            grpc,
            http,
            metrics_page,
            metrics_path: settings.metrics_path,
            admin_page,
            admin: Admin::new(limiter, rules.status(), Arc::clone(rules.live()), Arc::clone(&metrics), settings.request_bounds),
            rules: Arc::new(rules),
            health,
            store,
            upkeep,
            threads,
            memory: fallback,
            metrics,
            shutdown_delay: settings.shutdown_delay,
        })
    }

    /// Serves until `shutdown` ends, and reads the rules files again when they change or `reload` is notified. Then says
    /// NOT_SERVING, keeps the listeners open for the shutdown delay, and lets the calls under way finish.
    ///
    /// # Errors
    /// A listener or a thread ended by itself.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>, reload: Arc<Notify>) -> Result<(), ServerError> {
        let threads = Arc::new(self.threads);
        let mut doors = JoinSet::new();
        doors.spawn(listener::deal(self.grpc, Protocol::Grpc, Arc::clone(&threads)));
        doors.spawn(listener::deal(self.http, Protocol::Http, Arc::clone(&threads)));
        let mut upkeep = JoinSet::new();
        upkeep.spawn(keep_up(self.memory, self.upkeep, Arc::clone(&self.metrics)));
        upkeep.spawn(serve_page(self.metrics_page, metrics_page(self.metrics_path, self.metrics)));
        upkeep.spawn(serve_page(self.admin_page, self.admin.routes()));
        upkeep.spawn(Arc::clone(&self.rules).keep_current(reload));

        tokio::select! {
            () = shutdown => {}
            _ = doors.join_next() => return Err(ServerError::Ended("a listener")),
            _ = upkeep.join_next() => return Err(ServerError::Ended("metrics, admin or reloading")),
            () = self.health.follow(&self.rules, &self.store) => return Err(ServerError::Ended("reloading")),
            () = thread::any_ended(&threads) => return Err(ServerError::Ended("a serving thread")),
        }
        self.health.set(false).await;
        info!(delay = ?self.shutdown_delay, "stopping: not serving any more, listeners stay open for the delay");
        sleep(self.shutdown_delay).await;
        doors.shutdown().await;
        self.health.end().await;
        thread::drain(&threads).await;
        info!("stopped");
        Ok(())
    }
}

/// The one store, as each thread asks it. Toward Redis each has a batch and a connection of its own, so that a request never
/// leaves its thread.
struct Stores {
    serving: Vec<Store>,
    admin: Store,
    /// For the control runtime, beside what the admin port asks.
    upkeep: Store,
    /// Where that is the store.
    memory: Option<Arc<Memory>>,
}

fn stores(settings: &Settings, metrics: &Metrics) -> Result<Stores, ServerError> {
    match &settings.store {
        StoreSettings::Memory => {
            let memory = Arc::new(Memory::new(settings.counters_max, Clock::System, metrics.store("memory")));
            let store = Store::Memory(Arc::clone(&memory));
            let serving = vec![store.clone(); settings.serving_threads];
            Ok(Stores { serving, admin: store.clone(), upkeep: store, memory: Some(memory) })
        }
        StoreSettings::Redis(options) => {
            let redis = Redis::new(options, metrics.redis())?;
            let serving = (0..settings.serving_threads).map(|_| Store::Redis(redis.on_another_runtime(metrics.redis()))).collect();
            // What the admin port asks, from the control runtime, shows in no series.
            let admin = Store::Redis(redis.on_another_runtime(RedisSeries::detached()));
            Ok(Stores { serving, admin, upkeep: Store::Redis(redis), memory: None })
        }
    }
}

async fn bind_page(what: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    let refuse = |error| ServerError::Bind { what, address: address.to_string(), error };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    info!(address = %listener.local_addr().map_err(refuse)?, "listening for {what}");
    Ok(listener)
}

fn metrics_page(path: String, metrics: Arc<Metrics>) -> Router {
    let page = move || async move { ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], metrics.render()) };
    Router::new().route(&path, get(page))
}

async fn serve_page(listener: TcpListener, routes: Router) {
    // It ends only with the process: axum goes on after a failed accept.
    let _ = axum::serve(listener, routes).await;
}

async fn keep_up(memory: Arc<Memory>, store: Store, metrics: Arc<Metrics>) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (step, ()) in memory.sweeps().enumerate() {
            if step % SWEEP_STEPS == 0 {
                sleep(SWEEP_PAUSE).await;
            }
        }
        store.sweep_leases();
        metrics.upkeep();
    }
}
