//! A Redis Cluster as all runtimes of a server know it: which primary serves which slot, and a breaker for each primary.
//! Asks the nodes for their slots when it is told that something has moved or does not answer; one look at a time, beside
//! the requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::address::{Address, no_connection};
use super::breaker::Breaker;
use super::primary::Primary;
use super::slots::SlotMap;
use super::{RedisSite, RedisUrlError};
use crate::metrics::RedisSeries;
use crate::seldom::{OncePerMinute, OutageLog};
use crate::store::StoreError;
use crate::store::denial::Denials;

pub(super) struct Topology {
    /// The nodes that were named by the settings.
    seeds: Vec<Address>,
    map: ArcSwap<SlotMap>,
    breakers: Mutex<HashMap<Arc<str>, Arc<Breaker>>>,
    /// Of each node, also while the map in force does not name it.
    logs: Mutex<HashMap<Arc<str>, Arc<OutageLog>>>,
    changed: OncePerMinute,
    /// A look is under way.
    looking: AtomicBool,
    /// The last look has found nothing.
    failed: AtomicBool,
    log: OutageLog,
    looks: AtomicUsize,
    /// Told after each look.
    looked: Notify,
    denials: Arc<Denials>,
    /// What a call may take.
    timeout: Duration,
    series: RedisSeries,
}

/// A look under way.
struct Look(Arc<Topology>);

/// A node that takes longer to tell its slots is passed over.
const NODE_MAX: Duration = Duration::from_millis(150);

/// Nodes whose outages are known, those that are none any more included.
const LOGS_MAX: usize = 4_096;

/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

impl Topology {
    /// # Errors
    /// An address, or a certificate, that can't be read; a database, for a Cluster has but one.
    pub fn new(site: &RedisSite, denials: Arc<Denials>, timeout: Duration, series: RedisSeries) -> Result<Self, RedisUrlError> {
        let read = |part: &str| Address::read(part.trim(), site.auth.as_deref(), site.tls.as_ref());
        let seeds: Vec<_> = site.url.split(',').map(read).collect::<Result<_, _>>()?;
        if seeds.iter().any(|seed| seed.host().is_none() || seed.database() != 0) {
            return Err(RedisUrlError::Seeds);
        }
        Ok(Self {
            seeds,
            map: ArcSwap::from_pointee(SlotMap::empty()),
            breakers: Mutex::default(),
            logs: Mutex::default(),
            changed: OncePerMinute::default(),
            looking: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            log: OutageLog::default(),
            looks: AtomicUsize::new(0),
            looked: Notify::new(),
            denials,
            timeout,
            series,
        })
    }

    pub fn map(&self) -> Arc<SlotMap> {
        self.map.load_full()
    }

    /// Whether this is the map in force.
    pub fn is_current(&self, map: &Arc<SlotMap>) -> bool {
        Arc::ptr_eq(&self.map.load(), map)
    }

    /// Waits for the first map.
    ///
    /// # Errors
    /// None of the nodes has told its slots, or none has within the time.
    pub async fn known(self: &Arc<Self>, deadline: Instant, within: Duration) -> Result<(), StoreError> {
        if !self.map.load().primaries.is_empty() {
            return Ok(());
        }
        let looked = self.looked.notified();
        tokio::pin!(looked);
        // Before the look begins: it may end at once.
        looked.as_mut().enable();
        let failed = self.failed.load(Ordering::Acquire);
        self.look_anew();
        if failed {
            return Err(StoreError::Connection("no node of the Cluster tells its slots".to_owned()));
        }
        timeout_at(deadline, looked).await.map_err(|_| StoreError::Deadline(within))
    }

    /// Has the nodes asked for their slots on the current runtime, unless that is under way or was just done.
    pub fn look_anew(self: &Arc<Self>) {
        if !self.looking.swap(true, Ordering::AcqRel) {
            tokio::spawn(Look(Arc::clone(self)).run());
        }
    }

