//! The rules files' door: paths to [`Rules`], or every problem of every file with its line and column. This file knows
//! folders, files, domains across files, and how a problem reads; `config::yaml` knows the format and `config::language` what may be
//! written in it. Nothing of a file leaves here but validated rules.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::limit::Algorithm;
use crate::rules::{DomainSpec, Limits, RuleSpec, Rules};

mod keys;
mod language;
mod lints;
mod scalars;
pub mod scenario;
mod schema;
pub mod watch;
mod yaml;

use language::Described;

/// A file larger than this is not read: it is no rules file, and its tree would cost many times its size.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// How deep folders of rules may lie in each other.
pub const MAX_FOLDER_DEPTH: usize = 32;

/// How files are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Several files may describe one domain: their rules at the top are put together, in the files' order.
    pub merge_domains: bool,
    /// How limits are counted that don't say, those that requests bring along included.
    pub default_algorithm: Algorithm,
}

/// Rules that loaded, and what to tell about them.
pub struct Loaded {
    pub rules: Rules,
    /// What loaded but is ignored or probably not meant, sorted as [`Problems`].
    pub warnings: Vec<Problem>,
    /// The rules files, in the order in which they were read.
    pub files: Vec<PathBuf>,
    /// The folders, of the paths to load, that hold no rules file. Each is a warning too.
    pub empty: Vec<PathBuf>,
    /// 12 hex digits that stay the same as long as the files' names and contents do, wherever the folder lies.
    pub hash: String,
}

/// One thing to mend in one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 where the problem is the file itself.
    pub line: usize,
    /// In characters, from 1; 0 where the problem is the file itself.
    pub column: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

/// All problems of all files, at least one, sorted by file, line and column; and what else there is to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct Problems {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// Reads every rules file of `paths`, files or folders. A folder means every file in it at any depth, in sorted order, but
/// dot-files and dot-folders; links to files are followed, links to folders are not (but in `paths` themselves), so that a
/// Kubernetes ConfigMap, whose files are links into `..data`, loads as it is mounted. A file in a folder that has `tests` or
/// `$schema` at its top and no `domain` is passed over. A folder without rules files is a warning. A path given twice is read once.
///
/// # Errors
/// Every problem of every file, a missing or unreadable one included.
pub fn load(paths: &[PathBuf], options: LoadOptions) -> Result<Loaded, Problems> {
    compile(Found::at(paths), options)
}

/// The same from texts in memory, each with the name to call it in problems.
///
/// # Errors
/// Every problem of every text.
pub fn parse(files: &[(PathBuf, String)], options: LoadOptions) -> Result<Loaded, Problems> {
    let source = |(file, text): &(PathBuf, String)| Source { name: file.clone(), file: file.clone(), text: text.clone(), in_folder: false };
    compile(Found { sources: files.iter().map(source).collect(), ..Found::default() }, options)
}

/// The rules language as a JSON Schema, for editors: what `config/rules.schema.json` holds.
pub fn schema() -> String {
    schema::schema()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place(), self.message)
    }
}

impl Problem {
    /// `file:line:column:`, or `file:` where the problem is the file itself.
    pub fn place(&self) -> String {
        let file = self.file.display();
        if self.line > 0 { format!("{file}:{}:{}:", self.line, self.column) } else { format!("{file}:") }
    }
}

impl Problems {
    pub fn as_slice(&self) -> &[Problem] {
        &self.problems
    }

    /// What would only have been warned of.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }
}

/// A file's text, where it is, and its name below the path that it was found in.
struct Source {
    file: PathBuf,
    name: PathBuf,
    text: String,
    /// It was found in a folder, where other files may lie beside the rules.
    in_folder: bool,
}

/// What is said about one file while it is read.
struct Report<'f> {
    file: &'f Path,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Report<'_> {
    fn problem(&mut self, place: yaml::Place, message: impl Into<String>) {
        self.problems.push(self.at(place, message.into()));
    }

    fn warning(&mut self, place: yaml::Place, message: impl Into<String>) {
        self.warnings.push(self.at(place, message.into()));
    }

    fn at(&self, place: yaml::Place, message: String) -> Problem {
        Problem { file: self.file.to_owned(), line: place.line, column: place.column, message }
    }
}

