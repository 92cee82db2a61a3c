//! Tests of rules, as they are written: a file names the rules to load and timelines of requests, with what is expected of
//! each. Here they are read into plain data; `ratelimitd test` runs them. Its form:
//!
//! ```yaml
//! rules: [api.yaml]                     # files or folders, beside this file
//! tests:
//!   - name: five in any ten seconds
//!     domain: api
//!     steps:
//!       - at: 0s                        # from the timeline's start; without it, at the time of the step before
//!         times: 5                      # once, without it; what is expected holds for each, numbers and headers for the last
//!         request: {client: alice}      # one descriptor: its entries, in order
//!         expect: OK
//!       - request: {client: alice}
//!         expect: OVER_LIMIT
//!         rule: client                  # the path of the rule that decided, or none
//!         remaining: 0                  # of the limit that decided, as it is sent
//!         reset: 10s                    # likewise, rounded up to whole seconds
//!         headers: {RateLimit-Limit: 5} # as LIMIT_RESPONSE_HEADERS_ENABLED adds them
//!       - request:                      # the whole form
//!           hits_addend: 1
//!           descriptors:
//!             - entries: [{path: /a}, {client: alice}]
//!               hits_addend: 0          # a peek
//!               is_negative_hits: false
//!               limit: {unit: minute, unit_multiplier: 5, requests_per_unit: 100}
//!         statuses:                     # of each descriptor; what is left out may be anything
//!           - {code: OK, remaining: 5, reset: 0s, name: per client}
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::language::unit;
use super::scalars::Known;
use super::yaml::{self, Node, Place, Value};
use super::{LoadOptions, Problem, Problems, Report, read, unplaced};
use crate::descriptor::{Descriptor, Entry, LimitOverride, Request, RequestBounds};
use crate::limit::{Algorithm, Limit, Micros, Window, parse_duration};

/// A file of tests.
pub struct Suite {
    pub rules: Vec<PathBuf>,
    pub options: LoadOptions,
    pub scenarios: Vec<Scenario>,
}

/// One test: a timeline on counters of its own.
pub struct Scenario {
    pub name: String,
    pub steps: Vec<Step>,
}

/// The same request so many times, at one moment.
pub struct Step {
    /// Line and column, from 1.
    pub place: (usize, usize),
    /// Since the timeline's start.
    pub at: Duration,
    pub times: u64,
    pub request: Request,
    pub expected: Expected,
}

/// What a step expects; None where it may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Over the limit, or not.
    pub over: Option<bool>,
    pub rule: Option<String>,
    pub remaining: Option<u64>,
    pub reset: Option<Duration>,
    pub headers: Vec<(String, String)>,
    /// One for each descriptor, where there are any.
    pub statuses: Vec<ExpectedStatus>,
}

/// What a step expects of one descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedStatus {
    pub over: Option<bool>,
    pub remaining: Option<u64>,
    pub reset: Option<Duration>,
    /// The limit's name.
    pub name: Option<String>,
}

/// Once, so many times at the most; a typing error must not run for ever.
const TIMES_MAX: u64 = 1_000_000;

/// How long a timeline may be: 100 years, ten times the longest window.
const AT_MAX: Duration = Duration::from_micros(100 * Window::YEAR.micros());

/// Reads a file of tests. Paths of rules in it are taken from where it lies.
///
/// # Errors
/// Every problem of the file.
pub fn suite(file: &Path) -> Result<Suite, Problems> {
    let text = if file.is_dir() { Err(unplaced(file, "this is a folder: name the files of tests in it")) } else { read(file) };
    let text = text.map_err(|problem| Problems { problems: vec![problem], warnings: Vec::new() })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    parse_suite(file, &text, folder)
}

/// The same from a text in memory.
///
/// # Errors
/// Every problem of the text.
pub fn parse_suite(file: &Path, text: &str, folder: &Path) -> Result<Suite, Problems> {
    let mut report = Report { file, problems: Vec::new(), warnings: Vec::new() };
    let root = yaml::read(text, &mut report);
    let suite = root.and_then(|root| Reader { report: &mut report, folder }.suite(&root));
    let Report { mut problems, warnings, .. } = report;
    // What is passed over in a file of tests is tests that don't run.
    problems.extend(warnings.iter().cloned());
    match suite {
        Some(suite) if problems.is_empty() => Ok(suite),
        _ => {
            problems.sort();
            if problems.is_empty() {
                problems.push(Problem { file: file.to_owned(), line: 1, column: 1, message: "no test can be read here".to_owned() });
            }
            Err(Problems { problems, warnings })
        }
    }
}

struct Reader<'r, 'f> {
    report: &'r mut Report<'f>,
    folder: &'f Path,
}

