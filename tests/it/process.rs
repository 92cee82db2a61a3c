//! The process: how it starts, what it says, and how it ends.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, program, rules_file, sample_rules, scratch};
use crate::support::redis::RedisServer;

fn health(client: &Client, service: &str) -> Result<ServingStatus, tonic::Code> {
    let check = HealthCheckRequest { service: service.to_owned() };
    let answer = client.runtime.block_on(HealthClient::new(client.channel.clone()).check(check));
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

#[test]
fn it_starts_with_the_sample_rules_and_logs_each_address_and_the_rules_once() {
    let server = Ratelimitd::start(&[]);
    // Each of these asserts that its address was logged once.
    let addresses = [server.grpc(), server.http(), server.metrics(), server.admin()];
    assert!(addresses.iter().all(|address| address.port() != 0));
    let rules = server.wait_for_log("rules loaded");
    assert_eq!((rules["files"].as_u64(), rules["domains"].as_u64(), rules["rules"].as_u64()), (Some(1), Some(1), Some(3)));
    assert_eq!(rules["hash"].as_str().map(str::len), Some(12));
    assert!(Client::connect(server.grpc()).admits(request("api", vec![descriptor(&[("client", "a")])])));
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_its_losses_are_told() {
    let server = Ratelimitd::start(&["--log-level", "debug"]);
    let client = Client::connect(server.grpc());
    let unread = server.unread_log();
    // At this level h2 writes several lines for each request: many times what the pipe and the server hold.
    let asked = async {
        for _ in 0..3_000 {
            let request = request("api", vec![descriptor(&[("client", "a")])]);
            client.service().should_rate_limit(request).await.unwrap();
        }
    };
    client.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), asked).await }).expect("all are answered");
    drop(unread);
    let told = server.wait_for_log("lines of this log were lost");
    assert!(told["lines"].as_u64().unwrap() > 1_000, "{told}");
}

#[test]
fn health_is_told_for_the_server_and_the_service_and_nothing_else() {
    let server = Ratelimitd::start(&[]);
    let client = Client::connect(server.grpc());
    assert_eq!(health(&client, ""), Ok(ServingStatus::Serving));
    assert_eq!(health(&client, "ratelimit"), Ok(ServingStatus::Serving));
    assert_eq!(health(&client, "other"), Err(tonic::Code::NotFound));
}

#[test]
fn on_sigterm_and_sigint_it_says_not_serving_stays_open_for_the_delay_and_exits_0() {
    for signal in ["TERM", "INT"] {
        let mut server = Ratelimitd::start(&["--shutdown-delay", "2s"]);
        let client = Client::connect(server.grpc());
        let sent = Instant::now();
        server.signal(signal);
        server.wait_for_log("stopping");
        // Asked in the delay: NOT_SERVING for both, calls are answered, new connections too.
        assert_eq!(health(&client, "ratelimit"), Ok(ServingStatus::NotServing));
        assert_eq!(health(&client, ""), Ok(ServingStatus::NotServing));
        assert_eq!(http::get(server.http(), "/healthcheck", &[]).status, 500);
        let late = Client::connect(server.grpc());
        assert!(late.admits(request("api", vec![descriptor(&[("client", "a")])])));
        assert!(server.wait_for_exit().success());
        assert!(sent.elapsed() >= Duration::from_secs(2), "{signal}");
    }
}

#[test]
fn whoever_watches_its_health_is_told_and_does_not_hold_the_end_up() {
    let mut server = Ratelimitd::start(&[]);
    let client = Client::connect(server.grpc());
    let check = HealthCheckRequest { service: "ratelimit".to_owned() };
    let watch = client.runtime.block_on(HealthClient::new(client.channel.clone()).watch(check));
    let mut told = watch.unwrap().into_inner();
    let first = client.runtime.block_on(told.message()).unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
    assert!(!server.log().iter().any(|line| line["message"].as_str().is_some_and(|message| message.contains("still under way"))));
    let next = client.runtime.block_on(told.message()).unwrap();
    assert!(next.is_none_or(|status| status.status() == ServingStatus::NotServing));
}

#[test]
fn calls_under_way_finish_when_it_stops() {
    let redis = RedisServer::start();
    let config = rules_file("domain: d\ndescriptors:\n- key: k\n  rate_limit: {limit: 1, window: 1h}\n");
    let mut server = Ratelimitd::start(&["--config", &config, "--redis-url", &redis.url(), "--redis-timeout", "10s"]);
    let client = Client::connect(server.grpc());
    assert!(client.admits(request("d", vec![descriptor(&[("k", "warm")])])));
    // The call hangs in Redis while the server stops, and is answered all the same, by Redis.
    redis.command(&["CLIENT", "PAUSE", "2500", "ALL"]);
    let (service, asked) = (client.service(), request("d", vec![descriptor(&[("k", "x")]), descriptor(&[("k", "warm")])]));
    let mut service = service;
    let call = client.runtime.spawn(async move { service.should_rate_limit(asked).await });
    std::thread::sleep(Duration::from_millis(700));
    server.signal("TERM");
    let answer = client.runtime.block_on(call).unwrap().unwrap().into_inner();
    assert_eq!(answer.statuses.iter().map(|status| status.code).collect::<Vec<_>>(), [1, 2]);
    assert!(server.wait_for_exit().success());
}