fn compile(found: Found, options: LoadOptions) -> Result<Loaded, Problems> {
    let Found { sources, folders, mut problems, mut warnings } = found;
    let mut domains = Domains { options, all: Vec::new(), places: HashMap::new() };
    let mut files = Vec::with_capacity(sources.len());
    for source in &sources {
        let mut report = Report { file: &source.file, problems: Vec::new(), warnings: Vec::new() };
        let root = yaml::read(&source.text, &mut report);
        if source.in_folder && root.as_ref().is_some_and(language::is_for_another_reader) {
            continue;
        }
        files.push(source);
        if let Some(described) = root.and_then(|root| language::domain(&root, options.default_algorithm, &mut report)) {
            domains.add(described, &mut report);
        }
        problems.append(&mut report.problems);
        warnings.append(&mut report.warnings);
    }
    warnings.extend(domains.unknown_names());
    let empty: Vec<_> = folders.into_iter().filter(|folder| !files.iter().any(|source| source.file.starts_with(folder))).collect();
    let what = "no rules file in this folder: put one there, or nothing is limited";
    warnings.extend(empty.iter().map(|folder| unplaced(folder, what)));
    // What an anchor holds is read once for each alias, and says the same thing each time.
    for said in [&mut problems, &mut warnings] {
        said.sort();
        said.dedup();
    }
    if !problems.is_empty() {
        return Err(Problems { problems, warnings });
    }
    let specs = domains.all.into_iter().map(|domain| domain.spec).collect();
    let contradiction = |error| Problems { problems: vec![unplaced(Path::new("rules"), error)], warnings: Vec::new() };
    let rules = Rules::new(specs).map_err(contradiction)?;
    let hash = hash(files.iter().copied());
    Ok(Loaded { rules, warnings, files: files.iter().map(|source| source.file.clone()).collect(), empty, hash })
}

/// The domains of all files.
struct Domains<'s> {
    options: LoadOptions,
    all: Vec<Domain<'s>>,
    places: HashMap<String, usize>,
}

