//! A Redis Cluster under steady traffic: limits hold over all its nodes and while slots move, and a dead primary's counters
//! go on at its replica.

use redis::Value;

use super::*;
use crate::support::certificates::Certificates;
use crate::support::cluster::Cluster;

const PASSWORD: &str = "cluster-secret";

fn start_on(cluster: &Cluster, args: &[&str]) -> Ratelimitd {
    start(&[&["--redis-type", "cluster", "--redis-url", &cluster.url()], args].concat())
}

/// The slot of all that a client of these rules is counted by.
fn slot_of(cluster: &Cluster, client: &str) -> u16 {
    cluster.slot(&format!("1{{d|{client}}}"))
}

/// Names of clients, so many on each primary.
fn clients_on_each_primary(cluster: &Cluster, count: usize) -> Vec<Vec<String>> {
    let mut on = vec![Vec::new(); cluster.primaries().len()];
    for number in 0.. {
        let client = format!("client-{number}");
        let primary = cluster.primary_of(slot_of(cluster, &client));
        if on[primary].len() < count {
            on[primary].push(client);
        }
        if on.iter().all(|clients| clients.len() == count) {
            break;
        }
    }
    on
}

#[test]
fn limits_hold_over_all_nodes_for_all_servers_and_a_request_over_several_leaves_nothing_where_it_is_denied() {
    let cluster = Cluster::start();
    let servers = [start_on(&cluster, &[]), start_on(&cluster, &[])];
    let clients = clients_on_each_primary(&cluster, 2);
    for client in clients.iter().flatten() {
        assert_eq!(admitted(&servers[0], client, 12) + admitted(&servers[1], client, 12), 20, "{client}");
    }
    for primary in cluster.primaries() {
        let redis::Value::Int(keys) = primary.command(&["DBSIZE"]) else { panic!("a number") };
        assert_eq!(keys, 2, "each client's counter is where its slot is");
    }
    // One of the two has nothing left, so the other one keeps all.
    let connection = Client::connect(servers[0].grpc());
    let full = &clients[0][0];
    for _ in 0..100 {
        assert!(!connection.admits(request("d", vec![descriptor(&[("few", "fresh")]), descriptor(&[("few", full)])])));
        assert!(!connection.admits(request("d", vec![descriptor(&[("few", full)]), descriptor(&[("few", "fresh")])])));
    }
    // The last one is on its way when its answer is.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(admitted(&servers[1], "fresh", 30), 20);
    assert!(by_policy(&servers[0]) + by_policy(&servers[1]) == 0);
}

#[test]
fn two_servers_that_ask_over_the_same_slots_never_exceed_a_limit() {
    let cluster = Cluster::start();
    let servers = [start_on(&cluster, &["--local-cache-size-in-bytes", "0"]), start_on(&cluster, &["--local-cache-size-in-bytes", "0"])];
    let clients: Vec<String> = clients_on_each_primary(&cluster, 1).concat();
    let pairs = [[0, 1], [1, 2], [2, 0]].map(|pair| pair.map(|number: usize| clients[number].clone()));
    let askers: Vec<_> = (0..6)
        .map(|number: usize| {
            let (address, pair) = (servers[number % 2].grpc(), pairs[number % 3].clone());
            thread::spawn(move || {
                let connection = Client::connect(address);
                let both = || pair.iter().map(|client| descriptor(&[("few", client)])).collect();
                (0..40).filter(|_| connection.admits(request("d", both()))).count()
            })
        })
        .collect();
    let passed: Vec<usize> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(by_policy(&servers[0]) + by_policy(&servers[1]), 0);
    for (number, client) in clients.iter().enumerate() {
        let asked = passed.iter().enumerate().filter(|(asker, _)| pairs[asker % 3].contains(client)).map(|(_, passed)| passed);
        let together = asked.sum::<usize>();
        // What was recorded for nothing has been taken back: the rest is there to the hit.
        let rest = admitted(&servers[0], client, 25);
        assert_eq!(together + rest, 20, "client {number}: {passed:?}");
    }
}

