//! Where a change of rules files shows: every name on the way to them, through links, and every folder of them. The
//! operating system's watches are set there, on folders and never on files, so that what takes a name's place is seen too.
//! This file knows no rules; it says that something has changed, not what.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf, absolute};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use crate::config::MAX_FOLDER_DEPTH;

/// Watches, for as long as this lives.
#[derive(Default)]
pub(super) struct Watch {
    _watcher: Option<RecommendedWatcher>,
    /// The first place that can't be watched, and why.
    failure: Option<String>,
}

/// Where a change concerns the rules.
#[derive(Default, PartialEq, Eq)]
struct Places {
    /// Names that may be replaced.
    names: HashSet<PathBuf>,
    /// Folders in which everything counts.
    folders: HashSet<PathBuf>,
}

/// Links on the way to one path; as many as Linux follows.
const LINKS_MAX: usize = 40;

/// Folders of rules that are watched; changes in others are found when the files are read again.
const FOLDERS_MAX: usize = 1_024;

impl Watch {
    /// Notifies `changed` of every change that may concern what these paths hold.
    pub fn over(paths: &[PathBuf], changed: Arc<Notify>) -> Self {
        let places = Arc::new(Places::of(paths));
        let (known, notified) = (Arc::clone(&places), Arc::clone(&changed));
        let tell = move |event: notify::Result<Event>| match event {
            Ok(event) if !known.concerned_by(&event) => {}
            Ok(_) => notified.notify_one(),
            Err(error) => {
                warn!(%error, "watching the rules files failed: they are read again");
                notified.notify_one();
            }
        };
        let mut watcher = match notify::recommended_watcher(tell) {
            Ok(watcher) => watcher,
            Err(error) => return Self { _watcher: None, failure: Some(error.to_string()) },
        };
        let mut failure = None;
        for folder in places.watched() {
            if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                failure.get_or_insert_with(|| format!("{}: {error}", folder.display()));
            }
        }
        // What moved before its watch was set was not seen.
        if Places::of(paths) != *places {
            changed.notify_one();
        }
        Self { _watcher: Some(watcher), failure }
    }

    /// Ends these watches in favour of newer ones, and logs where those newly fail.
    pub fn give_way_to(&mut self, newer: Self) {
        if let Some(failure) = newer.failure.as_ref().filter(|failure| self.failure.as_ref() != Some(failure)) {
            warn!(failure, "rules files can't be watched: they are read again every few seconds");
        }
        *self = newer;
    }
}

impl Places {
    fn of(paths: &[PathBuf]) -> Self {
        let mut places = Self::default();
        for path in paths {
            places.follow(path);
            if let Some(folder) = fs::canonicalize(path).ok().filter(|path| path.is_dir()) {
                places.folder(folder, 0);
            }
        }
        places
    }

    /// Takes every name on the way to a path. A link's target is walked as well, from the link's own folder; the first
    /// name that is missing ends it.
    fn follow(&mut self, path: &Path) {
        let Ok(path) = absolute(path) else { return };
        let names = |path: &Path| path.components().rev().map(|name| name.as_os_str().to_owned()).collect::<Vec<OsString>>();
        let (mut here, mut ahead, mut links) = (PathBuf::new(), names(&path), 0);
        while let Some(name) = ahead.pop() {
            match Path::new(&name).components().next() {
                Some(Component::ParentDir) => {
                    here.pop();
                }
                Some(Component::Normal(name)) => {
                    here.push(name);
                    self.names.insert(here.clone());
                    if let Ok(target) = fs::read_link(&here) {
                        links += 1;
                        here.pop();
                        ahead.extend(names(&target));
                    }
                    if links > LINKS_MAX || !here.exists() {
                        return;
                    }
                }
                // The root, from which an absolute link begins anew.
                Some(start) => here.push(start),
                None => {}
            }
        }
    }

    /// Takes a folder as the loader reads it. Of links in it, their targets count.
    fn folder(&mut self, folder: PathBuf, depth: usize) {
        if depth > MAX_FOLDER_DEPTH || self.folders.len() >= FOLDERS_MAX {
            return;
        }
        // A folder that can't be read is the loader's problem to tell.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            match entry.file_type() {
                Ok(kind) if kind.is_symlink() && !hidden => self.follow(&entry.path()),
                Ok(kind) if kind.is_dir() && !hidden => self.folder(entry.path(), depth + 1),
                _ => {}
            }
        }
        self.folders.insert(folder);
    }

    /// The folders to watch.
    fn watched(&self) -> HashSet<PathBuf> {
        let parents = self.names.iter().filter_map(|name| name.parent());
        parents.map(Path::to_owned).chain(self.folders.iter().cloned()).collect()
    }

    fn concerned_by(&self, event: &Event) -> bool {
        // Reading changes nothing, and every load reads.
        let only_read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
        let within = |path: &Path| self.folders.contains(path);
        let concerns = |path: &PathBuf| self.names.contains(path) || within(path) || path.parent().is_some_and(within);
        event.need_rescan() || (!only_read && event.paths.iter().any(concerns))
    }
}
