//! Reloading: which changes of files are seen, what becomes of counters and of calls under way, and what a bad file does.
//! All with a real process; that a change was seen and not found by the slow re-read is in the log line's `cause`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::grpc::{Client, descriptor, request};
use crate::support::http;
use crate::support::ratelimitd::{Ratelimitd, scratch};

/// One domain with one rule: so many hits in an hour for each client.
fn rules(domain: &str, limit: u32) -> String {
    format!("domain: {domain}\ndescriptors:\n- key: client\n  rate_limit: {{limit: {limit}, window: 1h}}\n")
}

/// A server, and a client of it.
struct Served {
    server: Ratelimitd,
    client: Client,
}

impl Served {
    fn at(path: &Path) -> Self {
        Self::with(&["--config", path.to_str().unwrap()])
    }

    fn with(args: &[&str]) -> Self {
        let server = Ratelimitd::start(args);
        let client = Client::connect(server.grpc());
        Self { server, client }
    }

    /// The limit of a client in a domain; None where the domain has none.
    fn limit(&self, domain: &str) -> Option<u32> {
        let answer = self.client.ask(request(domain, vec![descriptor(&[("client", "looker")])]));
        answer.statuses[0].current_limit.as_ref().map(|limit| limit.requests_per_unit)
    }

    fn admits(&self, client: &str) -> bool {
        self.client.admits(request("d", vec![descriptor(&[("client", client)])]))
    }

    /// Makes a change, and waits until it is loaded because it was seen.
    fn sees(&self, what: &str, change: impl FnOnce()) {
        let loads = self.server.logs("rules loaded");
        change();
        let line = self.server.wait_for_logs("rules loaded", loads + 1);
        assert_eq!(line["cause"], "changed", "{what}: {line}");
    }

    /// Makes a change, and waits until it is refused because it was seen.
    fn refuses(&self, what: &str, change: impl FnOnce()) -> Value {
        let refusals = self.server.logs("were refused");
        change();
        let line = self.server.wait_for_logs("were refused", refusals + 1);
        assert_eq!(line["cause"], "changed", "{what}: {line}");
        line
    }

    fn metric(&self, name: &str) -> f64 {
        let page = http::get(self.server.metrics(), "/metrics", &[]).body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
    }

    fn rlconfig(&self) -> String {
        http::get(self.server.admin(), "/rlconfig", &[]).body
    }
}

/// Writes a file elsewhere and moves it into place, as careful editors and `mv` do.
fn put(file: &Path, text: &str) {
    let whole = scratch("put").join("file");
    fs::write(&whole, text).unwrap();
    fs::rename(whole, file).unwrap();
}

/// Swaps a link as a Kubernetes node swaps a ConfigMap's `..data`: a new one beside it is renamed over it.
fn swap(link: &Path, target: &str) {
    let beside = link.with_file_name("..data_tmp");
    symlink(target, &beside).unwrap();
    fs::rename(beside, link).unwrap();
}

fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_written_created_renamed_moved_over_and_removed_in_a_folder_is_loaded() {
    let folder = scratch("reload");
    let file = |name: &str| folder.join(name);
    fs::write(file("d.yaml"), rules("d", 1001)).unwrap();
    let served = Served::at(&folder);
    served.sees("a write in place", || fs::write(file("d.yaml"), rules("d", 1002)).unwrap());
    assert_eq!(served.limit("d"), Some(1002));
    served.sees("a new file", || fs::write(file("e.yaml"), rules("e", 1003)).unwrap());
    assert_eq!(served.limit("e"), Some(1003));
    served.sees("a file moved over another", || put(&file("e.yaml"), &rules("e", 1004)));
    assert_eq!(served.limit("e"), Some(1004));
    // Names are part of what is loaded: another name is another load.
    served.sees("another name", || fs::rename(file("e.yaml"), file("f.yaml")).unwrap());
    served.sees("a file moved away", || fs::rename(file("f.yaml"), scratch("away").join("f.yaml")).unwrap());
    assert_eq!(served.limit("e"), None);
    served.sees("a folder with a file, moved in", || {
        let inner = scratch("inner");
        fs::write(inner.join("g.yaml"), rules("g", 1005)).unwrap();
        fs::rename(inner, file("inner")).unwrap();
    });
    served.sees("a write below", || fs::write(file("inner/g.yaml"), rules("g", 1006)).unwrap());
    assert_eq!(served.limit("g"), Some(1006));
    served.sees("a folder made here, and then a file in it", || {
        fs::create_dir_all(file("made/deep")).unwrap();
        fs::write(file("made/deep/h.yaml"), rules("h", 1007)).unwrap();
    });
    served.sees("a write further below", || fs::write(file("made/deep/h.yaml"), rules("h", 1008)).unwrap());
    assert_eq!(served.limit("h"), Some(1008));
    served.sees("a removed file", || fs::remove_file(file("made/deep/h.yaml")).unwrap());
    served.sees("a removed folder", || fs::remove_dir_all(file("inner")).unwrap());
    assert_eq!((served.limit("d"), served.limit("g"), served.limit("h")), (Some(1002), None, None));
}

