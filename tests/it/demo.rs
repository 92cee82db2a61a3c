//! The demo and the image hold together: what docker-compose.yml, Dockerfile, deploy/, examples/envoy, examples/istio,
//! config/ and the program say of each other is the same. The files are read as text, line by line, in the one way that they
//! are written; no container is started and nothing is applied to a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use distributed_rate_limiter::grpc::HEALTH_SERVICE;
use distributed_rate_limiter::settings::ServeArgs;
use serde_json::Value;

use crate::istio::validate;
use crate::support::grpc::{Client, descriptor, request};
use crate::support::ratelimitd::program;
use crate::support::redis::RedisServer;

/// Whatever is waited for, it comes within this or the test fails.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is said of `ratelimitd` in a manifest: its arguments, and its environment.
struct Start {
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

/// A server started as a manifest says, killed when dropped.
struct Started {
    child: Child,
    log: Vec<Value>,
}

impl Started {
    /// On free ports, with this folder of rules and this Redis.
    fn as_in(start: &Start, rules: &Path, redis: &RedisServer) -> Self {
        let mut command = Command::new(program());
        command.env_clear().envs(&start.env).env("REDIS_URL", redis.url());
        // Else a first call on a slow machine might be answered by policy.
        command.env("REDIS_TIMEOUT", "5s");
        command.args(start.args.iter().map(|arg| if arg == "/config" { rules.as_os_str() } else { arg.as_ref() }));
        command.args(["--log-format", "json", "--grpc-host", "127.0.0.1", "--grpc-port", "0"]);
        command.args(["--host", "127.0.0.1", "--port", "0", "--prometheus-addr", "127.0.0.1:0"]);
        command.args(["--debug-host", "127.0.0.1", "--debug-port", "0"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (stderr, (line, lines)) = (child.stderr.take().unwrap(), mpsc::channel());
        thread::spawn(move || {
            // To the end, also when nobody listens any more: a server must not find its stderr closed.
            for text in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = line.send(text);
            }
        });
        let mut started = Self { child, log: Vec::new() };
        let deadline = Instant::now() + DEADLINE;
        while !started.log.iter().any(|line| line["message"] == "ready to serve") {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => started.log.push(serde_json::from_str(&text).unwrap_or(Value::String(text))),
                Err(error) => panic!("ratelimitd does not get ready: {error}: {:#?}", started.log),
            }
        }
        started
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository, without comments and blank lines.
fn file(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let bare = text.lines().map(|line| line.find(" #").map_or(line, |comment| &line[..comment]).trim_end());
    let kept = bare.filter(|line| !line.is_empty() && !line.starts_with('#'));
    kept.map(|line| format!("{line}\n")).collect()
}

/// The lines below `header` that stand further right, from the margin. Of several such headers, the outermost.
fn block(text: &str, header: &str) -> String {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = text.lines().collect();
    let places = (0..lines.len()).filter(|number| lines[*number].trim_start() == header);
    let place = places.min_by_key(|number| depth(lines[*number])).unwrap_or_else(|| panic!("there is no `{header}` in:\n{text}"));
    let (outside, lines) = (depth(lines[place]), lines[place + 1..].iter().copied());
    let inside: Vec<&str> = lines.take_while(|line| depth(line) > outside).collect();
    let margin = inside.iter().map(|line| depth(line)).min().unwrap_or(0);
    inside.iter().map(|line| format!("{}\n", &line[margin..])).collect()
}

/// What follows `key: ` on its line, without quotes.
fn value<'t>(text: &'t str, key: &str) -> &'t str {
    let found = text.lines().find_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("there is no `{key}: ` in:\n{text}")).trim_matches('"')
}

/// A list in brackets of quoted words.
fn words(list: &str) -> Vec<String> {
    list.trim_matches(['[', ']']).split(", ").map(|word| word.trim_matches('"').to_owned()).collect()
}

/// The items of a list of one line each.
fn items(list: &str) -> Vec<String> {
    list.lines().map(|line| line.strip_prefix("- ").unwrap_or_else(|| panic!("no item: {line}")).trim_matches('"').to_owned()).collect()
}

fn service(name: &str) -> String {
    block(&block(&file("docker-compose.yml"), "services:"), &format!("{name}:"))
}

/// The pairs HOST:CONTAINER, and what stands behind a second colon cut off.
fn volumes(service: &str) -> Vec<(PathBuf, String)> {
    let pair = |item: String| {
        let mut parts = item.split(':').map(str::to_owned);
        (root().join(parts.next().unwrap()), parts.next().unwrap())
    };
    items(&block(service, "volumes:")).into_iter().map(pair).collect()
}

/// The container's ports that are published, each under the same number outside.
fn published(service: &str) -> Vec<String> {
    let port = |item: String| {
        let (outside, inside) = item.rsplit_once(':').unwrap();
        assert!(outside == inside || outside.ends_with(&format!(":{inside}")), "{item}");
        inside.to_owned()
    };
    items(&block(service, "ports:")).into_iter().map(port).collect()
}

