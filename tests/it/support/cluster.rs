//! A Redis Cluster, of six nodes in tests: three primaries with a third of the slots each, and a replica for each of them.
//! Real processes on free loopback ports.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use redis::{FromRedisValue, Value};

use super::redis::RedisServer;

/// Killed when dropped.
pub struct Cluster {
    /// The primaries at the start, then their replicas in the same order.
    pub nodes: Vec<RedisServer>,
    primaries: usize,
}

/// Of a cluster in tests.
const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;

/// Whatever is waited for, it comes within this or the test fails.
const DEADLINE: Duration = Duration::from_secs(40);

impl Cluster {
    /// Six nodes.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with these options of redis-server besides.
    pub fn start_with(options: &[&str]) -> Self {
        Self::of(PRIMARIES, true, options)
    }

    /// So many primaries, each with a replica where that is asked for. Waits until all of them agree.
    pub fn of(primaries: usize, replicated: bool, options: &[&str]) -> Self {
        let node = |_| {
            // The bus's own default, the port + 10,000, is often above all ports.
            let [bus, tls] = [free_port(), free_port()];
            let clustered = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-port", &bus];
            // Beside the plain port, by which the tests ask.
            let tls = if options.contains(&"--tls-cert-file") { vec!["--tls-port", tls.as_str()] } else { Vec::new() };
            RedisServer::start_with(&[&clustered, options, &tls].concat())
        };
        let count = if replicated { 2 * primaries } else { primaries };
        let cluster = Self { nodes: (0..count).map(node).collect(), primaries };
        for (number, node) in cluster.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            if number < primaries {
                let (first, end) = (SLOTS * number / primaries, SLOTS * (number + 1) / primaries);
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(end - 1).to_string()]);
            }
            let first = &cluster.nodes[0];
            if number > 0 {
                let bus = ask::<Vec<Value>>(first, &["CONFIG", "GET", "cluster-port"]);
                let bus: String = redis::from_redis_value(bus[1].clone()).unwrap();
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &first.port().to_string(), &bus]);
            }
        }
        cluster.wait("the nodes don't meet", |node| cluster_info(node, &format!("cluster_known_nodes:{count}")));
        for (primary, replica) in cluster.nodes.iter().zip(&cluster.nodes[primaries..]) {
            replica.command(&["CLUSTER", "REPLICATE", &ask::<String>(primary, &["CLUSTER", "MYID"])]);
        }
        cluster.wait("the nodes don't agree", |node| {
            let replicas = ask::<String>(node, &["CLUSTER", "NODES"]).lines().filter(|line| line.contains("slave")).count();
            cluster_info(node, "cluster_state:ok") && replicas == count - primaries
        });
        if replicated {
            cluster.wait_for_replicas();
        }
        cluster
    }

    /// What REDIS_URL is to be: the first node and the last.
    pub fn url(&self) -> String {
        format!("{},{}", self.nodes[0].url(), self.nodes[self.nodes.len() - 1].url())
    }

    /// The same by TLS, where the nodes have a certificate, for localhost.
    pub fn tls_url(&self) -> String {
        let port = ask::<Vec<String>>(&self.nodes[0], &["CONFIG", "GET", "tls-port"]).pop().unwrap();
        format!("localhost:{port}")
    }

    pub fn primaries(&self) -> &[RedisServer] {
        &self.nodes[..self.primaries]
    }

    /// The primary, of those at the start, that serves a slot.
    pub fn primary_of(&self, slot: u16) -> usize {
        (0..self.primaries).rfind(|number| usize::from(slot) >= SLOTS * number / self.primaries).unwrap()
    }

    /// Waits until each replica has what its primary has.
    pub fn wait_for_replicas(&self) {
        let deadline = Instant::now() + DEADLINE;
        for primary in self.primaries() {
            // An offset is awaited that is there already, so that it says something where nothing was written either.
            while !ask::<String>(primary, &["INFO", "replication"]).contains("state=online")
                || primary.command(&["WAIT", "1", "1000"]) != Value::Int(1)
            {
                assert!(Instant::now() < deadline, "a replica does not follow");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The first half of a slot's move, as a reshard does it: both nodes know of it, no key has gone yet.
    pub fn begin_to_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, [from, to]) = (slot.to_string(), [from, to].map(|number| &self.nodes[number]));
        let [from_id, to_id] = [from, to].map(|node| ask::<String>(node, &["CLUSTER", "MYID"]));
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    }

    /// The second half: the keys go, and the slot is the other node's.
    pub fn finish_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, [from, to]) = (slot.to_string(), [from, to].map(|number| &self.nodes[number]));
        let to_id = ask::<String>(to, &["CLUSTER", "MYID"]);
        loop {
            let keys: Vec<String> = ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
            if keys.is_empty() {
                break;
            }
            for key in keys {
                from.command(&["MIGRATE", "127.0.0.1", &to.port().to_string(), &key, "0", "5000"]);
            }
        }
        for node in [to, from] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }

    /// The slot of a key, as Redis says.
    pub fn slot(&self, key: &str) -> u16 {
        ask(&self.nodes[1], &["CLUSTER", "KEYSLOT", key])
    }

    /// Waits until the other nodes say that the node's replica is a primary in its place.
    pub fn wait_for_failover(&self, dead: usize) {
        let replica = self.nodes[self.primaries + dead].port();
        self.wait_without(Some(dead), "nobody is promoted", |node| ports(node).contains(&replica));
    }

    /// Has a replica and its primary change places, and waits until all know.
    pub fn fail_over_to(&self, replica: usize) {
        let node = &self.nodes[replica];
        let deadline = Instant::now() + DEADLINE;
        while !ask::<String>(node, &["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica does not follow");
            thread::sleep(Duration::from_millis(20));
        }
        let (port, mut asked) = (node.port(), None::<Instant>);
        self.wait_without(None, "the replica is not promoted", |other| {
            // Redis gives one up after 5 s without a word: its replica may just have begun to follow.
            if asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(6)) {
                asked = Some(Instant::now());
                node.command(&["CLUSTER", "FAILOVER"]);
            }
            ports(other).contains(&port)
        });
    }

    /// Waits until the other nodes agree that this one is dead.
    pub fn wait_for_failure(&self, dead: usize) {
        let address = format!("127.0.0.1:{}@", self.nodes[dead].port());
        self.wait_without(Some(dead), "nobody notices", |node| {
            let nodes: String = ask(node, &["CLUSTER", "NODES"]);
            nodes.lines().any(|line| line.contains(&address) && line.contains("master,fail "))
        });
    }

    fn wait(&self, problem: &str, agrees: impl FnMut(&RedisServer) -> bool) {
        self.wait_without(None, problem, agrees);
    }

    /// Waits until all nodes, but for a dead one, agree.
    fn wait_without(&self, dead: Option<usize>, problem: &str, mut agrees: impl FnMut(&RedisServer) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let living: Vec<_> = (0..self.nodes.len()).filter(|number| Some(*number) != dead).map(|number| &self.nodes[number]).collect();
        while !living.iter().all(|node| agrees(node)) {
            assert!(Instant::now() < deadline, "{problem}: {}", ask::<String>(living[0], &["CLUSTER", "NODES"]));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// The ports of the primaries that a node knows.
fn ports(node: &RedisServer) -> Vec<u16> {
    let ranges: Vec<Vec<Value>> = ask(node, &["CLUSTER", "SLOTS"]);
    let port = |range: &Vec<Value>| {
        let primary: Vec<Value> = redis::from_redis_value(range[2].clone()).unwrap();
        redis::from_redis_value(primary[1].clone()).unwrap()
    };
    ranges.iter().map(port).collect()
}

fn cluster_info(node: &RedisServer, says: &str) -> bool {
    ask::<String>(node, &["CLUSTER", "INFO"]).lines().any(|line| line == says)
}

fn ask<T: FromRedisValue>(node: &RedisServer, words: &[&str]) -> T {
    redis::from_redis_value(node.command(words)).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}