#[test]
fn a_config_maps_swapped_data_link_is_loaded() {
    let folder = scratch("mount");
    for (version, limit) in [("..1", 1001), ("..2", 1002), ("..3", 1003)] {
        fs::create_dir(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("d.yaml"), rules("d", limit)).unwrap();
    }
    symlink("..1", folder.join("..data")).unwrap();
    symlink("..data/d.yaml", folder.join("d.yaml")).unwrap();
    let served = Served::at(&folder);
    // The same mount under `--config FILE`.
    let single = Served::at(&folder.join("d.yaml"));
    for (version, gone, limit) in [("..2", "..1", 1002), ("..3", "..2", 1003)] {
        single.sees("a file behind the link", || {
            served.sees("a swapped ..data", || swap(&folder.join("..data"), version));
        });
        fs::remove_dir_all(folder.join(gone)).unwrap();
        assert_eq!((served.limit("d"), single.limit("d")), (Some(limit), Some(limit)));
    }
    // The last word on the last folder that is gone has been said when another change is seen.
    let other = rules("e", 1);
    served.sees("a file beside the link", || fs::write(folder.join("e.yaml"), other).unwrap());
    let louder: Vec<_> =
        served.server.log().into_iter().filter(|line| line["level"] != "INFO" || line["log.target"] != Value::Null).collect();
    assert!(louder.is_empty(), "a swap is nothing to warn of: {louder:#?}");
}

#[test]
fn a_swapped_runtime_root_is_loaded_and_so_is_a_change_behind_it() {
    let root = scratch("root");
    let rules_of = |version: &str| root.join(version).join("ratelimit/config/d.yaml");
    for (version, limit) in [("one", 1001), ("two", 1002)] {
        fs::create_dir_all(rules_of(version).parent().unwrap()).unwrap();
        fs::write(rules_of(version), rules("d", limit)).unwrap();
    }
    symlink("one", root.join("current")).unwrap();
    let current = root.join("current");
    let served = Served::with(&["--runtime-root", current.to_str().unwrap(), "--runtime-subdirectory", "ratelimit"]);
    assert_eq!(served.limit("d"), Some(1001));
    served.sees("a swapped root", || swap(&current, "two"));
    assert_eq!(served.limit("d"), Some(1002));
    served.sees("a write behind the new root", || fs::write(rules_of("two"), rules("d", 1003)).unwrap());
    assert_eq!(served.limit("d"), Some(1003));
}

#[test]
fn a_single_file_is_followed_through_writes_editors_and_its_own_absence() {
    let file = scratch("single").join("d.yaml");
    fs::write(&file, rules("d", 1001)).unwrap();
    let served = Served::at(&file);
    served.sees("a write", || fs::write(&file, rules("d", 1002)).unwrap());
    served.sees("an editor's backup, new file and rename", || {
        fs::rename(&file, file.with_extension("yaml~")).unwrap();
        put(&file, &rules("d", 1003));
    });
    assert_eq!(served.limit("d"), Some(1003));
    served.refuses("a removed file", || fs::remove_file(&file).unwrap());
    assert_eq!(served.limit("d"), Some(1003), "the old rules stay");
    served.sees("a file that is back", || fs::write(&file, rules("d", 1004)).unwrap());
    assert_eq!(served.limit("d"), Some(1004));
}

#[test]
fn a_folder_that_vanishes_or_holds_no_rules_is_refused_and_loaded_when_it_is_back() {
    let parent = scratch("vanishing");
    let folder = parent.join("a/rules");
    let fill = |limit| {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("d.yaml"), rules("d", limit)).unwrap();
    };
    fill(1001);
    let served = Served::at(&folder);
    served.refuses("no rules left", || fs::remove_file(folder.join("d.yaml")).unwrap());
    assert!(served.rlconfig().contains("rules: no rules file in this folder any more"), "{}", served.rlconfig());
    served.refuses("no folder", || fs::remove_dir(&folder).unwrap());
    assert_eq!(served.limit("d"), Some(1001));
    served.sees("a folder that is back", || fill(1002));
    served.refuses("no parent either", || fs::remove_dir_all(parent.join("a")).unwrap());
    served.sees("both back", || fill(1003));
    served.sees("a write in the new folder", || fill(1004));
    assert_eq!((served.limit("d"), served.metric("ratelimit_rules_stale")), (Some(1004), 0.0));
}