#[test]
fn slots_that_move_under_load_lose_no_hit_and_admit_none_too_many() {
    let cluster = Cluster::start();
    let servers = [start_on(&cluster, &[]), start_on(&cluster, &[])];
    let clients: Vec<String> = clients_on_each_primary(&cluster, 3).concat();
    for client in &clients {
        assert_eq!(admitted(&servers[0], client, 5), 5);
    }
    let traffic = [Traffic::on(&servers[0]), Traffic::on(&servers[1])];
    for client in &clients {
        let slot = slot_of(&cluster, client);
        let from = cluster.primary_of(slot);
        cluster.begin_to_move(slot, from, (from + 1) % 3);
        // What is there is still where it was; what is not is made at the new place; and what comes of both at once is told apart.
        let asking: Vec<_> = (0..4)
            .map(|number| {
                let (address, client) = (servers[number % 2].grpc(), client.clone());
                let rule = if number < 2 { "few" } else { "steady" };
                thread::spawn(move || {
                    let connection = Client::connect(address);
                    (0..2).filter(|_| connection.admits(request("d", vec![descriptor(&[(rule, &client)])]))).count()
                })
            })
            .collect();
        assert_eq!(asking.into_iter().map(|asking| asking.join().unwrap()).sum::<usize>(), 8);
        cluster.finish_move(slot, from, (from + 1) % 3);
        assert_eq!(admitted(&servers[1], client, 30), 11, "{client}: 5 before, 4 while it moved");
    }
    traffic.into_iter().for_each(|traffic| drop(traffic.end("reshard")));
    assert_eq!(by_policy(&servers[0]) + by_policy(&servers[1]), 0, "nobody had to answer for Redis");
}

#[test]
fn what_is_taken_back_follows_its_slot_to_where_that_moves() {
    let cluster = Cluster::start();
    let server = start_on(&cluster, &["--local-cache-size-in-bytes", "0"]);
    let [fresh, full] = [0, 1].map(|primary: usize| clients_on_each_primary(&cluster, 1)[primary][0].clone());
    assert_eq!(admitted(&server, &full, 25), 20);
    let slot = slot_of(&cluster, &fresh);
    cluster.begin_to_move(slot, 0, 2);
    // Made at the new place, and taken back there.
    let connection = Client::connect(server.grpc());
    for _ in 0..20 {
        assert!(!connection.admits(request("d", vec![descriptor(&[("few", &fresh)]), descriptor(&[("few", &full)])])));
    }
    // The last one is on its way when its answer is.
    thread::sleep(Duration::from_millis(200));
    cluster.finish_move(slot, 0, 2);
    assert_eq!(admitted(&server, &fresh, 25), 20);
    assert_eq!((by_policy(&server), server.metric("ratelimit_store_hits_taken_back{store=\"redis\"}")), (0, 20));
}

#[test]
fn a_log_all_of_whose_hits_have_left_is_hit_again_while_its_slot_moves() {
    let cluster = Cluster::start();
    let rules = "domain: d\ndescriptors:\n- {key: few, rate_limit: {limit: 20, window: 8s}}\n";
    let server = start_by(rules, &["--redis-type", "cluster", "--redis-url", &cluster.url()]);
    let client = &clients_on_each_primary(&cluster, 1)[0][0];
    assert_eq!(admitted(&server, client, 3), 3);
    // Its key lasts up to a quarter of a window longer than its hits.
    thread::sleep(Duration::from_millis(8_200));
    cluster.begin_to_move(slot_of(&cluster, client), 0, 2);
    let entries = || cluster.primaries()[0].command(&["ZCARD", &format!("1{{d|{client}}}log|8000000|few")]);
    assert_eq!(entries(), Value::Int(3), "what has left is still there");
    assert_eq!(admitted(&server, client, 1), 1);
    assert_eq!((entries(), by_policy(&server)), (Value::Int(1), 0));
}

#[test]
fn where_nobody_takes_a_dead_primary_s_place_the_others_are_asked_if_the_cluster_lets_them_answer() {
    for (full_coverage, by_others) in [("no", true), ("yes", false)] {
        let mut cluster = Cluster::of(3, false, &["--cluster-require-full-coverage", full_coverage]);
        let server = start_on(&cluster, &[]);
        let clients = clients_on_each_primary(&cluster, 1).concat();
        assert_eq!(admitted(&server, &clients[1], 5), 5);
        cluster.nodes[0].kill();
        cluster.wait_for_failure(0);
        let before = by_policy(&server);
        admitted(&server, &clients[1], 30);
        assert_eq!(by_policy(&server) == before, by_others, "cluster-require-full-coverage {full_coverage}");
        if by_others {
            assert_eq!(admitted(&server, &clients[2], 25), 20);
        }
    }
}