    /// Takes a node's word that a slot has moved to another one, and looks what else has.
    pub fn moved(self: &Arc<Self>, slot: u16, primary: &str) {
        self.map.rcu(|map| match map.owner(slot) {
            Some(owner) if *map.primaries[owner] == *primary => Arc::clone(map),
            _ => Arc::new(map.with(slot, primary)),
        });
        self.look_anew();
    }

    /// The breaker before the node at `host:port`.
    ///
    /// # Errors
    /// No such address.
    pub fn breaker(&self, primary: &Arc<str>) -> Result<Arc<Breaker>, StoreError> {
        let mut breakers = self.breakers.lock();
        if let Some(breaker) = breakers.get(primary) {
            return Ok(Arc::clone(breaker));
        }
        let refuse = || StoreError::Connection(format!("{primary} is no address"));
        let (host, port) = primary.rsplit_once(':').ok_or_else(refuse)?;
        let address = self.seeds[0].at(host, port.parse().map_err(|_| refuse())?)?;
        let mut logs = self.logs.lock();
        if logs.len() >= LOGS_MAX {
            logs.retain(|_, log| Arc::strong_count(log) > 1);
        }
        let log = Arc::clone(logs.entry(Arc::clone(primary)).or_default());
        drop(logs);
        let breaker = Arc::new(Breaker::new(Primary::At(address), Arc::clone(&self.denials), self.timeout, log, self.series.clone()));
        breakers.insert(Arc::clone(primary), Arc::clone(&breaker));
        Ok(breaker)
    }

    /// Asks one node after the other until one tells: another one first each time, for one may be wrong for long; last those
    /// that don't answer.
    async fn look(&self) -> Result<SlotMap, StoreError> {
        let map = self.map();
        let mut known: Vec<_> = map.primaries.iter().filter_map(|primary| self.breaker(primary).ok()).collect();
        let first = self.looks.fetch_add(1, Ordering::Relaxed) % known.len().max(1);
        known.rotate_left(first);
        known.sort_by_key(|breaker| breaker.is_open());
        let known = known.iter().filter_map(|breaker| breaker.primary.address());
        let mut problem = StoreError::Connection("there is none".to_owned());
        for node in known.chain(&self.seeds) {
            match timeout(NODE_MAX, ask(node)).await {
                Ok(Ok(map)) => return Ok(map),
                Ok(Err(error)) => problem = error,
                Err(_) => problem = StoreError::Deadline(NODE_MAX),
            }
        }
        Err(problem)
    }

    fn install(&self, map: SlotMap) {
        let mut breakers = self.breakers.lock();
        breakers.extract_if(|primary, _| !map.primaries.contains(primary)).for_each(|(_, breaker)| breaker.retire());
        drop(breakers);
        let before = self.map.load();
        if map.agrees_with(&before) {
            return;
        }
        // Slots that move from one to another take what they hold along, and many do so one by one.
        if !before.primaries.is_empty() && !map.has_primaries_of(&before) {
            if self.changed.due() {
                info!(primaries = map.primaries.len(), "the Redis Cluster has other primaries now (told once a minute)");
            }
            // A new one may know less, or more, than what was denied by.
            self.denials.clear();
        }
        self.map.store(Arc::new(map));
    }
}

impl Look {
    async fn run(self) {
        let (found, topology) = (self.0.look().await, &self.0);
        topology.failed.store(found.is_err(), Ordering::Release);
        match found {
            Ok(map) => {
                topology.log.is_over(|| info!("the Redis Cluster tells its slots again"));
                topology.install(map);
            }
            Err(error) => topology.log.lasts(|| warn!("no node of the Redis Cluster tells its slots: {error} (told once a minute)")),
        }
        topology.looked.notify_waiters();
        sleep(LOOK_PAUSE).await;
    }
}

impl Drop for Look {
    /// Also where its runtime has gone.
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

async fn ask(node: &Address) -> Result<SlotMap, StoreError> {
    let mut connection = node.open().await?;
    let reply: Value = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await.map_err(no_connection)?;
    let host = node.host().unwrap_or_default();
    SlotMap::read(&reply, host).ok_or_else(|| StoreError::Reply(format!("{node} serves no slots of a Cluster")))
}
