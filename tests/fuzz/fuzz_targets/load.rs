//! Any bytes as a rules file: they load, or are refused with places.
#![no_main]

use std::path::PathBuf;

use distributed_rate_limiter::config::{self, LoadOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match config::parse(&[(PathBuf::from("f"), text.to_owned())], LoadOptions::default()) {
        Ok(_) => {}
        Err(problems) => assert!(problems.as_slice().iter().all(|problem| problem.line > 0 && problem.column > 0)),
    }
});