/// `(address, port)` of each socket address in Envoy's configuration.
fn socket_addresses(envoy: &str) -> Vec<(&str, &str)> {
    let inside = envoy.lines().filter_map(|line| line.split_once("socket_address: {address: ")?.1.split_once('}'));
    inside.map(|(address, _)| address.split_once(", port_value: ").unwrap()).collect()
}

/// The default of the flag that reads this variable.
fn default_of(variable: &str) -> String {
    let command = ServeArgs::augment_args(clap::Command::new("ratelimitd"));
    let flag = command.get_arguments().find(|flag| flag.get_env().is_some_and(|env| env == variable));
    let flag = flag.unwrap_or_else(|| panic!("ratelimitd has no flag that reads {variable}"));
    flag.get_default_values().iter().map(|value| value.to_str().unwrap()).collect()
}

/// The last part of `host:port` or `:port`.
fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap()
}

fn start_in_compose() -> Start {
    let ratelimitd = service("ratelimitd");
    let environment = block(&ratelimitd, "environment:");
    let pairs = environment.lines().map(|line| line.split_once(": ").unwrap());
    Start {
        args: words(value(&ratelimitd, "command")),
        env: pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect(),
    }
}

/// The manifest of this kind in examples/istio/ratelimitd.yaml.
fn manifest(kind: &str) -> String {
    let all = file("examples/istio/ratelimitd.yaml");
    let one = all.split("---\n").find(|manifest| manifest.contains(&format!("kind: {kind}\n")));
    one.unwrap_or_else(|| panic!("there is no {kind}")).to_owned()
}

fn start_in_istio() -> Start {
    let deployment = manifest("Deployment");
    let env = items_of_two(&block(&deployment, "env:"), "name", "value");
    Start { args: words(value(&deployment, "args")), env }
}

/// A list whose items are two lines each, `- FIRST: a` and `  SECOND: b`, as pairs.
fn items_of_two(list: &str, first: &str, second: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = list.lines().collect();
    let pair = |lines: &[&str]| {
        let name = lines[0].strip_prefix(&format!("- {first}: ")).unwrap_or_else(|| panic!("no {first}: {lines:?}"));
        let value = lines[1].strip_prefix(&format!("  {second}: ")).unwrap_or_else(|| panic!("no {second}: {lines:?}"));
        (name.to_owned(), value.trim_matches('"').to_owned())
    };
    lines.chunks(2).map(pair).collect()
}

#[test]
fn envoys_clusters_and_listener_are_services_and_ports_of_the_compose_file() {
    let envoy = file("examples/envoy/envoy.yaml");
    assert_eq!(socket_addresses(&envoy), [("127.0.0.1", "9901"), ("0.0.0.0", "10000"), ("upstream", "8080"), ("ratelimitd", "8081")]);
    let services = block(&file("docker-compose.yml"), "services:");
    let names: Vec<&str> = services.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(names, ["envoy:", "ratelimitd:", "redis:", "upstream:"]);
    assert_eq!(published(&service("envoy")), ["10000"]);
    assert!(words(value(&service("upstream"), "command")).contains(&"-listen=:8080".to_owned()));
    // ratelimitd listens where it does by itself: nothing in the compose file says otherwise.
    let ports = [default_of("GRPC_PORT"), default_of("PORT"), port(&default_of("PROMETHEUS_ADDR")).to_owned()];
    assert_eq!(ports, ["8081", "8080", "9090"]);
    assert_eq!(published(&service("ratelimitd")), ports[1..]);
    let start = start_in_compose();
    assert!(["GRPC_HOST", "GRPC_PORT", "GRPC_UDS", "HOST", "PORT", "PROMETHEUS_ADDR"].iter().all(|name| !start.env.contains_key(*name)));
    assert_eq!(start.env["REDIS_URL"], "redis:6379", "the service, and the port of a Redis that is told none");
    assert!(!value(&service("redis"), "command").contains("--port"));
    assert_eq!(value(&envoy, "grpc_health_check"), format!("{{service_name: {HEALTH_SERVICE}}}"));
}

#[test]
fn the_compose_file_mounts_the_samples_and_runs_the_envoy_that_the_tests_run() {
    assert_eq!(volumes(&service("envoy")), [(root().join("./examples/envoy/envoy.yaml"), "/etc/envoy/envoy.yaml".to_owned())]);
    assert_eq!(volumes(&service("ratelimitd")), [(root().join("./config"), "/config".to_owned())]);
    for (path, _) in volumes(&service("envoy")).into_iter().chain(volumes(&service("ratelimitd"))) {
        assert!(path.exists(), "{}: Docker would make an empty folder of it", path.display());
    }
    let tested = file("tests/run").lines().find_map(|line| line.strip_prefix("ENVOY_VERSION=").map(str::to_owned));
    assert_eq!(value(&service("envoy"), "image"), format!("envoyproxy/envoy:v{}", tested.unwrap()));
    let build = block(&service("ratelimitd"), "build:");
    assert_eq!((value(&build, "context"), value(&build, "args")), (".", "{TRAINED: \"no\"}"));
    assert!(file("Dockerfile").lines().any(|line| line == "ARG TRAINED=yes"));
}