#[test]
fn a_dead_primary_is_followed_by_its_replica_and_the_others_go_on_meanwhile() {
    let mut cluster = Cluster::start();
    for node in &cluster.nodes {
        node.command(&["CONFIG", "SET", "masterauth", PASSWORD]);
        node.command(&["CONFIG", "SET", "requirepass", PASSWORD]);
    }
    let server = start_on(&cluster, &["--redis-auth", PASSWORD]);
    let clients = clients_on_each_primary(&cluster, 1).concat();
    for client in &clients {
        assert_eq!(admitted(&server, client, 10), 10);
    }
    cluster.wait_for_replicas();
    let traffic = Traffic::on(&server);
    cluster.nodes[0].kill();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(admitted(&server, &clients[1], 5), 5, "the other primaries answer");
    cluster.wait_for_failover(0);
    wait_until_redis_answers(&server, "failover");
    traffic.end("failover");
    assert!(by_policy(&server) > 0);
    assert_eq!(admitted(&server, &clients[0], 30), 10, "the replica knows what its primary counted");
    assert_eq!(admitted(&server, &clients[1], 30), 5);
    let log = format!("{:?}", server.log());
    assert!(!log.contains(PASSWORD), "{log}");
}

#[test]
fn ten_failovers_and_moved_slots_leave_no_threads_no_files_and_no_memory_behind() {
    let cluster = Cluster::start();
    let server = start_on(&cluster, &[]);
    let traffic = Traffic::on(&server);
    let slot = slot_of(&cluster, &clients_on_each_primary(&cluster, 1)[0][0]);
    let mut primaries = [0, 1, 2];
    // Each pair in turn: for a primary that was replaced nobody votes again within 3 s.
    let mut change = |round: usize| {
        let [here, there] = [round % 3, (round + 1) % 3];
        primaries[here] = if primaries[here] < 3 { here + 3 } else { here };
        cluster.fail_over_to(primaries[here]);
        cluster.begin_to_move(slot, primaries[here], primaries[there]);
        cluster.finish_move(slot, primaries[here], primaries[there]);
        wait_until_redis_answers(&server, "failover");
    };
    // The first three have the memory for it all taken.
    (0..3).for_each(&mut change);
    let held = Held::by(&server);
    (3..13).for_each(change);
    traffic.end_after(13, "thirteen failovers");
    held.check(&server);
}

#[test]
fn over_tls_the_nodes_are_found_by_the_names_that_their_certificates_are_for() {
    let certificates = Certificates::new();
    let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|name| certificates.path(name));
    let tls = [
        "--tls-ca-cert-file",
        &ca,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
        "--tls-cluster",
        "yes",
    ];
    let named = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"];
    let cluster = Cluster::of(3, false, &[&tls[..], &named].concat());
    let server = start(&["--redis-type", "cluster", "--redis-url", &cluster.tls_url(), "--redis-tls", "--redis-tls-cacert", &ca]);
    let clients = clients_on_each_primary(&cluster, 3);
    // A handshake, without optimisation and beside all other tests, may take longer than a call waits.
    clients.iter().for_each(|clients| wait_until_asked(&server, &clients[0]));
    let before = by_policy(&server);
    for client in clients.iter().flat_map(|clients| &clients[1..]) {
        assert_eq!(admitted(&server, client, 25), 20, "{client}");
    }
    assert_eq!(by_policy(&server), before);
}

#[test]
fn a_cluster_that_is_away_when_the_server_starts_is_found_when_it_comes() {
    let cluster = Cluster::start();
    cluster.nodes.iter().for_each(|node| node.signal("STOP"));
    let server = start_on(&cluster, &[]);
    let traffic = Traffic::on(&server);
    thread::sleep(Duration::from_millis(600));
    assert!(by_policy(&server) > 0);
    cluster.nodes.iter().for_each(|node| node.signal("CONT"));
    wait_until_redis_answers(&server, "a late Cluster");
    traffic.end("a late Cluster");
    assert_eq!(admitted(&server, "after", 30), 20);
    assert_eq!(server.logs("no node of the Redis Cluster tells its slots"), 1);
}
