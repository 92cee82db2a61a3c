//! Rules files kept in force: loaded at start, and again whenever they change or somebody asks. First load and reload are one
//! path, but that a reload which is refused leaves the old rules as they are. What became of the last loads is kept for
//! whoever wants to tell it. `config/watch/places.rs` knows where to look for changes; the limiters see [`LiveRules`] only.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

mod places;

use super::{Found, LoadOptions, Loaded, Problem, Problems, compile, hash, unplaced};
use crate::metrics::Metrics;
use crate::rules::{LiveRules, Rules};
use places::Watch;

/// The files that the rules in force come from.
pub struct RulesFiles {
    paths: Vec<PathBuf>,
    options: LoadOptions,
    live: Arc<LiveRules>,
    metrics: Arc<Metrics>,
    status: watch::Sender<LoadStatus>,
}

/// What became of the loads so far.
#[derive(Clone, Debug)]
pub struct LoadStatus {
    pub in_force: InForce,
    /// Some while the newest files were refused.
    pub refused: Option<Refused>,
}

/// The last load that went well.
#[derive(Clone, Debug)]
pub struct InForce {
    pub files: Vec<PathBuf>,
    pub hash: String,
    pub since: SystemTime,
    pub domains: usize,
    pub rules: usize,
    pub warnings: Vec<Problem>,
    /// The hash of all that was read, files that hold no rules included.
    fingerprint: String,
    /// Folders that held no rules file.
    empty: Vec<PathBuf>,
}

/// A load that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    pub problems: Problems,
    pub at: SystemTime,
}

/// Why the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Start,
    Asked,
    Changed,
    /// Nobody said that they have changed.
    Reread,
}

/// A change is often several: files are read once nothing more has happened for so long.
const QUIET: Duration = Duration::from_millis(30);

/// Files that never come to rest are read all the same after so long.
const QUIET_WAIT_MAX: Duration = Duration::from_millis(500);

/// The files are read again after so long, whatever was heard: network and FUSE file systems tell nothing of what others
/// write there, and watches run out (fs.inotify.max_user_watches). Unchanged files cost their reading and hashing.
const REREAD: Duration = Duration::from_secs(5);

/// Problems, and warnings, of one load that go to the log; all of them are in [`LoadStatus`].
const LOGGED_MAX: usize = 100;

impl RulesFiles {
    /// The first load.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn load(paths: Vec<PathBuf>, options: LoadOptions, metrics: Arc<Metrics>) -> Result<Self, Problems> {
        let found = Found::at(&paths);
        let fingerprint = found.fingerprint();
        let (rules, in_force) = InForce::of(compile(found, options)?, fingerprint);
        let rules = rules.counted_in(&metrics);
        in_force.tell(Cause::Start, &metrics);
        let status = watch::Sender::new(LoadStatus { in_force, refused: None });
        Ok(Self { paths, options, live: Arc::new(LiveRules::new(rules)), metrics, status })
    }

    pub fn live(&self) -> &Arc<LiveRules> {
        &self.live
    }

    /// What became of the loads so far; it can be waited for.
    pub fn status(&self) -> watch::Receiver<LoadStatus> {
        self.status.subscribe()
    }

    /// Reads the files again whenever they change, and when `asked` is notified. Never ends. To be run once, in a runtime
    /// with threads for blocking work.
    pub async fn keep_current(self: Arc<Self>, asked: Arc<Notify>) {
        let changed = Arc::new(Notify::new());
        let mut watch = Watch::new(Arc::clone(&changed));
        // What changed since the first load, when nobody watched.
        let mut cause = Cause::Changed;
        loop {
            let files = Arc::clone(&self);
            let load = move || {
                // Watched before they are read, so that no change falls between; and anew each time, since a folder that
                // was replaced is another one under the old name.
                watch.set(&files.paths);
                files.reload(cause);
                watch
            };
            watch = spawn_blocking(load).await.unwrap_or_else(|_| {
                // A panic is refused like any other mistake: told, counted, and over once the files load.
                self.refuse(Problems::of_a_panic(&self.paths), cause);
                Watch::new(Arc::clone(&changed))
            });
            cause = tokio::select! {
                () = asked.notified() => Cause::Asked,
                () = changed.notified() => tokio::select! {
                    () = asked.notified() => Cause::Asked,
                    () = quiet(&changed) => Cause::Changed,
                },
                () = sleep(REREAD) => Cause::Reread,
            };
        }
    }

    fn reload(&self, cause: Cause) {
        let found = Found::at(&self.paths);
        let fingerprint = found.fingerprint();
        let (same, empty) = {
            let in_force = &self.status.borrow().in_force;
            (in_force.fingerprint == fingerprint, in_force.empty.clone())
        };
        if same && found.problems.is_empty() {
            return self.stand(cause);
        }
        match compile(found, self.options).and_then(|loaded| refuse_emptied(loaded, &empty)) {
            Ok(loaded) => {
                let (rules, in_force) = InForce::of(loaded, fingerprint);
                self.live.replace(rules.counted_in(&self.metrics));
                self.status.send_replace(LoadStatus { in_force: in_force.clone(), refused: None });
                in_force.tell(cause, &self.metrics);
            }
            Err(problems) => self.refuse(problems, cause),
        }
    }

    /// The files are those that are in force.
    fn stand(&self, cause: Cause) {
        let mended = self.status.borrow().refused.is_some();
        if mended {
            self.metrics.rules_stale.set(0.0);
            self.status.send_modify(|status| status.refused = None);
        }
        if mended || cause == Cause::Asked {
            self.metrics.load_successes.increment(1);
            info!(hash = self.status.borrow().in_force.hash, "the rules files are those in force");
        }
    }

    fn refuse(&self, problems: Problems, cause: Cause) {
        let known = self.status.borrow().refused.as_ref().is_some_and(|refused| refused.problems == problems);
        // Nobody has done anything: no load to count.
        if known && cause == Cause::Reread {
            return;
        }
        self.metrics.load_errors.increment(1);
        self.metrics.rules_stale.set(1.0);
        self.status.send_modify(|status| status.refused = Some(Refused { problems: problems.clone(), at: SystemTime::now() }));
        if !known {
            problems.as_slice().iter().take(LOGGED_MAX).for_each(|problem| error!("{problem}"));
        }
        if !known || cause == Cause::Asked {
            error!(
                problems = problems.as_slice().len(),
                cause = cause.as_str(),
                "the rules files were refused: the old rules stay in force"
            );
        }
    }
}

