//! A rules file, and entries for a walk through it: key and value a line each, after a line of dashes.
#![no_main]

use std::path::PathBuf;

use distributed_rate_limiter::config::{self, LoadOptions};
use distributed_rate_limiter::descriptor::{Descriptor, Entry, Request, RequestBounds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (rules, entries) = text.split_once("\n-----\n").unwrap_or((text, ""));
    let Ok(loaded) = config::parse(&[(PathBuf::from("f"), rules.to_owned())], LoadOptions::default()) else { return };
    let lines: Vec<_> = entries.lines().collect();
    let entries = lines.chunks(2).map(|pair| Entry::new(pair[0], pair.get(1).copied().unwrap_or_default())).collect();
    let domain = rules.lines().find_map(|line| line.strip_prefix("domain: ")).unwrap_or("d").to_owned();
    let descriptor = Descriptor { entries, ..Descriptor::default() };
    let Ok(request) = Request::new(domain, vec![descriptor], 1, RequestBounds::default()) else { return };
    let found = loaded.rules.find(&request);
    assert_eq!(found.hits.len(), found.limits.len());
    assert!(!loaded.rules.explain(&request).to_string().is_empty());
});