#[test]
fn writes_without_an_end_do_not_hold_a_reload_off() {
    let folder = scratch("endless");
    let file = folder.join("d.yaml");
    fs::write(&file, rules("d", 1001)).unwrap();
    let served = Served::at(&folder);
    let done = Arc::new(AtomicBool::new(false));
    let noise = thread::spawn({
        let (done, noise) = (Arc::clone(&done), folder.join(".noise"));
        move || {
            while !done.load(Ordering::Relaxed) {
                fs::write(&noise, "x").unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    for limit in 1002..1005 {
        served.sees("a change among others", || put(&file, &rules("d", limit)));
        assert_eq!(served.limit("d"), Some(limit));
    }
    done.store(true, Ordering::Relaxed);
    noise.join().unwrap();
}

#[test]
fn a_change_that_the_system_tells_nobody_of_is_found_all_the_same() {
    let file = scratch("unseen").join("d.yaml");
    fs::write(&file, rules("d", 1001)).unwrap();
    // A write by a name that nobody watches, as another machine's on a network file system.
    let elsewhere = scratch("elsewhere").join("d.yaml");
    fs::hard_link(&file, &elsewhere).unwrap();
    let served = Served::at(&file);
    // Past its start, when it looks by itself for what it may have missed.
    served.server.signal("HUP");
    served.server.wait_for_log("are those in force");
    fs::write(&elsewhere, rules("d", 1002)).unwrap();
    assert_eq!(served.server.wait_for_logs("rules loaded", 2)["cause"], "reread");
    assert_eq!(served.limit("d"), Some(1002));
}

#[test]
fn counters_survive_a_reload_and_a_changed_limit_judges_the_hits_already_recorded() {
    let folder = scratch("survive");
    let file = folder.join("d.yaml");
    let with_other = |limit| rules("d", limit) + "- {key: other, rate_limit: {limit: 2, window: 1h}}\n";
    fs::write(&file, with_other(3)).unwrap();
    let served = Served::at(&folder);
    let other = || served.client.admits(request("d", vec![descriptor(&[("other", "x")])]));
    assert!((0..3).all(|_| served.admits("a")) && !served.admits("a"));
    assert!(other() && other() && !other());
    served.sees("a higher limit", || put(&file, &with_other(5)));
    assert!(served.admits("a") && served.admits("a") && !served.admits("a"), "three of five were used");
    assert!(!other(), "an unchanged rule's counter is as full as it was");
    served.sees("a lower limit", || put(&file, &with_other(4)));
    assert!(!served.admits("a") && !other());
}

#[test]
fn a_bad_file_changes_nothing_and_its_problems_are_told_everywhere_until_it_is_mended() {
    let folder = scratch("bad");
    let file = folder.join("d.yaml");
    fs::write(&file, rules("d", 1001)).unwrap();
    let served = Served::at(&folder);
    let loaded_at = served.metric("ratelimit_rules_loaded_timestamp_seconds");
    assert!(loaded_at > 1.7e9 && served.metric("ratelimit_rules_stale") == 0.0);
    assert!(!served.rlconfig().contains("refused"));

    let bad = "domain: d\ncolour: red\ndescriptors:\n- {key: a, valeu: b}\n";
    let refused = served.refuses("a bad file", || put(&file, bad));
    assert_eq!(refused["problems"], 2);
    let place = |line: &str| format!("{}:{line}: ", file.display());
    for place in [place("2:1"), place("4:12")] {
        assert_eq!(served.server.logs(&place), 1, "{:#?}", served.server.log());
        assert!(served.rlconfig().contains(&format!("problem: {place}")), "{}", served.rlconfig());
    }
    assert_eq!((served.limit("d"), served.metric("ratelimit_rules_stale")), (Some(1001), 1.0));
    assert_eq!(served.metric("ratelimit_service_config_load_error"), 1.0);
    assert!(served.rlconfig().contains("\nrefused: ") && served.rlconfig().contains("requests_per_unit=1001"));

    // The same problems again: counted, and logged only where somebody asks, and then in one line.
    let touched = served.metric("ratelimit_service_config_load_error");
    put(&file, bad);
    until("the same again", || served.metric("ratelimit_service_config_load_error") > touched);
    assert_eq!((served.server.logs(&place("2:1")), served.server.logs("were refused")), (1, 1));
    served.server.signal("HUP");
    assert_eq!(served.server.wait_for_logs("were refused", 2)["cause"], "asked");
    assert_eq!(served.server.logs(&place("2:1")), 1);

    // Mended by what is in force already, and then by something new.
    put(&file, &rules("d", 1001));
    until("mended", || served.metric("ratelimit_rules_stale") == 0.0);
    assert!(!served.rlconfig().contains("refused"));
    assert_eq!(served.metric("ratelimit_rules_loaded_timestamp_seconds"), loaded_at);
    served.refuses("a bad file again", || put(&file, "domain: [\n"));
    served.sees("a good one", || put(&file, &rules("d", 1002)));
    assert_eq!((served.limit("d"), served.metric("ratelimit_rules_stale")), (Some(1002), 0.0));
    assert!(served.metric("ratelimit_rules_loaded_timestamp_seconds") > loaded_at);
}

#[test]
fn sighup_reloads_and_counts_even_where_nothing_has_changed() {
    let folder = scratch("hup");
    fs::write(folder.join("d.yaml"), rules("d", 1001)).unwrap();
    let served = Served::at(&folder);
    served.server.signal("HUP");
    served.server.wait_for_log("are those in force");
    assert_eq!(served.metric("ratelimit_service_config_load_success"), 2.0);
    assert_eq!((served.server.logs("rules loaded"), served.limit("d")), (1, Some(1001)));
}

#[test]
fn files_that_take_long_to_read_do_not_hold_the_end_up() {
    let file = scratch("long").join("d.yaml");
    fs::write(&file, rules("d", 1001)).unwrap();
    let mut server = Ratelimitd::start(&["--config", file.to_str().unwrap()]);
    let rule = |number| format!("- {{key: key, value: v{number}, rate_limit: {{limit: 5, window: 1m}}}}\n");
    put(&file, &(rules("d", 1002) + &(0..200_000).map(rule).collect::<String>()));
    thread::sleep(Duration::from_millis(500));
    server.signal("TERM");
    assert!(server.wait_for_exit().success());
    assert_eq!(server.logs("rules loaded"), 1, "it ended while the reload was under way");
}

/// How many reloads; a real file swap and a signal each.
const RELOADS: usize = 1_000;

/// Calls that are under way at the same time.
const CALLERS: usize = 8;

#[test]
fn a_thousand_reloads_under_load_fail_no_call_and_answer_each_by_one_whole_set_of_rules() {
    let file: PathBuf = scratch("thousand").join("d.yaml");
    let set = |name: &str| {
        let rule = |key: &str| format!("- {{key: {key}, rate_limit: {{name: {name}, limit: 1000000000, window: 1h}}}}\n");
        format!("domain: d\ndescriptors:\n{}{}", rule("first"), rule("second"))
    };
    fs::write(&file, set("A")).unwrap();
    let served = Served::at(&file);
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut service, done) = (served.client.service(), Arc::clone(&done));
            served.client.runtime.spawn(async move {
                let mut answered = [0_u64; 2];
                while !done.load(Ordering::Relaxed) {
                    let both = vec![descriptor(&[("first", "x")]), descriptor(&[("second", "x")])];
                    let answer = service.should_rate_limit(request("d", both)).await.unwrap().into_inner();
                    let names: Vec<_> = answer.statuses.iter().map(|status| status.current_limit.as_ref().unwrap().name.clone()).collect();
                    assert!(names == ["A", "A"] || names == ["B", "B"], "{names:?}");
                    answered[usize::from(names[0] == "B")] += 1;
                    // The rest is the reloads'.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                answered
            })
        })
        .collect();
    for reload in 0..RELOADS {
        put(&file, &set(if reload % 2 == 0 { "B" } else { "A" }));
        served.server.signal("HUP");
        served.server.wait_for_logs("rules loaded", reload + 2);
    }
    done.store(true, Ordering::Relaxed);
    let answered: Vec<_> = callers.into_iter().map(|caller| served.client.runtime.block_on(caller).unwrap()).collect();
    for set in 0..2 {
        let by_set: u64 = answered.iter().map(|answered| answered[set]).sum();
        assert!(by_set > RELOADS as u64 / 2, "both sets were asked all the time: {answered:?}");
    }
    assert_eq!(served.metric("ratelimit_service_config_load_error"), 0.0);
    let files = || fs::read_dir(format!("/proc/{}/fd", served.server.pid())).unwrap();
    let is_inotify = |file: &Path| fs::read_link(file).is_ok_and(|link| link.to_string_lossy().contains("inotify"));
    let watchers = || files().filter(|file| file.as_ref().is_ok_and(|file| is_inotify(&file.path()))).count();
    until("the end of all watches but the last", || watchers() == 1);
}