/// One domain, of one file or several.
struct Domain<'s> {
    spec: DomainSpec,
    file: &'s Path,
    line: usize,
    /// Where its rules at the top stand.
    rules: HashMap<(String, Option<String>), (&'s Path, usize)>,
    /// The names that are replaced, and where.
    replaced: Vec<(&'s Path, yaml::Place, String)>,
}

impl<'s> Domain<'s> {
    /// The wildcard that takes all that a further rule at the top would, and where it stands. A fixed value is asked first.
    fn hides(&self, rule: &RuleSpec) -> Option<(&RuleSpec, (&'s Path, usize))> {
        if !rule.is_wildcard() && rule.value.is_some() {
            return None;
        }
        let wildcard = self.spec.rules.iter().find(|earlier| earlier.covers(rule))?;
        self.rules.get(&(wildcard.key.clone(), wildcard.value.clone())).map(|place| (wildcard, *place))
    }
}

impl<'s> Domains<'s> {
    fn add(&mut self, described: Described, report: &mut Report<'s>) {
        let file = report.file;
        let Described { mut spec, place, rules: places, replaced } = described;
        let replaced = replaced.into_iter().map(|(place, name)| (file, place, name));
        let named = |(rule, place): (&RuleSpec, &yaml::Place)| ((rule.key.clone(), rule.value.clone()), (file, place.line));
        let Some(known) = self.places.get(&spec.name).and_then(|place| self.all.get_mut(*place)) else {
            self.places.insert(spec.name.clone(), self.all.len());
            let rules = spec.rules.iter().zip(&places).map(named).collect();
            return self.all.push(Domain { spec, file, line: place.line, rules, replaced: replaced.collect() });
        };
        if !self.options.merge_domains {
            let (name, first, line) = (&spec.name, known.file.display(), known.line);
            let what =
                format!("the domain `{name}` is already at {first}:{line}: put all its rules into one file, or set MERGE_DOMAIN_CONFIG");
            return report.problem(place, what);
        }
        for (rule, place) in spec.rules.drain(..).zip(places) {
            if let Some((first, line)) = known.rules.get(&(rule.key.clone(), rule.value.clone())) {
                let (rule, first) = (language::shown(&rule), first.display());
                report.problem(place, format!("`{rule}` of this domain is already at {first}:{line}: put both into one"));
                continue;
            }
            if let Some((earlier, (first, line))) = known.hides(&rule).filter(|(_, (first, _))| *first != file) {
                let (rule, earlier, first) = (language::shown(&rule), language::shown(earlier), first.display());
                report.warning(place, format!("`{rule}` is never reached: `{earlier}` at {first}:{line} takes all that it would"));
            }
            known.rules.extend([named((&rule, &place))]);
            known.spec.rules.push(rule);
        }
        known.replaced.extend(replaced);
        let both = [
            (!spec.default.is_empty() && !known.spec.default.is_empty(), "default"),
            (spec.on_store_failure.is_some() && known.spec.on_store_failure.is_some(), "on_store_failure"),
        ];
        for (_, key) in both.into_iter().filter(|(both, _)| *both) {
            let (first, name) = (known.file.display(), &spec.name);
            report.problem(place, format!("the domain `{name}` has a `{key}` in another file too, such as {first}: keep one"));
        }
        if known.spec.default.is_empty() {
            known.spec.default = spec.default;
        }
        known.spec.on_store_failure = known.spec.on_store_failure.or(spec.on_store_failure);
    }

    /// Warns of each name that is replaced and that no limit has.
    fn unknown_names(&self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for Domain { spec, replaced, .. } in self.all.iter().filter(|domain| !domain.replaced.is_empty()) {
            let mut names = HashSet::new();
            spec.rules.iter().for_each(|rule| names_below(rule, &mut names));
            names.extend(spec.default.iter().filter_map(|limit| limit.name.as_deref()));
            for (file, place, name) in replaced.iter().filter(|(_, _, name)| !names.contains(name.as_str())) {
                let message = format!("`{name}` is the name of no limit in this domain, so nothing is replaced: correct or remove it");
                warnings.push(Problem { file: (*file).to_owned(), line: place.line, column: place.column, message });
            }
        }
        warnings
    }
}

fn names_below<'s>(rule: &'s RuleSpec, names: &mut HashSet<&'s str>) {
    if let Limits::All(limits) = &rule.limits {
        names.extend(limits.iter().filter_map(|limit| limit.name.as_deref()));
    }
    rule.children.iter().for_each(|child| names_below(child, names));
}

fn unplaced(file: &Path, message: impl fmt::Display) -> Problem {
    Problem { file: file.to_owned(), line: 0, column: 0, message: message.to_string() }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Lengths stand before names and contents, so that no two sets of files hash alike by running into each other.
fn hash<'s>(sources: impl Iterator<Item = &'s Source>) -> String {
    let mut hasher = Sha256::new();
    for source in sources {
        for part in [source.name.as_os_str().as_encoded_bytes(), source.text.as_bytes()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// What the paths hold, as it is found.
#[derive(Default)]
struct Found {
    sources: Vec<Source>,
    /// The paths that are folders.
    folders: Vec<PathBuf>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Found {
    fn at(paths: &[PathBuf]) -> Self {
        let (mut found, mut seen) = (Self::default(), HashSet::new());
        for path in paths {
            if seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone())) {
                found.path(path);
            }
        }
        found
    }

    fn path(&mut self, path: &Path) {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                self.folders.push(path.to_owned());
                self.folder(path, path, 0);
            }
            Ok(_) => self.file(path, Path::new(path.file_name().unwrap_or_default()), false),
            Err(error) => self.problems.push(unplaced(path, format!("{error}: name a rules file, or a folder of them, that can be read"))),
        }
    }

    fn folder(&mut self, root: &Path, folder: &Path, depth: usize) {
        if depth > MAX_FOLDER_DEPTH {
            let what = format!("folders lie more than {MAX_FOLDER_DEPTH} deep in each other: move the rules up");
            return self.problems.push(unplaced(folder, what));
        }
        let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.problems.push(unplaced(folder, error)),
        };
        entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
        entries.sort_by_key(fs::DirEntry::file_name);
        for path in entries.iter().map(fs::DirEntry::path) {
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && path.is_symlink() => {
                    self.warnings.push(unplaced(&path, "a link to a folder is not followed: name the folder itself as a path of rules"));
                }
                Ok(meta) if meta.is_dir() => self.folder(root, &path, depth + 1),
                Ok(_) => self.file(&path, path.strip_prefix(root).unwrap_or(&path), true),
                Err(error) => self.problems.push(unplaced(&path, error)),
            }
        }
    }

    fn file(&mut self, file: &Path, name: &Path, in_folder: bool) {
        match read(file) {
            Ok(text) => self.sources.push(Source { file: file.to_owned(), name: name.to_owned(), text, in_folder }),
            Err(problem) => self.problems.push(problem),
        }
    }
}

