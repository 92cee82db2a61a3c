//! The EnvoyFilters of `examples/istio`, without Istio: what they add to an Envoy is pasted into a small bootstrap as Istio
//! would merge it, and the real Envoy judges it, and is asked. What Istio itself does (where its patches match, the clusters
//! that it makes, mutual TLS) is not tested here.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::support::envoy::{Envoy, binary, upstream};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, rules_file, sample_rules, scratch};

/// Both EnvoyFilters, with the context that all their patches must name.
const ENVOYFILTERS: [(&str, &str); 2] = [("envoyfilter-gateway.yaml", "GATEWAY"), ("envoyfilter-sidecar.yaml", "SIDECAR_INBOUND")];

/// An Envoy as Istio would have it before the patches. CLUSTER is named as Istio names what it makes of a Service, and
/// speaks HTTP/2 as with `appProtocol: grpc`. Istio's gateways have USE_REMOTE_ADDRESS, its sidecars have not: those believe
/// X-Forwarded-For. ADMIN, LISTENER, UPSTREAM and RATELIMITD stand for addresses.
const BOOTSTRAP: &str = r#"
admin:
  address:
    socket_address: {ADMIN}
static_resources:
  listeners:
  - name: ingress
    address:
      socket_address: {LISTENER}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          use_remote_address: USE_REMOTE_ADDRESS
          http_filters:
#HTTP_FILTERS
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: upstream}
#VIRTUAL_HOST
  clusters:
  - name: upstream
    type: STATIC
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {UPSTREAM}}}
  - name: CLUSTER
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {}
    load_assignment:
      cluster_name: CLUSTER
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {RATELIMITD}}}
"#;

/// One item of `configPatches`, as text.
struct Patch {
    kind: String,
    /// The lines before the value: `match`, `operation`.
    head: Vec<String>,
    /// The value's lines, from the margin.
    value: Vec<String>,
}

/// A file of `examples/istio`, without comments and blank lines.
fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/istio").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

fn patches(envoyfilter: &str) -> Vec<Patch> {
    let mut patches: Vec<Patch> = Vec::new();
    let mut in_value = false;
    for line in envoyfilter.lines().skip_while(|line| *line != "  configPatches:").skip(1) {
        if let Some(kind) = line.strip_prefix("  - applyTo: ") {
            patches.push(Patch { kind: kind.to_owned(), head: Vec::new(), value: Vec::new() });
            in_value = false;
            continue;
        }
        let patch = patches.last_mut().unwrap_or_else(|| panic!("a line before the first patch: {line}"));
        if line == "      value:" {
            in_value = true;
        } else if in_value {
            let cut = line.strip_prefix("        ").unwrap_or_else(|| panic!("a line of a value that begins left of it: {line}"));
            patch.value.push(cut.to_owned());
        } else {
            patch.head.push(line.trim().to_owned());
        }
    }
    patches
}

/// The bootstrap with an EnvoyFilter's patches in it: HTTP filters before the router, in order, and the keys of the
/// virtual host beside its own.
fn merged(envoyfilter: &str) -> String {
    let (mut http_filters, mut virtual_host) = (String::new(), String::new());
    for Patch { kind, value, .. } in patches(envoyfilter) {
        match kind.as_str() {
            "HTTP_FILTER" => {
                for (number, line) in value.iter().enumerate() {
                    let dash = if number == 0 { "- " } else { "  " };
                    http_filters.push_str(&format!("          {dash}{line}\n"));
                }
            }
            "VIRTUAL_HOST" => value.iter().for_each(|line| virtual_host.push_str(&format!("              {line}\n"))),
            other => panic!("this test does not know how to merge into {other}"),
        }
    }
    let gateway = envoyfilter.contains("context: GATEWAY");
    BOOTSTRAP
        .replace("#HTTP_FILTERS\n", &http_filters)
        .replace("#VIRTUAL_HOST\n", &virtual_host)
        .replace("CLUSTER", &cluster())
        .replace("USE_REMOTE_ADDRESS", &gateway.to_string())
}

/// The name of the cluster that Istio makes of the Service in ratelimitd.yaml.
fn cluster() -> String {
    let manifests = example("ratelimitd.yaml");
    let service = manifests.split("---\n").find(|manifest| manifest.contains("kind: Service\n")).unwrap();
    let value = |key: &str| service.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(value("appProtocol: "), "grpc", "else Istio's cluster would not speak HTTP/2");
    format!("outbound|{}||{}.{}.svc.cluster.local", value("port: "), value("name: "), value("namespace: "))
}

/// The bootstrap's addresses filled in: admin, listener, upstream, ratelimitd.
fn at(addresses: &[String; 4], bootstrap: &str) -> String {
    let names = ["{ADMIN}", "{LISTENER}", "{UPSTREAM}", "{RATELIMITD}"];
    names.into_iter().zip(addresses).fold(bootstrap.to_owned(), |text, (name, address)| text.replace(name, &format!("{{{address}}}")))
}

