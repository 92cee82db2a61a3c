//! One deployment of Redis as one runtime asks it: a node, or a Cluster's nodes, each with its own queue. It brings a request
//! to the node that serves its slot, and follows where a Cluster sends it. It knows no hits, only where their keys lie.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::batch::Answer;
use super::breaker::Breaker;
use super::link::Links;
use super::node::{Errand, Manner, Node, Pending, Refusal};
use super::primary::Primary;
use super::slots::{SlotMap, slot};
use super::topology::Topology;
use super::{RedisDeployment, RedisSite, RedisUrlError};
use crate::metrics::RedisSeries;
use crate::store::denial::Denials;
use crate::store::{Clock, StoreError};

/// What all runtimes of a server share of a deployment.
pub(super) enum SharedSite {
    One(Arc<Breaker>),
    Cluster(Arc<Topology>),
}

/// A deployment, for one runtime.
pub(super) enum Site {
    One(Arc<Node>),
    Cluster(Box<Cluster>),
}

pub(super) struct Cluster {
    topology: Arc<Topology>,
    nodes: Mutex<Nodes>,
    making: Making,
}

/// A Cluster's nodes by the map in force.
struct Nodes {
    map: Arc<SlotMap>,
    /// In the order of the map's primaries.
    in_order: Vec<Arc<Node>>,
    by_address: HashMap<Arc<str>, Arc<Node>>,
}

/// What a node is made with.
#[derive(Clone)]
pub(super) struct Making {
    pub denials: Arc<Denials>,
    pub clock: Clock,
    pub timeout: Duration,
    pub busy_poll: Duration,
    /// Of all nodes of the runtime.
    pub caretakers: Arc<AtomicUsize>,
    pub series: RedisSeries,
}

/// How often a request is sent on to where a Cluster says it should go, or again: a slot that moves twice while it is
/// under way does not move a third time.
const HOPS_MAX: u32 = 4;

impl SharedSite {
    /// # Errors
    /// An address, or a certificate, that can't be read.
    pub fn new(site: &RedisSite, timeout: Duration, denials: &Arc<Denials>, series: &RedisSeries) -> Result<Self, RedisUrlError> {
        let one = |primary| Self::One(Arc::new(Breaker::new(primary, Arc::clone(denials), timeout, Arc::default(), series.clone())));
        Ok(match site.deployment {
            RedisDeployment::Single => one(Primary::at(site)?),
            RedisDeployment::Sentinel => one(Primary::by_sentinels(site)?),
            RedisDeployment::Cluster => Self::Cluster(Arc::new(Topology::new(site, Arc::clone(denials), timeout, series.clone())?)),
        })
    }

    /// For one runtime.
    pub fn site(&self, making: &Making) -> Site {
        match self {
            Self::One(breaker) => Site::One(making.node(Arc::clone(breaker))),
            Self::Cluster(topology) => Site::Cluster(Box::new(Cluster {
                topology: Arc::clone(topology),
                nodes: Mutex::new(Nodes { map: Arc::new(SlotMap::empty()), in_order: Vec::new(), by_address: HashMap::new() }),
                making: making.clone(),
            })),
        }
    }
}

impl Site {
    /// The slot of a key; 0 for all keys where there is one node. What lies in one slot is decided in one step.
    pub fn slot(&self, key: &[u8]) -> u16 {
        match self {
            Self::One(_) => 0,
            Self::Cluster(_) => slot(key),
        }
    }

    /// Waits until it is known where keys lie.
    ///
    /// # Errors
    /// Nobody has told, or nobody has in time.
    pub async fn known(&self, deadline: Instant, within: Duration) -> Result<(), StoreError> {
        match self {
            Self::One(_) => Ok(()),
            Self::Cluster(cluster) => cluster.topology.known(deadline, within).await,
        }
    }

    /// Has a request decided.
    ///
    /// # Errors
    /// No answer by the deadline, which is `within` from now, or why there is none.
    pub async fn ask(&self, errand: Errand, deadline: Instant, within: Duration) -> Result<Answer, StoreError> {
        self.known(deadline, within).await?;
        let started = self.start(&errand, deadline);
        self.finish(errand, started, deadline, within).await
    }

    /// Puts a request into the queue of the node that serves its slot; [`Site::finish`] waits for what comes of it.
    pub fn start(&self, errand: &Errand, deadline: Instant) -> Result<Pending, Refusal> {
        self.node(errand.slot)?.start(errand.clone(), deadline)
    }

