//! Where a change of rules files shows: every name on the way to them, through links, and every folder of them. The
//! operating system's watches are set there, on folders and never on files, so that what takes a name's place is seen too.
//! This file knows no rules; it says that something has changed, not what.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf, absolute};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use crate::config::MAX_FOLDER_DEPTH;

/// Watches, for as long as this lives.
pub(super) struct Watch {
    /// None where there can't be one: it is tried again each time.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    places: Arc<Mutex<Places>>,
    changed: Arc<Notify>,
    /// The first folder that can't be watched, and why.
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
    /// Watches nothing yet. `changed` will be notified.
    pub fn new(changed: Arc<Notify>) -> Self {
        Self { watcher: None, watched: BTreeSet::new(), places: Arc::default(), changed, failure: None }
    }

    /// Notifies of every change, from now on, that may concern what these paths hold. Where that can't be, it logs so, once.
    pub fn set(&mut self, paths: &[PathBuf]) {
        let places = Places::of(paths);
        let wanted = places.watched();
        *self.places.lock() = places;
        let failure = self.watch(wanted).err();
        if let Some(failure) = failure.as_ref().filter(|failure| self.failure.as_ref() != Some(failure)) {
            warn!(failure, "rules files can't be watched: they are read again every few seconds");
        }
        self.failure = failure;
        // What moved before its watch was set was not seen.
        if Places::of(paths) != *self.places.lock() {
            self.changed.notify_one();
        }
    }

    /// notify starts a thread, does not look whether it could, and panics when it is used without one and again when it is
    /// dropped, which would abort the process. So such a watcher is never dropped.
    fn watch(&mut self, wanted: BTreeSet<PathBuf>) -> Result<(), String> {
        let watcher = self.watcher.take().map_or_else(|| self.watcher(), Ok).map_err(|error| error.to_string())?;
        let (mut watcher, before) = (ManuallyDrop::new(watcher), std::mem::take(&mut self.watched));
        let set = catch_unwind(AssertUnwindSafe(|| {
            // All anew: a folder may be another one under its old name. One that is gone is not watched any more by itself.
            before.iter().for_each(|folder| drop(watcher.unwatch(folder)));
            let mut failure = None;
            for folder in &wanted {
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    failure.get_or_insert_with(|| format!("{}: {error}", folder.display()));
                }
            }
            failure
        }));
        let failure = set.map_err(|_| "no thread can be started for the watches".to_owned())?;
        (self.watcher, self.watched) = (Some(ManuallyDrop::into_inner(watcher)), wanted);
        failure.map_or(Ok(()), Err)
    }

    fn watcher(&self) -> notify::Result<RecommendedWatcher> {
        let (places, changed) = (Arc::clone(&self.places), Arc::clone(&self.changed));
        notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) if !places.lock().concerned_by(&event) => {}
            Ok(_) => changed.notify_one(),
            Err(error) => {
                warn!(%error, "watching the rules files failed: they are read again");
                changed.notify_one();
            }
        })
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

    /// The folders to watch, in an order of their own: what can't be watched is the same at each attempt, and told once.
    fn watched(&self) -> BTreeSet<PathBuf> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_cannot_be_watched_is_named_and_the_others_are_watched_all_the_same() {
        let folder = std::env::temp_dir().join(format!("places-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = fs::canonicalize(folder).unwrap();
        let changed = Arc::new(Notify::new());
        let mut watch = Watch::new(Arc::clone(&changed));
        watch.places.lock().folders.insert(folder.clone());
        // Twice: the watches of before give way to the same ones.
        for _ in 0..2 {
            let wanted = [PathBuf::from("/nowhere/at/all"), folder.clone()].into();
            assert!(watch.watch(wanted).unwrap_err().starts_with("/nowhere/at/all: "));
            fs::write(folder.join("file"), "x").unwrap();
            timeout(Duration::from_secs(20), changed.notified()).await.unwrap();
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