/// Has the real Envoy judge a configuration; the error is what Envoy says.
pub fn validate(config: &str) -> Result<(), String> {
    let path = scratch("validate").join("envoy.yaml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(binary());
    let output = command.args(["--mode", "validate", "--log-level", "warning", "-c"]).arg(path).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

/// As [`validate`], with addresses that nobody listens on.
fn validate_merged(envoyfilter: &str) -> Result<(), String> {
    let nowhere = || "address: 127.0.0.1, port_value: 1".to_owned();
    validate(&at(&[nowhere(), nowhere(), nowhere(), nowhere()], &merged(envoyfilter)))
}

/// Envoy with the EnvoyFilter merged in, in front of a real ratelimitd.
fn start(envoyfilter: &str, ratelimitd: SocketAddr) -> Envoy {
    Envoy::start(&[ratelimitd], upstream(), |config| {
        // The support's own configuration brings the addresses, in the order of ours.
        let inside = config.lines().filter_map(|line| line.split_once("socket_address: {")).filter_map(|(_, rest)| rest.split_once('}'));
        let addresses: Vec<String> = inside.map(|(address, _)| address.to_owned()).collect();
        at(&addresses.try_into().unwrap(), &merged(envoyfilter))
    })
}

/// On a slow machine Envoy would give up after its 20 ms, and the request would pass uncounted.
fn patient(envoyfilter: &str) -> String {
    changed(envoyfilter, "          failure_mode_deny: false\n", "          failure_mode_deny: true\n          timeout: 10s\n")
}

fn changed(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "the text has one `{from}`");
    text.replace(from, to)
}

/// The sample rules with a window that no test outlasts.
fn long_rules() -> String {
    let rules = fs::read_to_string(Path::new(sample_rules()).join("api.yaml")).unwrap();
    rules_file(&changed(&rules, "window: 10s", "window: 1h"))
}

#[test]
fn each_envoyfilter_makes_the_client_known_then_asks_then_lists_what_to_ask() {
    for (name, context) in ENVOYFILTERS {
        let patches = patches(&example(name));
        let parts: Vec<_> = patches.iter().map(|patch| (patch.kind.as_str(), patch.value[0].as_str())).collect();
        let expected = [
            ("HTTP_FILTER", "name: envoy.filters.http.header_mutation"),
            ("HTTP_FILTER", "name: envoy.filters.http.ratelimit"),
            ("VIRTUAL_HOST", "rate_limits:"),
        ];
        assert_eq!(parts, expected, "{name}");
        for patch in &patches {
            let has = |line: &str| patch.head.iter().any(|other| other == line);
            assert!(has(&format!("context: {context}")), "{name}: {:?}", patch.head);
            let in_place = match patch.kind.as_str() {
                "HTTP_FILTER" => has("operation: INSERT_BEFORE") && has("name: envoy.filters.http.router"),
                _ => has("operation: MERGE"),
            };
            assert!(in_place, "{name}: {:?}", patch.head);
        }
    }
}

#[test]
fn envoy_accepts_what_each_envoyfilter_adds() {
    for (name, _) in ENVOYFILTERS {
        let envoyfilter = example(name);
        validate_merged(&envoyfilter).unwrap_or_else(|said| panic!("{name}: {said}\n{}", merged(&envoyfilter)));
    }
}

#[test]
fn envoy_refuses_a_mistake_in_any_patch() {
    for (name, _) in ENVOYFILTERS {
        // With the word by which Envoy's reason is known to be this mistake, not something else that is wrong.
        for (from, to, word) in [
            ("append_action: ADD_IF_ABSENT", "append_action: ADD_IF_MISSING", "ADD_IF_MISSING"),
            ("failure_mode_deny: ", "failure_mode_denies: ", "failure_mode_denies"),
            ("rate_limits:\n", "rate_limitz:\n", "rate_limitz"),
        ] {
            let said = validate_merged(&changed(&example(name), from, to)).err().unwrap_or_else(|| panic!("{name}: Envoy accepts `{to}`"));
            assert!(said.contains(word), "{name}: `{to}`: {said}");
        }
    }
}

#[test]
fn the_sixth_request_of_a_client_is_a_429_through_either_envoyfilter() {
    for (name, _) in ENVOYFILTERS {
        let ratelimitd = Ratelimitd::start(&["--config", &long_rules()]);
        let envoy = start(&patient(&example(name)), ratelimitd.grpc());
        let statuses = |path: &str, headers: &[(&str, &str)], times: usize| -> Vec<u16> {
            (0..times).map(|_| http::get(envoy.listener, path, headers).status).collect()
        };
        assert_eq!(statuses("/", &[("x-client", "alice")], 6), [200, 200, 200, 200, 200, 429], "{name}");
        assert_eq!(statuses("/export?page=1", &[("x-client", "bob")], 3), [200, 200, 429], "{name}: by path and client");
        // Without the header the client is the address, which for all of these is the same.
        assert_eq!(statuses("/", &[], 6), [200, 200, 200, 200, 200, 429], "{name}");
        assert_eq!(statuses("/", &[("x-client", "127.0.0.1")], 1), [429], "{name}");
        assert_eq!(statuses("/", &[("x-forwarded-for", "192.0.2.1")], 1), [429], "{name}: an invented address is no new client");
        assert_eq!(envoy.stat("cluster.upstream.ratelimit.error"), 0, "{name}");
    }
}

/// Holds the examples' comment to the truth. If this fails, `authority` may not be needed any more.
#[test]
fn without_the_authority_every_call_fails_since_istios_cluster_name_is_no_host_name() {
    for (name, _) in ENVOYFILTERS {
        let ratelimitd = Ratelimitd::start(&["--config", &long_rules()]);
        let authority = "                authority: ratelimitd.ratelimit.svc.cluster.local\n";
        let envoy = start(&changed(&patient(&example(name)), authority, ""), ratelimitd.grpc());
        // `patient` denies where ratelimitd gives no answer: 500, not 429.
        assert_eq!(http::get(envoy.listener, "/", &[("x-client", "alice")]).status, 500, "{name}");
        assert_eq!(envoy.stat("cluster.upstream.ratelimit.error"), 1, "{name}");
    }
}