impl Reader<'_, '_> {
    fn suite(&mut self, root: &Node) -> Option<Suite> {
        let known = self.report.known("a file of tests", root, &["rules", "merge_domain_config", "default_algorithm", "tests"])?;
        let rules = known.get("rules").map(|node| self.rules(node)).unwrap_or_default();
        let merge_domains = known.get("merge_domain_config").and_then(|node| self.report.flag("merge_domain_config", node));
        let algorithm = known.get("default_algorithm").and_then(|node| self.algorithm(node));
        let Some(node) = known.get("tests") else {
            self.report.problem(root.place, "`tests` is missing: list the tests under it");
            return None;
        };
        let items = self.report.list("tests", node, "begin each of its tests with `- name:`")?;
        if items.is_empty() {
            self.report.problem(node.place, "there is no test in this file: write one");
        }
        let scenarios = items.iter().filter_map(|item| self.scenario(item)).collect();
        let (merge_domains, default_algorithm) = (merge_domains.unwrap_or_default(), algorithm.unwrap_or_default());
        let options = LoadOptions { merge_domains, default_algorithm };
        Some(Suite { rules, options, scenarios })
    }

    fn algorithm(&mut self, node: &Node) -> Option<Algorithm> {
        let name = self.report.text("default_algorithm", node)?;
        self.report.judged(node, name.parse())
    }

    fn rules(&mut self, node: &Node) -> Vec<PathBuf> {
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        items.iter().filter_map(|item| self.report.filled("rules", item)).map(|path| self.folder.join(path)).collect()
    }

    fn scenario(&mut self, node: &Node) -> Option<Scenario> {
        let known = self.report.known("a test", node, &["name", "domain", "steps"])?;
        let name = self.needed(node, &known, "name").and_then(|node| self.report.filled("name", node));
        let domain = self.needed(node, &known, "domain").and_then(|node| self.report.filled("domain", node));
        let steps = self
            .needed(node, &known, "steps")
            .and_then(|node| self.report.list("steps", node, "begin each of its steps with `- request:`"));
        if steps.is_some_and(<[Node]>::is_empty) {
            self.report.problem(node.place, "this test has no step: write one");
        }
        // Without a domain nothing is run, but the steps are still read for what is wrong with them.
        let domain = domain.unwrap_or_else(|| "missing".to_owned());
        let mut now = Duration::ZERO;
        let steps = steps.unwrap_or_default().iter().filter_map(|item| self.step(item, &domain, &mut now)).collect();
        Some(Scenario { name: name?, steps })
    }

    fn step(&mut self, node: &Node, domain: &str, now: &mut Duration) -> Option<Step> {
        const EXPECTED: [&str; 6] = ["expect", "rule", "remaining", "reset", "headers", "statuses"];
        let known = self.report.known("a step", node, &[&["at", "times", "request"], &EXPECTED[..]].concat())?;
        if let Some(node) = known.get("at") {
            let at = self.duration("at", node)?;
            if at > AT_MAX {
                let most = Micros(AT_MAX.as_micros() as u64);
                self.report.problem(node.place, format!("a timeline is at most {most} long: take an earlier time"));
            }
            if at < *now {
                self.report.problem(node.place, format!("time does not go back: the step before is at {}", Micros(now.as_micros() as u64)));
            }
            *now = at.max(*now);
        }
        let times = known.get("times").map_or(Some(1), |node| self.report.number("times", node, TIMES_MAX));
        let request = self.needed(node, &known, "request").and_then(|node| self.request(node, domain));
        if times == Some(0) {
            self.report.problem(node.place, "a step of 0 times asks nothing: write 1 or more, or remove it");
        }
        let descriptors = request.as_ref().map(|request| request.descriptors().len());
        let statuses = known.get("statuses").map(|node| self.statuses(node, descriptors)).unwrap_or_default();
        let expected = Expected {
            over: known.get("expect").and_then(|node| self.code("expect", node)),
            rule: known.get("rule").and_then(|node| self.report.filled("rule", node)),
            remaining: known.get("remaining").and_then(|node| self.report.number("remaining", node, u64::MAX)),
            reset: known.get("reset").and_then(|node| self.duration("reset", node)),
            headers: known.get("headers").map(|node| self.pairs("headers", node)).unwrap_or_default(),
            statuses,
        };
        if EXPECTED.iter().all(|name| known.get(name).is_none()) {
            self.report.problem(node.place, "this step expects nothing: write `expect: OK` or `expect: OVER_LIMIT`");
        }
        let Place { line, column } = node.place;
        Some(Step { place: (line, column), at: *now, times: times?, request: request?, expected })
    }

    /// Entries in order, or the whole form, which has a list of `descriptors`.
    fn request(&mut self, node: &Node, domain: &str) -> Option<Request> {
        let whole = |(key, value): &(Node, Node)| matches!((&key.value, &value.value), (Value::Scalar { text, .. }, Value::List(_)) if text == "descriptors");
        let is_whole = matches!(&node.value, Value::Map(pairs) if pairs.iter().any(whole));
        let (descriptors, hits_addend) = if is_whole {
            let known = self.report.known("a request", node, &["descriptors", "hits_addend"])?;
            let hits = known.get("hits_addend").map_or(Some(0), |node| self.report.number("hits_addend", node, u32::MAX.into()))?;
            let items = known.get("descriptors").and_then(|node| self.report.list("descriptors", node, "write `- entries:`"))?;
            let descriptors: Vec<_> = items.iter().filter_map(|item| self.descriptor(item)).collect();
            (descriptors, u32::try_from(hits).unwrap_or(u32::MAX))
        } else {
            (vec![Descriptor { entries: self.entries("request", node), ..Descriptor::default() }], 0)
        };
        self.report.judged(node, Request::new(domain.to_owned(), descriptors, hits_addend, RequestBounds::default()))
    }

