//! Random input for the rules language and for the walk, made to have their structure: a minute each in CI, a few seconds
//! elsewhere. `RANDOM_SECONDS` sets how long, `RANDOM_SEED` replays a run whose seed a failure printed. Beside this,
//! tests/fuzz has the same doors as libFuzzer targets, for whoever has a nightly compiler.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use distributed_rate_limiter::hit::Action;
use distributed_rate_limiter::limit::{Algorithm, Limit, Window};
use distributed_rate_limiter::rules::{DomainSpec, Limits, RateLimit, RuleSpec, Rules};

/// A small generator (Steele, Lea and Flood: SplitMix64): the same seed gives the same run everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn word(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }

    fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }
}

/// Runs a case with one seed after the other until the time is up, and says which seed failed.
fn for_a_while(case: impl Fn(&mut Random) + std::panic::RefUnwindSafe) {
    let setting = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = setting("RANDOM_SECONDS").unwrap_or(3);
    let replayed = setting("RANDOM_SEED");
    let first = replayed.unwrap_or_else(|| u64::from(std::process::id()) << 32);
    let (started, mut seed) = (Instant::now(), first);
    while seed == first || replayed.is_none() && started.elapsed() < Duration::from_secs(seconds) {
        if let Err(panic) = std::panic::catch_unwind(|| case(&mut Random(seed))) {
            eprintln!("failed with RANDOM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
    }
    eprintln!("{} cases from seed {first}", seed - first);
}

/// Every key of the language, and some that are none.
fn keys() -> Vec<String> {
    let schema: serde_json::Value = serde_json::from_str(&config::schema()).unwrap();
    let maps = [&schema, &schema["definitions"]["rule"], &schema["definitions"]["limit"], &schema["definitions"]["replaced"]];
    let properties = maps.map(|map| map["properties"].as_object().unwrap());
    let mut keys: Vec<String> = properties.into_iter().flat_map(|map| map.keys().cloned()).collect();
    keys.extend(["", "<<", "burst", "keys", "requestsPerUnit"].map(str::to_owned));
    keys
}

/// Text of a value: mostly what the key takes, sometimes anything.
fn value(random: &mut Random, keys: &[String], key: &str, depth: usize, out: &mut String) {
    const SCALARS: [&str; 24] = [
        "a", "b", "\"a*\"", "'*'", "5", "017", "0x1F", "1_000", "-1", "1.5", ".nan", "true", "no", "'yes'", "~", "10s", "1h30m", "1ms",
        "day", "MINUTE", "deny", "\"\"", "&x q", "*x",
    ];
    let odd = depth > 6 || random.one_in(12);
    match key {
        _ if odd && depth <= 8 && random.one_in(2) => map(random, keys, depth + 1, out),
        "descriptors" | "replaces" | "client_id" if !odd => {
            out.push('[');
            for number in 0..random.below(4) {
                out.push_str(if number > 0 { ", " } else { "" });
                match key {
                    "client_id" => out.push_str(random.word(&["a", "b", "\"a*\""])),
                    _ => map(random, keys, depth + 1, out),
                }
            }
            out.push(']');
        }
        "rate_limit" | "default" | "metadata" if !odd => map(random, keys, depth + 1, out),
        "limit" | "requests_per_unit" | "log_entries" if !odd => out.push_str(random.word(&["0", "5", "1_000", "0b101"])),
        "window" if !odd => out.push_str(random.word(&["1s", "90s", "1h30m"])),
        "unit" if !odd => out.push_str(random.word(&["second", "Minute", "week"])),
        "algorithm" if !odd => out.push_str("sliding_window_log"),
        "key" | "value" | "name" | "domain" | "action" if !odd => out.push_str(random.word(&["a", "b", "\"a*\"", "\"*\"", "c"])),
        _ => out.push_str(random.word(&SCALARS)),
    }
}

/// A map in flow style, which is as good as any to the reader of events.
fn map(random: &mut Random, keys: &[String], depth: usize, out: &mut String) {
    const LEVELS: [&[&str]; 5] = [
        &["domain", "descriptors"],
        &["key", "rate_limit"],
        &["key", "value", "descriptors"],
        &["limit", "window"],
        &["unit", "requests_per_unit"],
    ];
    let level = if depth == 0 { LEVELS[0] } else { *random.pick(&LEVELS) };
    let mut chosen: Vec<&str> = level.to_vec();
    for _ in 0..random.below(3) {
        chosen.push(random.pick(keys).as_str());
    }
    out.push('{');
    for (number, key) in chosen.into_iter().enumerate() {
        out.push_str(if number > 0 { ", " } else { "" });
        out.push_str(if key.is_empty() { "\"\"" } else { key });
        out.push_str(": ");
        value(random, keys, key, depth, out);
    }
    out.push('}');
}

fn spoil(random: &mut Random, text: &mut Vec<char>) {
    const PIECES: [&str; 14] = ["\n", " ", "\t", ":", "- ", "[", "}", "*x", "&x ", "<<: ", "\"", "|\n", "---\n", "\u{feff}é"];
    for _ in 0..=random.below(3) {
        let from = random.below(text.len() + 1);
        let to = (from + random.below(4)).min(text.len());
        text.splice(from..to, random.pick(&PIECES).chars());
    }
}

#[test]
fn any_text_loads_or_is_refused_with_places_in_it() {
    let keys = keys();
    for_a_while(|random| {
        let mut text = String::new();
        map(random, &keys, 0, &mut text);
        if random.one_in(3) {
            let mut chars = text.chars().collect();
            spoil(random, &mut chars);
            text = chars.into_iter().collect();
        }
        let options = LoadOptions { merge_domains: random.one_in(2), ..LoadOptions::default() };
        let files = [(PathBuf::from("f"), text.clone()), (PathBuf::from("g"), text.clone())];
        let (said, loaded) = match config::parse(&files[..=random.below(2)], options) {
            Ok(loaded) => (loaded.warnings, Some(loaded.rules)),
            Err(problems) => (problems.as_slice().to_vec(), None),
        };
        assert!(loaded.is_some() || !said.is_empty(), "refused without a word: {text}");
        for problem in said {
            let line = text.trim_start_matches('\u{feff}').split('\n').nth(problem.line.saturating_sub(1));
            // The end of the text may be told as the line after the last.
            let lines = text.split('\n').count();
            assert!(line.is_some() || problem.line == lines + 1, "{problem}: {text}");
            assert!(problem.line > 0 && problem.column > 0 && !problem.message.is_empty(), "{problem}: {text}");
        }
        if let Some(rules) = loaded {
            let request = request(&entries(random), "a");
            let found = rules.find(&request);
            assert_eq!((found.hits.len(), found.matches.len()), (found.limits.len(), 1), "{text}");
            assert!(!rules.explain(&request).to_string().is_empty());
        }
    });
}

const NAMES: [&str; 5] = ["a", "b", "ab", "aab", "*"];
const PATTERNS: [&str; 9] = ["a", "b", "ab", "a*", "*b", "*", "a*b", "**", "*a*"];

fn entries(random: &mut Random) -> Vec<Entry> {
    let value = |random: &mut Random| if random.one_in(8) { "" } else { *random.pick(&NAMES) };
    (0..random.below(4)).map(|_| Entry::new(*random.pick(&NAMES), value(random))).collect()
}

fn request(entries: &[Entry], domain: &str) -> Request {
    let descriptor = Descriptor { entries: entries.to_vec(), ..Descriptor::default() };
    Request::new(domain.into(), vec![descriptor], 1, RequestBounds::default()).unwrap()
}

/// Rules beside each other, no two alike.
fn level(random: &mut Random, depth: usize) -> Vec<RuleSpec> {
    let mut rules: Vec<RuleSpec> = Vec::new();
    for _ in 0..random.below(6) {
        let key = (*random.pick(&PATTERNS)).to_owned();
        let value = (!random.one_in(3)).then(|| (*random.pick(&PATTERNS)).to_owned());
        if rules.iter().any(|other| (&other.key, &other.value) == (&key, &value)) {
            continue;
        }
        let (limit, window) = (Limit::from(5), Window::MINUTE);
        let limit = RateLimit { name: None, limit, window, algorithm: Algorithm::default(), lease: None, replaces: Vec::new() };
        let limits = if random.one_in(4) { Limits::None } else { Limits::All(vec![limit]) };
        let share_threshold = random.one_in(4);
        let children = if depth < 3 { level(random, depth + 1) } else { Vec::new() };
        rules.push(RuleSpec { key, value, limits, share_threshold, children, ..RuleSpec::default() });
    }
    rules
}

/// Whether a pattern takes a text: each star tries every length.
fn takes(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| takes(rest, &text[skipped..])),
        Some((first, rest)) => text.split_first().is_some_and(|(other, tail)| first == other && takes(rest, tail)),
    }
}