impl InForce {
    fn of(loaded: Loaded, fingerprint: String) -> (Rules, Self) {
        let Loaded { rules, warnings, files, empty, hash } = loaded;
        let ((domains, count), since) = (rules.counts(), SystemTime::now());
        (rules, Self { files, hash, since, domains, rules: count, warnings, fingerprint, empty })
    }

    /// Says that it is in force now.
    fn tell(&self, cause: Cause, metrics: &Metrics) {
        metrics.load_successes.increment(1);
        metrics.rules_stale.set(0.0);
        metrics.rules_loaded.set(self.rules as f64);
        metrics.domains_loaded.set(self.domains as f64);
        metrics.rules_loaded_at.set(self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        self.warnings.iter().take(LOGGED_MAX).for_each(|warning| warn!("{warning}"));
        let (files, domains, rules, hash, cause) = (self.files.len(), self.domains, self.rules, &self.hash, cause.as_str());
        info!(files, domains, rules, hash, cause, "rules loaded");
    }
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Asked => "asked",
            Self::Changed => "changed",
            Self::Reread => "reread",
        }
    }
}

impl Problems {
    fn of_a_panic(paths: &[PathBuf]) -> Self {
        let what = "to read this ended in a panic, which is a bug: report it, with the files";
        Self { problems: paths.iter().map(|path| unplaced(path, what)).collect(), warnings: Vec::new() }
    }
}

impl Found {
    fn fingerprint(&self) -> String {
        hash(self.sources.iter())
    }
}

/// Ends when nothing has changed for a moment, or has not come to rest for too long.
async fn quiet(changed: &Notify) {
    let rest = async { while timeout(QUIET, changed.notified()).await.is_ok() {} };
    // Either way it is time to read.
    let _ = timeout(QUIET_WAIT_MAX, rest).await;
}

/// A folder that held rules and holds none now was most likely not meant to: nothing would be limited any more.
fn refuse_emptied(loaded: Loaded, empty: &[PathBuf]) -> Result<Loaded, Problems> {
    let what = "no rules file in this folder any more: put one there, or restart the server to do without";
    let emptied = loaded.empty.iter().filter(|folder| !empty.contains(folder));
    let problems: Vec<_> = emptied.map(|folder| unplaced(folder, what)).collect();
    if problems.is_empty() { Ok(loaded) } else { Err(Problems { problems, warnings: loaded.warnings }) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_panic_while_reading_is_a_refusal_until_the_files_load() {
        let file = std::env::temp_dir().join(format!("watch-panic-{}.yaml", std::process::id()));
        fs::write(&file, "domain: d").unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let files = RulesFiles::load(vec![file.clone()], LoadOptions::default(), Arc::clone(&metrics)).unwrap();
        let stale = || metrics.render().contains("ratelimit_rules_stale 1\n");
        assert!(!stale());
        files.refuse(Problems::of_a_panic(&files.paths), Cause::Changed);
        let refused = files.status().borrow().refused.clone().unwrap();
        assert!(stale() && refused.problems.to_string().starts_with(&format!("{}: ", file.display())));
        files.reload(Cause::Reread);
        assert!(!stale() && files.status().borrow().refused.is_none());
        fs::remove_file(file).unwrap();
    }
}