    fn descriptor(&mut self, node: &Node) -> Option<Descriptor> {
        let known = self.report.known("a descriptor", node, &["entries", "hits_addend", "is_negative_hits", "limit"])?;
        Some(Descriptor {
            entries: known.get("entries").map(|node| self.entries("entries", node)).unwrap_or_default(),
            limit: known.get("limit").and_then(|node| self.carried_limit(node)),
            hits_addend: known.get("hits_addend").and_then(|node| self.report.number("hits_addend", node, u64::MAX)),
            is_negative_hits: known.get("is_negative_hits").and_then(|node| self.report.flag("is_negative_hits", node)).unwrap_or_default(),
        })
    }

    fn carried_limit(&mut self, node: &Node) -> Option<LimitOverride> {
        let known = self.report.known("`limit`", node, &["unit", "unit_multiplier", "requests_per_unit"])?;
        let requests = self.needed(node, &known, "requests_per_unit");
        let requests = requests.and_then(|node| self.report.number("requests_per_unit", node, u32::MAX.into()));
        let multiplier = known.get("unit_multiplier");
        let multiplier = multiplier.map_or(Some(1), |node| self.report.number("unit_multiplier", node, u32::MAX.into()));
        let node = self.needed(node, &known, "unit")?;
        let text = self.report.text("unit", node)?;
        let unit = self.report.judged(node, unit(&text).ok_or_else(|| format!("`{text}` is no unit: write minute, hour or so")))?;
        let window = self.report.judged(node, Window::from_micros(unit.micros().saturating_mul(multiplier?)))?;
        Some(LimitOverride::Limit { limit: Limit::from(u32::try_from(requests?).unwrap_or(u32::MAX)), window })
    }

    /// `descriptors` is how many the request has; None where that can't be said.
    fn statuses(&mut self, node: &Node, descriptors: Option<usize>) -> Vec<ExpectedStatus> {
        let items = self.report.list("statuses", node, "write one for each descriptor").unwrap_or_default();
        if let Some(descriptors) = descriptors.filter(|count| *count != items.len()) {
            let what = format!("{} statuses are expected of {descriptors} descriptors: write one for each", items.len());
            self.report.problem(node.place, what);
        }
        let mut status = |item: &Node| {
            let known = self.report.known("a status", item, &["code", "remaining", "reset", "name"])?;
            Some(ExpectedStatus {
                over: known.get("code").and_then(|node| self.code("code", node)),
                remaining: known.get("remaining").and_then(|node| self.report.number("remaining", node, u64::MAX)),
                reset: known.get("reset").and_then(|node| self.duration("reset", node)),
                name: known.get("name").and_then(|node| self.report.text("name", node)),
            })
        };
        items.iter().filter_map(&mut status).collect()
    }

    /// A map of entries, or a list of maps of one each, in which a key may stand twice.
    fn entries(&mut self, name: &str, node: &Node) -> Vec<Entry> {
        let pairs = match &node.value {
            Value::List(items) => items.iter().flat_map(|item| self.pairs(name, item)).collect(),
            _ => self.pairs(name, node),
        };
        pairs.into_iter().map(|(key, value)| Entry { key, value }).collect()
    }

    fn pairs(&mut self, name: &str, node: &Node) -> Vec<(String, String)> {
        let Value::Map(pairs) = &node.value else {
            self.report.problem(node.place, format!("`{name}` is a map, not {}: write `{{KEY: VALUE}}`", node.kind()));
            return Vec::new();
        };
        let mut pair = |(key, value): &(Node, Node)| {
            let key = self.report.text("a key", key)?;
            let value = self.report.text(&key, value)?;
            Some((key, value))
        };
        pairs.iter().filter_map(&mut pair).collect()
    }

    fn code(&mut self, name: &str, node: &Node) -> Option<bool> {
        let text = self.report.text(name, node)?;
        match text.as_str() {
            "OK" => Some(false),
            "OVER_LIMIT" => Some(true),
            _ => {
                self.report.problem(node.place, format!("`{name}` is OK or OVER_LIMIT, not `{text}`: correct it"));
                None
            }
        }
    }

    fn duration(&mut self, name: &str, node: &Node) -> Option<Duration> {
        let text = self.report.text(name, node)?;
        self.report.judged(node, parse_duration(&text))
    }

    fn needed<'n>(&mut self, node: &Node, known: &Known<'n>, name: &str) -> Option<&'n Node> {
        let found = known.get(name);
        if found.is_none() {
            self.report.problem(node.place, format!("`{name}` is missing here: write it"));
        }
        found
    }
}