    /// The answer to a request that was started, also where a Cluster first sends it elsewhere. What is sent again is only
    /// what Redis says it did not run.
    ///
    /// # Errors
    /// No answer by the deadline, which is `within` from the start, or why there is none.
    pub async fn finish(
        &self,
        mut errand: Errand,
        started: Result<Pending, Refusal>,
        deadline: Instant,
        within: Duration,
    ) -> Result<Answer, StoreError> {
        let mut hops = 0;
        let mut outcome = Node::finish(started, deadline, within).await;
        loop {
            let refusal = match outcome {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            hops += 1;
            let next = match (self, &refusal) {
                (_, Refusal::Failed(error)) => return Err(self.failed(error)),
                (Self::Cluster(cluster), Refusal::Moved(address)) if hops <= HOPS_MAX => {
                    cluster.topology.moved(errand.slot, address);
                    errand.manner = Manner::Batched;
                    cluster.node(errand.slot)
                }
                (Self::Cluster(cluster), Refusal::Ask(address)) if hops <= HOPS_MAX => {
                    errand.manner = Manner::Asking;
                    cluster.node_at(address)
                }
                // It came with others, and may well be decided alone.
                (Self::Cluster(cluster), Refusal::TryAgain) if errand.manner == Manner::Batched => {
                    errand.manner = Manner::Alone;
                    cluster.node(errand.slot)
                }
                _ => return Err(StoreError::Reply(refusal.to_string())),
            };
            let started = next.map_err(Refusal::Failed).and_then(|node| node.start(errand.clone(), deadline));
            outcome = Node::finish(started, deadline, within).await;
        }
    }

    /// Waits until nothing is queued or under way, for as long as one batch may take.
    pub async fn drain(&self) {
        match self {
            Self::One(node) => node.drain().await,
            Self::Cluster(cluster) => {
                let nodes: Vec<_> = cluster.nodes.lock().by_address.values().cloned().collect();
                for node in nodes {
                    node.drain().await;
                }
            }
        }
    }

    fn node(&self, slot: u16) -> Result<Arc<Node>, Refusal> {
        match self {
            Self::One(node) => Ok(Arc::clone(node)),
            Self::Cluster(cluster) => cluster.node(slot).map_err(Refusal::Failed),
        }
    }

    /// Takes a failure as a sign that a Cluster's slots may have another primary now.
    fn failed(&self, error: &StoreError) -> StoreError {
        if let Self::Cluster(cluster) = self {
            match error {
                StoreError::Deadline(_) | StoreError::QueueFull => {}
                StoreError::Reply(why) if !why.contains("CLUSTERDOWN") => {}
                StoreError::Reply(_) | StoreError::Connection(_) | StoreError::BreakerOpen => cluster.topology.look_anew(),
            }
        }
        error.clone()
    }
}

impl Cluster {
    /// The node that serves a slot by the map in force.
    fn node(&self, slot: u16) -> Result<Arc<Node>, StoreError> {
        let mut nodes = self.nodes.lock();
        if !self.topology.is_current(&nodes.map) {
            self.follow(&mut nodes)?;
        }
        let owner = nodes.map.owner(slot).ok_or_else(|| StoreError::Reply(format!("CLUSTERDOWN nobody serves the slot {slot}")))?;
        Ok(Arc::clone(&nodes.in_order[owner]))
    }

    /// The node at `host:port`, which may serve no slot yet.
    fn node_at(&self, address: &str) -> Result<Arc<Node>, StoreError> {
        self.node_of(&mut self.nodes.lock(), &Arc::from(address))
    }

    fn node_of(&self, nodes: &mut Nodes, address: &Arc<str>) -> Result<Arc<Node>, StoreError> {
        let breaker = self.topology.breaker(address)?;
        // One that was away from the map for a while, and is back, has another breaker.
        if let Some(node) = nodes.by_address.get(address).filter(|node| node.is_behind(&breaker)) {
            return Ok(Arc::clone(node));
        }
        let node = self.making.node(breaker);
        nodes.by_address.insert(Arc::clone(address), Arc::clone(&node));
        Ok(node)
    }

    fn follow(&self, nodes: &mut Nodes) -> Result<(), StoreError> {
        let map = self.topology.map();
        let in_order = map.primaries.iter().map(|address| self.node_of(nodes, address)).collect::<Result<_, _>>()?;
        nodes.by_address.retain(|address, _| map.primaries.contains(address));
        (nodes.map, nodes.in_order) = (map, in_order);
        Ok(())
    }
}

impl Making {
    fn node(&self, breaker: Arc<Breaker>) -> Arc<Node> {
        let links = Links::new(self.clock.clone(), self.busy_poll);
        let (denials, caretakers) = (Arc::clone(&self.denials), Arc::clone(&self.caretakers));
        Arc::new(Node::new(breaker, denials, links, caretakers, self.timeout, self.series.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::{RedisOptions, RedisTls};

    fn refused(site: &RedisSite) -> String {
        let denials = Arc::new(Denials::new(0));
        SharedSite::new(site, Duration::from_millis(10), &denials, &RedisSeries::detached())
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    fn plain(url: &str) -> RedisSite {
        RedisOptions::new(url, Duration::from_millis(10)).site
    }

    #[test]
    fn what_can_not_be_an_address_or_a_certificate_is_told_without_its_secrets() {
        let sentinel = |url: &str| RedisSite { deployment: RedisDeployment::Sentinel, ..plain(url) };
        let cluster = |url: &str| RedisSite { deployment: RedisDeployment::Cluster, ..plain(url) };
        let tls = |ca: &[u8]| RedisSite { tls: Some(RedisTls { ca: Some(ca.to_vec()), ..RedisTls::default() }), ..plain("localhost:6379") };
        for fine in [
            plain("localhost:6379"),
            plain("/run/redis.sock"),
            plain("redis://u:p@h:1/2"),
            plain("rediss://h:1"),
            sentinel("m,a:1,b:2"),
            sentinel("m,a:1/3,b:2,redis://c:1/3"),
            cluster("a:1"),
            cluster("a:1, redis://:p@b:2"),
        ] {
            assert_eq!(refused(&fine), "", "{}", fine.url);
        }
        let told = refused(&plain("redis://:hunter2@h:port/x"));
        assert!(told.contains("neither host:port") && !told.contains("hunter2"), "{told}");
        for wrong in ["a:1,b:2", "", ",a:1", "m", "m,a:1/3,b:2/4"] {
            assert!(refused(&sentinel(wrong)).contains("MASTER,HOST:PORT"), "{wrong}");
        }
        for wrong in ["/run/redis.sock", "redis://a:1/2"] {
            assert!(refused(&cluster(wrong)).contains("no database but 0"), "{wrong}");
        }
        assert!(refused(&sentinel("m,a:x")).contains("neither host:port"));
        assert!(refused(&cluster("a:1,b:x")).contains("neither host:port"));
        let told = refused(&tls(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n"));
        assert!(told.contains("REDIS_TLS_CACERT"), "{told}");
    }
}
