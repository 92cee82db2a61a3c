//! What a request may cause to be logged, at most once a minute each: a store that fails, an override that was dropped, a
//! descriptor that nothing matched. Shared by all limiters of a process.

use std::path::PathBuf;
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::descriptor::{Descriptor, Request};
use crate::hit::FailurePolicy;
use crate::seldom::{MINUTE, OncePerMinute};
use crate::store::StoreError;

/// When which line was last written.
#[derive(Default)]
pub struct Notices {
    store_failed: OncePerMinute,
    override_dropped: OncePerMinute,
    /// By domain; a request may name any.
    unmatched: Mutex<HashMap<Box<str>, Instant>>,
    /// The rules files, which a command that explains must name.
    rules: Vec<PathBuf>,
}

/// Domains that are told apart; while so many were logged within a minute, no further one is.
const DOMAINS_MAX: usize = 256;

/// The most bytes of a request's text that a line quotes.
const QUOTED_MAX: usize = 1_024;

impl Notices {
    /// For a server of the rules at these paths.
    pub fn of_rules(paths: &[PathBuf]) -> Self {
        Self { rules: paths.to_vec(), ..Self::default() }
    }

    pub(super) fn store_failed(&self, error: &StoreError, policy: FailurePolicy) {
        if self.store_failed.due() {
            warn!(%error, policy = policy.as_str(), "the store gives no answer; the failure policy does (logged once a minute)");
        }
    }

    pub(super) fn override_dropped(&self, domain: &str, unit: i32, multiplier: u32) {
        if self.override_dropped.due() {
            let why = "its unit is unknown, or its unit times its multiplier is nothing or above 10 years";
            warn!(
                unit,
                multiplier, domain, why, "a limit override that names no window was dropped, the rules apply (logged once a minute)"
            );
        }
    }

    /// No rule knows the descriptor; or, where it is None, the whole domain.
    pub(super) fn unmatched(&self, request: &Request, descriptor: Option<&Descriptor>) {
        // Of a descriptor without entries there is nothing to explain: Envoy sends it where it had nothing to say.
        if descriptor.is_some_and(|descriptor| descriptor.entries.is_empty()) || !self.unmatched_due(request.domain()) {
            return;
        }
        let explain = explain_command(&self.rules, request, descriptor.or(request.descriptors().first()));
        match descriptor {
            Some(_) => info!(explain, "a descriptor that no rule knows limits nothing (logged once a minute for each domain)"),
            None => info!(explain, "a request for a domain that no rules file names passes (logged once a minute for each domain)"),
        }
    }

    fn unmatched_due(&self, domain: &str) -> bool {
        let mut logged = self.unmatched.lock();
        if let Some(last) = logged.get_mut(domain) {
            let due = last.elapsed() >= MINUTE;
            if due {
                *last = Instant::now();
            }
            return due;
        }
        if logged.len() >= DOMAINS_MAX {
            logged.retain(|_, last| last.elapsed() < MINUTE);
        }
        let due = logged.len() < DOMAINS_MAX;
        if due {
            logged.insert(domain.into(), Instant::now());
        }
        due
    }
}

/// The command that says why nothing matched, with the request's texts quoted for a shell.
fn explain_command(rules: &[PathBuf], request: &Request, descriptor: Option<&Descriptor>) -> String {
    let paths: String = rules.iter().map(|path| format!("--config {} ", quoted(&path.to_string_lossy()))).collect();
    let mut command = format!("ratelimitd explain {paths}--domain={} --", quoted(request.domain()));
    for entry in descriptor.iter().flat_map(|descriptor| &descriptor.entries) {
        command.push(' ');
        command.push_str(&quoted(&format!("{}={}", entry.key, entry.value)));
        if command.len() > QUOTED_MAX {
            return command.chars().take(QUOTED_MAX).collect::<String>() + " ... (cut)";
        }
    }
    command
}

/// As a shell takes it: as it is where nothing in it is special, else in single quotes.
fn quoted(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(harmless) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Entry, RequestBounds};

    #[test]
    fn each_domain_is_due_once_a_minute_and_only_so_many_domains_are() {
        let notices = Notices::default();
        let due = |domain: usize| notices.unmatched_due(&domain.to_string());
        assert!((0..DOMAINS_MAX).all(due));
        assert!(!(0..DOMAINS_MAX + 100).any(due));
        assert_eq!(notices.unmatched.lock().len(), DOMAINS_MAX);
    }

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        let descriptor = Descriptor { entries: vec![Entry::new("path", "/a"), Entry::new("it's", "$(x)")], ..Descriptor::default() };
        let request = Request::new("a b".into(), vec![descriptor], 1, RequestBounds::default()).unwrap();
        let command = explain_command(&["my rules".into(), "b".into()], &request, request.descriptors().first());
        assert_eq!(command, r"ratelimitd explain --config 'my rules' --config b --domain='a b' -- path=/a 'it'\''s=$(x)'");
    }
}