#[test]
fn a_port_in_use_is_one_clear_line_and_a_non_zero_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _holder = TcpListener::bind(taken).unwrap();
    let port = taken.port().to_string();
    let page = format!("127.0.0.1:{port}");
    for (what, args) in [
        ("gRPC", ["--grpc-port", port.as_str(), "--port", "0", "--prometheus-addr", "127.0.0.1:0", "--debug-port", "0"]),
        ("HTTP", ["--grpc-port", "0", "--port", port.as_str(), "--prometheus-addr", "127.0.0.1:0", "--debug-port", "0"]),
        ("metrics", ["--grpc-port", "0", "--port", "0", "--prometheus-addr", page.as_str(), "--debug-port", "0"]),
        ("admin", ["--grpc-port", "0", "--port", "0", "--prometheus-addr", "127.0.0.1:0", "--debug-port", port.as_str()]),
    ] {
        let (status, said) =
            Ratelimitd::run(&[&["--grpc-host", "127.0.0.1", "--host", "127.0.0.1", "--log-level", "error"], &args[..]].concat());
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said, format!("ratelimitd: can't listen for {what} on 127.0.0.1:{port}: Address already in use (os error 98)\n"));
    }
}

#[test]
fn mistakes_at_start_are_clear_and_open_no_port() {
    let quiet = |args: &[&str]| Ratelimitd::run(&[args, &["--log-level", "error"]].concat());
    let (status, said) = quiet(&["--config", "/nowhere/rules"]);
    assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with("ratelimitd: /nowhere/rules: "), "{said}");
    let (status, said) = quiet(&["--shutdown-delay", "soon"]);
    assert_eq!((status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("--shutdown-delay") && said.contains("`soon` is no duration"), "{said}");
    let (status, said) = quiet(&["--no-such-flag"]);
    assert_eq!(
        (status.code(), said.as_str()),
        (Some(2), "ratelimitd: unexpected argument '--no-such-flag' found (see ratelimitd --help)\n")
    );
    let (status, said) = quiet(&["--backend-type", "memcache"]);
    assert_eq!((status.code(), said.as_str()), (Some(1), "ratelimitd: BACKEND_TYPE is memory or redis, not `memcache`\n"));
    let broken = rules_file("domain: d\ndescriptors:\n- kye: a\n  rate_limit: {limit: x, window: 1s}\n");
    let (status, said) = quiet(&["--config", &broken]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&format!("{broken}:3:3: ")) && said.contains(&format!("{broken}:4:23: ")), "every problem is told: {said}");
}

#[test]
fn a_rules_folder_without_a_file_loads_with_a_warning_and_limits_nothing() {
    let folder = scratch("empty");
    let server = Ratelimitd::start(&["--config", folder.to_str().unwrap()]);
    assert!(
        server.log().iter().any(|line| line["level"] == "WARN" && line["message"].as_str().unwrap().contains(folder.to_str().unwrap()))
    );
    assert!(Client::connect(server.grpc()).admits(request("api", vec![descriptor(&[("client", "a")])])));
}

#[test]
fn grpc_listens_on_a_unix_socket_and_leaves_no_file_behind() {
    let path = scratch("uds").join("ratelimitd.sock");
    let socket = path.to_str().unwrap();
    for _ in 0..2 {
        let mut server = Ratelimitd::start(&["--grpc-uds", socket]);
        assert_eq!(server.wait_for_log("listening for gRPC")["address"], format!("unix:{socket}"));
        assert!(Client::connect_to(format!("unix:{socket}")).admits(request("api", vec![descriptor(&[("client", "a")])])));
        let (status, said) =
            Ratelimitd::run(&["--grpc-uds", socket, "--port", "0", "--prometheus-addr", ":0", "--debug-port", "0", "--log-level", "error"]);
        assert_eq!(status.code(), Some(1), "a socket in use is not taken over: {said}");
        server.signal("KILL");
        server.wait_for_exit();
        assert!(path.exists(), "a killed server leaves its socket, and the next one takes it over");
    }
    let mut server = Ratelimitd::start(&["--grpc-uds", socket]);
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
    assert!(!path.exists());
}

#[test]
fn log_level_and_format_are_the_reference_servers() {
    let args = ["--port", "0", "--grpc-port", "0", "--prometheus-addr", ":0", "--config", "/nowhere"];
    let (_, said) = Ratelimitd::run(&[&args[..], &["--log-level", "WARNING", "--log-format", "JSON"]].concat());
    assert_eq!(said.lines().count(), 1, "nothing below a warning: {said}");
    let server = Ratelimitd::start(&[]);
    let line = server.wait_for_log("listening for gRPC");
    assert!(line["timestamp"].is_string() && line["level"] == "INFO", "{line}");
}

#[test]
fn help_is_worth_reading() {
    let output = std::process::Command::new(program()).arg("--help").output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["GRPC_PORT", "8081", "REDIS_URL", "SHUTDOWN_DELAY", "LOG_FORMAT", "load", "config/"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn each_connection_is_dealt_to_the_serving_thread_with_the_fewest() {
    let server = Ratelimitd::start(&["--config", sample_rules(), "--serving-threads", "2"]);
    let clients: Vec<_> = (0..4).map(|_| Client::connect(server.grpc())).collect();
    for client in &clients {
        for _ in 0..300 {
            client.admits(request("api", vec![descriptor(&[("client", "a")])]));
        }
    }
    // Each thread has done about half of the work; one that had none of it would have been idle since its start.
    let switches: Vec<u64> = (0..2).map(|number| voluntary_switches(server.pid(), &format!("serving-{number}"))).collect();
    assert!(switches.iter().all(|switches| *switches > 200), "{switches:?}");
}

/// How often the process's thread of that name has gone to sleep to wait for work.
fn voluntary_switches(pid: u32, name: &str) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads
        .map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
        .find(|status| status.starts_with(&format!("Name:\t{name}\n")));
    let line = status.as_deref().unwrap().lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:\t"));
    line.unwrap().parse().unwrap()
}