#[test]
fn the_load_that_images_are_built_by_is_served_in_memory_and_with_redis() {
    let output = Command::new(root().join("deploy/train")).arg(program()).env("REQUESTS", "1000").output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    let answers = |of: &str| -> Vec<u64> {
        report.lines().filter_map(|line| line.strip_prefix(of)).map(|count| count.trim().parse().unwrap()).collect()
    };
    // Of the third a client's hundred pass.
    assert_eq!(answers("OK "), [[1_000, 51, 100, 500]; 2].concat(), "{report}");
    assert_eq!(answers("OVER_LIMIT "), [[0, 0, 400, 0]; 2].concat(), "{report}");
    // The image takes the program from where it is built, and what builds it is not kept out.
    let (image, build) = (file("Dockerfile"), file("deploy/build"));
    assert!(image.contains("built=trained; deploy/build;") && image.contains(r#"cp "target/$built/ratelimitd""#), "{image}");
    assert!(build.contains("-target}\")/trained\n") && build.ends_with(" \"$target/\"\n"), "{build}");
    let ignored = file(".dockerignore");
    assert!(ignored.lines().filter(|line| line.starts_with("deploy")).eq(["deploy/prometheus"]), "{ignored}");
}

#[test]
fn envoy_accepts_the_example_as_it_is() {
    let text = fs::read_to_string(root().join("examples/envoy/envoy.yaml")).unwrap();
    validate(&text).unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn the_variables_of_both_manifests_are_ones_that_ratelimitd_reads() {
    for start in [start_in_compose(), start_in_istio()] {
        assert!(start.env.contains_key("REDIS_URL"), "the environment was found");
        for name in start.env.keys() {
            default_of(name);
        }
        assert_eq!(start.args, ["--config", "/config"]);
    }
}

#[test]
fn ratelimitd_gets_ready_as_both_manifests_start_it_and_counts_in_their_redis() {
    for start in [start_in_compose(), start_in_istio()] {
        let redis = RedisServer::start();
        let started = Started::as_in(&start, &root().join("config"), &redis);
        let of = |message: &str| started.log.iter().find(|line| line["message"] == message);
        assert_eq!(of("rules loaded").unwrap()["rules"], 3, "{:#?}", started.log);
        // The one thing to warn about is this test's own.
        let warnings: Vec<_> = started.log.iter().filter(|line| line["level"] == "WARN").collect();
        assert!(warnings.iter().all(|line| line["message"].as_str().unwrap().starts_with("REDIS_TIMEOUT is 5s")), "{warnings:#?}");
        let grpc = of("listening for gRPC").unwrap()["address"].as_str().unwrap();
        let client = Client::connect(grpc.parse().unwrap());
        let asked: Vec<bool> = (0..6).map(|_| client.admits(request("api", vec![descriptor(&[("client", "alice")])]))).collect();
        assert_eq!(asked, [true, true, true, true, true, false]);
        assert_eq!(redis.command(&["DBSIZE"]), redis::Value::Int(1), "the counter is in Redis");
    }
}

#[test]
fn the_rules_of_the_config_map_are_the_sample_rules() {
    let rules = block(&manifest("ConfigMap"), "api.yaml: |");
    assert!(rules.starts_with("domain: api\n"), "{rules}");
    assert_eq!(rules, file("config/api.yaml"));
}

#[test]
fn the_deployments_ports_probes_and_mounts_fit_the_program() {
    let deployment = manifest("Deployment");
    let ports = items_of_two(&block(&deployment, "ports:"), "name", "containerPort");
    let expected =
        [("grpc", default_of("GRPC_PORT")), ("http", default_of("PORT")), ("metrics", port(&default_of("PROMETHEUS_ADDR")).into())];
    assert_eq!(ports, expected.map(|(name, port)| (name.to_owned(), port)).into());
    assert_eq!(value(&deployment, "prometheus.io/port"), ports["metrics"]);
    assert_eq!(value(&deployment, "prometheus.io/path"), default_of("PROMETHEUS_PATH"));
    assert_eq!(value(&block(&manifest("Service"), "ports:"), "port"), ports["grpc"]);
    let readiness = block(&deployment, "readinessProbe:");
    assert_eq!((value(&readiness, "port"), value(&readiness, "service")), (ports["grpc"].as_str(), HEALTH_SERVICE));
    assert_eq!(value(&block(&deployment, "livenessProbe:"), "port"), ports["grpc"]);
    assert_eq!(value(&deployment, "mountPath"), "/config");
    assert_eq!(value(&block(&deployment, "configMap:"), "name"), value(&manifest("ConfigMap"), "name"));
    // The user of the image: runAsNonRoot checks it.
    assert_eq!(
        format!("USER {0}:{0}", value(&deployment, "runAsUser")),
        *file("Dockerfile").lines().find(|line| line.starts_with("USER")).unwrap()
    );
}
