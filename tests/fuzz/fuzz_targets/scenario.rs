//! Any bytes as a file of tests: they are read, or refused with places.
#![no_main]

use std::path::Path;

use distributed_rate_limiter::config::scenario;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(problems) = scenario::parse_suite(Path::new("f"), text, Path::new("")) {
        assert!(problems.as_slice().iter().all(|problem| problem.line > 0 && problem.column > 0));
    }
});
