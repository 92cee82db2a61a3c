//! The layer table of docs/architecture.md, held against the sources: a module names only modules of lower layers.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module's layer.
const LAYERS: [(&str, u32); 16] = [
    ("limit", 0),
    ("seldom", 0),
    ("descriptor", 1),
    ("hit", 1),
    ("metrics", 1),
    ("rules", 2),
    ("store", 2),
    ("limiter", 3),
    ("config", 3),
    ("grpc", 4),
    ("http", 4),
    ("admin", 4),
    ("settings", 5),
    ("server", 6),
    ("cli", 7),
    ("main", 8),
];

/// The names within a layer that are meant: /json is protobuf's JSON, which the gRPC door knows.
const WITHIN: [(&str, &str); 1] = [("http", "grpc")];

fn layer(module: &str) -> u32 {
    LAYERS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("`{module}` has no layer in tests/it/layers.rs")).1
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level modules that a source names: `crate::x`, `crate::{x::..., y}`.
fn named(source: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (_, after) in source.match_indices("crate::").map(|(at, found)| (at, &source[at + found.len()..])) {
        assert!(!after.starts_with('{'), "write a `use crate::` line for each module, so that this test can read it");
        modules.push(after.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect());
    }
    modules
}

#[test]
fn a_module_names_only_modules_of_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.file_name().unwrap() != "lib.rs") {
        let first = file.strip_prefix(&root).unwrap().iter().next().unwrap();
        let module = Path::new(first).file_stem().unwrap().to_str().unwrap();
        for other in named(&fs::read_to_string(file).unwrap()) {
            let allowed = other == module || layer(&other) < layer(module) || WITHIN.contains(&(module, other.as_str()));
            if !allowed {
                wrong.push(format!("{}: names {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(files.len() > 20, "the sources were found");
}
