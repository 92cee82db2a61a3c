//! A serving thread: a current-thread runtime that serves the connections dealt to it, over gRPC and HTTP, with a limiter
//! of its own. A request never leaves its thread; that halves what it costs (docs/architecture.md).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::serve::Listener as AxumListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic_health::server::HealthReporter;
use tracing::{debug, error, warn};

use super::listener::{Accepted, Connection, Counted, Protocol};
use crate::descriptor::RequestBounds;
use crate::grpc::{Door, ReplyOptions, Services, connection};
use crate::http::HttpDoor;
use crate::limiter::{Fallback, Modes, Notices, RateLimiter};
use crate::metrics::Metrics;
use crate::rules::LiveRules;
use crate::store::Store;

/// What all serving threads have in common.
#[derive(Clone)]
pub(super) struct Blueprint {
    pub rules: Arc<LiveRules>,
    pub fallback: Fallback,
    pub modes: Modes,
    pub notices: Arc<Notices>,
    pub metrics: Arc<Metrics>,
    pub health: HealthReporter,
    pub serving: Arc<AtomicBool>,
    pub request_bounds: RequestBounds,
    pub reply: ReplyOptions,
    pub request_bytes_max: usize,
}

/// The handle of a serving thread.
pub(super) struct ServingThread {
    grpc: mpsc::Sender<Dealt>,
    http: mpsc::Sender<Dealt>,
    connections: Arc<AtomicUsize>,
    drain: watch::Sender<bool>,
    /// Closed when the thread has ended, however it ended.
    ended: watch::Receiver<()>,
}

/// A connection dealt to a thread, not yet one of its runtime's.
type Dealt = (Accepted, Counted);

/// The connections dealt to one thread, as they come.
struct Incoming(mpsc::Receiver<Dealt>);

/// Connections that may wait for a thread to take them up; beyond, they are closed.
const DEALT_MAX: usize = 1_024;

/// Calls under way when the server stops have so long to finish.
const DRAIN_MAX: Duration = Duration::from_secs(10);

impl ServingThread {
    pub fn start(number: usize, store: Store, blueprint: Blueprint) -> io::Result<Self> {
        let (grpc, grpc_dealt) = mpsc::channel(DEALT_MAX);
        let (http, http_dealt) = mpsc::channel(DEALT_MAX);
        let (drain, draining) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("serving-{number}")).spawn(move || {
            let _alive = alive;
            runtime.block_on(serve(store, blueprint, Incoming(grpc_dealt), Incoming(http_dealt), draining));
        })?;
        Ok(Self { grpc, http, connections: Arc::default(), drain, ended })
    }

    /// How many connections it serves, or is about to.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn take(&self, protocol: Protocol, accepted: Accepted) {
        let dealt = (accepted, Counted::among(&self.connections));
        let door = match protocol {
            Protocol::Grpc => &self.grpc,
            Protocol::Http => &self.http,
        };
        if door.try_send(dealt).is_err() {
            warn!(?protocol, "a connection was closed: its thread has {DEALT_MAX} others waiting, or has ended");
        }
    }
}

/// Ends when one of the threads has ended.
pub(super) async fn any_ended(threads: &[ServingThread]) {
    let ended = threads.iter().map(|thread| {
        let mut ended = thread.ended.clone();
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    });
    let mut ended: Vec<_> = ended.collect();
    std::future::poll_fn(|cx| {
        let any = ended.iter_mut().any(|ended| ended.as_mut().poll(cx).is_ready());
        if any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Has all threads finish what is under way, and waits until they have ended.
pub(super) async fn drain(threads: &[ServingThread]) {
    for thread in threads {
        thread.drain.send_replace(true);
    }
    for thread in threads {
        let mut ended = thread.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

async fn serve(store: Store, blueprint: Blueprint, grpc: Incoming, http: Incoming, draining: watch::Receiver<bool>) {
    let Blueprint { rules, fallback, modes, notices, metrics, health, serving, request_bounds, reply, request_bytes_max } = blueprint;
    let limiter = RateLimiter::new(rules, store, fallback, Arc::clone(&metrics));
    let limiter = Arc::new(limiter.in_modes(modes).sharing(notices));
    let door = Door::new(Arc::clone(&limiter), request_bounds, reply, Arc::clone(&metrics));
    let routes = HttpDoor::new(Arc::clone(&limiter), door.clone(), serving, &metrics).routes(request_bytes_max);
    let services = match Services::new(door, health, request_bytes_max) {
        Ok(services) => services,
        Err(error) => return error!(%error, "the gRPC services can't be set up"),
    };
    let http = axum::serve(http, routes).with_graceful_shutdown(drained(draining.clone()));
    let grpc = serve_grpc(services, grpc, draining.clone());
    let both = async {
        let ((), http) = tokio::join!(grpc, async { http.await });
        if let Err(error) = http {
            error!(%error, "HTTP ended");
        }
    };
    let too_long = async {
        drained(draining).await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        () = both => {}
        () = too_long => warn!("calls were still under way after {DRAIN_MAX:?}, and were given up"),
    }
    // Batches of calls that their clients have given up are sent to the end.
    let _ = timeout(DRAIN_MAX, limiter.drain()).await;
}

/// Serves the connections that come, until draining begins; then waits until their calls are answered.
async fn serve_grpc(services: Services, mut incoming: Incoming, draining: watch::Receiver<bool>) {
    let mut open = JoinSet::new();
    loop {
        let connection = tokio::select! {
            connection = std::future::poll_fn(|cx| incoming.poll(cx)) => connection,
            Some(ended) = open.join_next() => {
                ended.unwrap_or_else(|error| error!(%error, "a gRPC connection was lost"));
                continue;
            }
            () = drained(draining.clone()) => None,
        };
        let Some(connection) = connection else { break };
        let (services, draining) = (services.clone(), draining.clone());
        open.spawn(async move {
            if let Err(error) = connection::serve(connection, &services, drained(draining)).await {
                debug!(%error, "a gRPC connection ended");
            }
        });
    }
    while open.join_next().await.is_some() {}
}

/// Ends when draining begins.
async fn drained(mut draining: watch::Receiver<bool>) {
    // An error means that the server is gone: then there is nothing to go on for.
    let _ = draining.wait_for(|draining| *draining).await;
}

impl Incoming {
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Connection>> {
        loop {
            let dealt = std::task::ready!(self.0.poll_recv(cx));
            let Some((accepted, counted)) = dealt else { return std::task::Poll::Ready(None) };
            match accepted.serve(counted) {
                Ok(connection) => return std::task::Poll::Ready(Some(connection)),
                Err(error) => warn!(%error, "a connection could not be taken up"),
            }
        }
    }
}

impl AxumListener for Incoming {
    type Io = Connection;
    type Addr = ();

    async fn accept(&mut self) -> (Connection, ()) {
        match std::future::poll_fn(|cx| self.poll(cx)).await {
            Some(connection) => (connection, ()),
            // The server is gone, and this future with it in a moment.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