/// The rules on the way that the design says a descriptor takes, level by level.
fn way<'r>(rules: &'r [RuleSpec], entries: &[Entry]) -> Option<Vec<&'r RuleSpec>> {
    let (mut level, mut way) = (rules, Vec::new());
    for Entry { key, value } in entries {
        let exact = level.iter().find(|rule| !rule.is_wildcard() && rule.key == *key && rule.value.as_ref() == Some(value));
        let wildcard = || {
            let fits = |pattern: &str, text: &str| takes(pattern.as_bytes(), text.as_bytes());
            level
                .iter()
                .find(|rule| rule.is_wildcard() && fits(&rule.key, key) && rule.value.as_ref().is_none_or(|pattern| fits(pattern, value)))
        };
        let bare = || level.iter().find(|rule| !rule.is_wildcard() && rule.key == *key && rule.value.is_none());
        let rule = exact.or_else(wildcard).or_else(bare)?;
        way.push(rule);
        level = &rule.children;
    }
    way.last().is_some_and(|rule| rule.limits != Limits::None).then_some(way)
}

#[test]
fn the_walk_lands_where_a_plain_reading_of_the_design_does() {
    for_a_while(|random| {
        let specs = level(random, 0);
        let rules = Rules::new(vec![DomainSpec { name: "d".into(), rules: specs.clone(), ..DomainSpec::default() }]).unwrap();
        for _ in 0..20 {
            let entries = entries(random);
            let request = request(&entries, "d");
            let found = rules.find(&request);
            let hit = found.hits.first().map(|hit| (hit.counter.action.to_string(), hit.counter.client.to_vec()));
            let expected = way(&specs, &entries).map(|way| {
                let action = Action::of_path(way.iter().map(|rule| (rule.key.as_str(), rule.value.as_deref()))).to_string();
                let mut client = Vec::new();
                for (rule, entry) in way.iter().zip(&entries).filter(|(rule, _)| !rule.share_threshold) {
                    client.extend(rule.key.contains('*').then_some(entry.key.as_str()));
                    client.extend(rule.value.as_ref().is_none_or(|value| value.contains('*')).then_some(entry.value.as_str()));
                }
                (action, client)
            });
            assert_eq!(hit, expected, "{entries:?} in {specs:#?}");
        }
    });
}