fn read(file: &Path) -> Result<String, Problem> {
    // A pipe or a device would be waited for, or never end.
    let meta = fs::metadata(file).map_err(|error| unplaced(file, error))?;
    if !meta.is_file() {
        return Err(unplaced(file, "not a regular file: name a rules file or a folder of them"));
    }
    if meta.len() > MAX_FILE_BYTES {
        return Err(unplaced(file, format!("larger than {} MiB: no rules file is", MAX_FILE_BYTES >> 20)));
    }
    let bytes = fs::read(file).map_err(|error| unplaced(file, error))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let (line, column) = (good.matches('\n').count() + 1, good.chars().rev().take_while(|c| *c != '\n').count() + 1);
        let message = "a byte here is not UTF-8: save the file as UTF-8".to_owned();
        Problem { file: file.to_owned(), line, column, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Descriptor, Entry, LimitOverride, Request, RequestBounds};
    use crate::limit::{Limit, Window};

    fn fixtures(kind: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rules").join(kind);
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "json"));
        files.sort();
        assert!(!files.is_empty());
        files
    }

    /// What is said of a fixture, without the folder it lies in.
    fn said(problems: &[Problem], file: &Path) -> String {
        let folder = format!("{}/", file.parent().unwrap().display());
        problems.iter().map(|problem| problem.to_string().replace(&folder, "") + "\n").collect()
    }

    fn expected(file: &Path, extension: &str) -> String {
        fs::read_to_string(file.with_extension(extension)).unwrap_or_default()
    }

    fn texts(files: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
        files.iter().map(|(name, text)| (name.into(), (*text).to_owned())).collect()
    }

    fn refused(files: &[(&str, &str)]) -> String {
        parse(&texts(files), LoadOptions::default()).err().unwrap().to_string()
    }

    /// A folder of its own for one test, empty at its start.
    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("config-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn every_invalid_fixture_is_refused_with_exactly_the_expected_problems() {
        for file in fixtures("invalid") {
            let problems =
                load(std::slice::from_ref(&file), LoadOptions::default()).err().unwrap_or_else(|| panic!("{} loaded", file.display()));
            assert_eq!(said(problems.as_slice(), &file), expected(&file, "expected"), "{}", file.display());
        }
    }

    #[test]
    fn every_valid_fixture_loads_with_exactly_the_expected_warnings() {
        for file in fixtures("valid") {
            let loaded = load(std::slice::from_ref(&file), LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(said(&loaded.warnings, &file), expected(&file, "expected-warnings"), "{}", file.display());
        }
    }

    #[test]
    fn all_valid_fixtures_load_together_from_their_folder() {
        let files = fixtures("valid");
        let loaded = load(&files, LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!((loaded.files.len(), loaded.rules.counts().0), (files.len(), files.len()));
    }

    #[test]
    fn the_sample_rules_load_without_a_word() {
        let loaded = load(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("config")], LoadOptions::default())
            .unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.warnings, []);
    }

    #[test]
    fn problems_of_all_files_are_told_at_once_and_in_order() {
        let files = [("b.yaml", "domain: b\nx: 1\nfoo: 2\n"), ("a.yaml", "descriptors: 5\n"), ("c.yaml", "domain: [\n")];
        let told = refused(&files);
        let places: Vec<_> = told.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["a.yaml:1:1", "a.yaml:1:14", "b.yaml:2:1", "b.yaml:3:1", "c.yaml:2:1"], "{told}");
    }

    #[test]
    fn a_domain_in_two_files_names_the_first() {
        assert_eq!(
            refused(&[("a.yaml", "# a\ndomain: x\n"), ("b.yaml", "domain: x\n")]),
            "b.yaml:1:9: the domain `x` is already at a.yaml:2: put all its rules into one file, or set MERGE_DOMAIN_CONFIG"
        );
    }

    #[test]
    fn the_default_algorithm_is_that_of_limits_that_say_none_and_of_those_that_requests_bring_along() {
        let text = "domain: d\ndescriptors:\n- {key: a, rate_limit: {limit: 5, window: 10s}}\n- {key: b, algorithm: token_bucket, rate_limit: {limit: 5, window: 10s}}\n";
        let options = LoadOptions { default_algorithm: Algorithm::FixedWindow, ..LoadOptions::default() };
        let rules = parse(&texts(&[("a.yaml", text)]), options).unwrap_or_else(|problems| panic!("{problems}")).rules;
        let counted = |key: &str, limit: Option<LimitOverride>| {
            let descriptor = Descriptor { entries: vec![Entry::new(key, "x")], limit, ..Descriptor::default() };
            let request = Request::new("d".to_owned(), vec![descriptor], 1, RequestBounds::default()).unwrap();
            rules.find(&request).hits[0].counter.algorithm.as_str()
        };
        assert_eq!((counted("a", None), counted("b", None)), ("fixed_window", "token_bucket"));
        let brought = LimitOverride::Limit { limit: Limit::from(1), window: Window::MINUTE };
        assert_eq!(counted("b", Some(brought)), "fixed_window");
    }

    #[test]
    fn merged_domains_are_put_together_in_the_files_order() {
        let merged = |files: &[(&str, &str)]| parse(&texts(files), LoadOptions { merge_domains: true, ..LoadOptions::default() });
        let rule = |value: &str| format!("domain: x\ndescriptors: [{{key: a, value: {value}, rate_limit: {{limit: 1, window: 1s}}}}]\n");
        let loaded = merged(&[("a", &rule("1")), ("b", &rule("2")), ("c", "domain: x\ndefault: {limit: 1, window: 1s}\n")]);
        assert_eq!(loaded.unwrap_or_else(|problems| panic!("{problems}")).rules.counts(), (1, 3));
        let told =
            merged(&[("a", &(rule("1") + "default: {limit: 1, window: 1s}\n")), ("b", &(rule("1") + "default: {limit: 1, window: 1s}\n"))]);
        let told = told.err().unwrap().to_string();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines[0], "b:1:9: the domain `x` has a `default` in another file too, such as a: keep one");
        assert_eq!(lines[1], "b:2:15: `a: 1` of this domain is already at a:2: put both into one");
    }

    #[test]
    fn a_rule_that_another_files_wildcard_hides_is_warned_of() {
        let rule = |value: &str| format!("domain: x\ndescriptors: [{{key: a, value: '{value}', rate_limit: {{limit: 1, window: 1s}}}}]\n");
        let files = texts(&[("a", &rule("w*")), ("b", &rule("wx*")), ("c", &rule("wx"))]);
        let loaded =
            parse(&files, LoadOptions { merge_domains: true, ..LoadOptions::default() }).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(lines(&loaded.warnings), "b:2:15: `a: wx*` is never reached: `a: w*` at a:2 takes all that it would");
    }

    #[test]
    fn a_missing_path_and_a_byte_that_is_not_utf8_are_problems() {
        let folder = folder("unreadable");
        fs::write(folder.join("latin1.yaml"), b"domain: x\n# caf\xe9\n").unwrap();
        let told = load(&[folder.join("none"), folder.clone()], LoadOptions::default()).err().unwrap().to_string();
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].ends_with("latin1.yaml:2:6: a byte here is not UTF-8: save the file as UTF-8"), "{told}");
        assert!(lines[1].contains("none: No such file"), "{told}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_without_files_loads_empty_with_a_warning() {
        let folder = folder("empty");
        let loaded = load(std::slice::from_ref(&folder), LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!((loaded.files.len(), loaded.rules.counts(), loaded.warnings.len()), (0, (0, 0), 1));
        assert_eq!(loaded.empty, std::slice::from_ref(&folder));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_path_given_twice_is_read_once() {
        let folder = folder("twice");
        fs::write(folder.join("a.yaml"), "domain: a").unwrap();
        let again = folder.join("../").join(folder.file_name().unwrap());
        let loaded = load(&[folder.clone(), again], LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.files, [folder.join("a.yaml")]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_config_map_mount_loads_each_file_once() {
        let folder = folder("mount");
        fs::create_dir_all(folder.join("..2026/")).unwrap();
        fs::create_dir_all(folder.join("deep/er")).unwrap();
        fs::write(folder.join("..2026/a.yaml"), "domain: a").unwrap();
        fs::write(folder.join("deep/er/no-extension"), "domain: b").unwrap();
        fs::write(folder.join(".hidden"), "no rules").unwrap();
        std::os::unix::fs::symlink("..2026", folder.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", folder.join("a.yaml")).unwrap();
        std::os::unix::fs::symlink("deep", folder.join("linked")).unwrap();
        let loaded = load(std::slice::from_ref(&folder), LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!((loaded.files.len(), loaded.rules.counts().0), (2, 2));
        let told = lines(&loaded.warnings);
        assert!(told.contains("linked: a link to a folder is not followed") && loaded.warnings.len() == 1, "{told}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn tests_of_rules_and_schemas_in_a_folder_are_passed_over_and_named_themselves_refused() {
        let folder = folder("beside");
        fs::write(folder.join("a.yaml"), "domain: a").unwrap();
        fs::write(folder.join("a.test.yaml"), "tests: []").unwrap();
        fs::write(folder.join("schema.json"), r#"{"$schema": "x", "type": "object"}"#).unwrap();
        let hash = |file: &Path| load(&[file.to_owned()], LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}")).hash;
        assert_eq!(hash(&folder), hash(&folder.join("a.yaml")));
        let told = load(&[folder.join("a.test.yaml")], LoadOptions::default()).err().unwrap().to_string();
        assert!(told.ends_with("a.test.yaml:1:1: this is a test of rules: run `ratelimitd test FILE`"), "{told}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_hash_follows_names_and_contents_and_not_the_folder() {
        let hash = |folder: &Path, name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap();
            let hash = load(&[folder.to_owned()], LoadOptions::default()).unwrap_or_else(|problems| panic!("{problems}")).hash;
            fs::remove_file(folder.join(name)).unwrap();
            hash
        };
        let (one, two) = (folder("hash-one"), folder("hash-two"));
        let first = hash(&one, "a", "domain: a");
        assert!(first.len() == 12 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
        assert_eq!(first, hash(&two, "a", "domain: a"));
        assert_ne!(first, hash(&one, "b", "domain: a"));
        assert_ne!(first, hash(&one, "a", "domain: b"));
        fs::remove_dir_all(one).unwrap();
        fs::remove_dir_all(two).unwrap();
    }

    #[test]
    fn no_mutation_of_a_fixture_panics() {
        const PIECES: [&str; 16] =
            ["\n", " ", "\t", ":", "- ", "[", "{", "}", "*a", "&a ", "<<: ", "\"", "|\n", "---\n", "!!str ", "\u{feff}é"];
        let mut state: u64 = 1;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for file in fixtures("valid").into_iter().chain(fixtures("invalid")) {
            let Ok(original) = fs::read_to_string(&file) else { continue };
            for _ in 0..200 {
                let mut text: Vec<char> = original.chars().collect();
                for _ in 0..=random(4) {
                    let (from, piece) = (random(text.len() + 1), PIECES[random(PIECES.len())]);
                    let to = (from + random(6)).min(text.len());
                    text.splice(from..to, piece.chars());
                }
                let text: String = text.into_iter().collect();
                let _ = parse(&[(file.clone(), text)], LoadOptions::default());
            }
        }
    }
}
