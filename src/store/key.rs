//! A counter's key, the same bytes in Redis and in memory: `1{api|alice}log|60000000|path=/export|client`. The layout's
//! version comes first; the hash tag in braces holds domain and client, so that one client's counters share a slot of a
//! Redis Cluster; then algorithm, window in microseconds, and action. Different counters never share a key.

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::hit::{Counter, escape};
use crate::limit::Algorithm;

/// The layout's version and the tag's brace. To be raised with every change of the key's or a counter's layout, so that two
/// versions never misread each other.
const HEAD: &str = "1{";

/// A domain, a client or an action longer than this, in bytes, stands as its hash.
const KEY_MAX: usize = 256;

/// A key's bytes. Most fit in place: to look a counter up allocates nothing.
pub(super) type Key = SmallVec<[u8; 96]>;

/// The key of a counter, after a prefix that holds no braces.
pub(super) fn encode(prefix: &str, counter: &Counter<'_>) -> Key {
    let mut key = Key::new();
    push(&mut key, prefix);
    push(&mut key, HEAD);
    let domain = key.len();
    escape(counter.domain, |part| push(&mut key, part));
    shorten(&mut key, domain);
    let client = key.len();
    for value in &counter.client {
        push(&mut key, "|");
        escape(value, |part| push(&mut key, part));
    }
    shorten(&mut key, client);
    push(
        &mut key,
        match counter.algorithm {
            Algorithm::SlidingWindowLog { .. } => "}log|",
            Algorithm::TokenBucket { .. } => "}tb|",
            Algorithm::FixedWindow => "}fw|",
        },
    );
    push_number(&mut key, counter.window.micros());
    let action = key.len();
    push(&mut key, counter.action.as_str());
    shorten(&mut key, action);
    key
}

fn push(key: &mut Key, text: &str) {
    key.extend_from_slice(text.as_bytes());
}

/// Puts the hash of what stands from `start` on in its place, where that is long. `%#` begins no escaped text.
fn shorten(key: &mut Key, start: usize) {
    if key.len() - start > KEY_MAX {
        let hash = Sha256::digest(&key[start..]);
        key.truncate(start);
        push(key, &format!("%#{hash:x}"));
    }
}

/// Pushes a number and a bar. `write!` costs more than all the rest of a key.
fn push_number(key: &mut Key, number: u64) {
    let mut digits = [b'|'; 21];
    let (mut at, mut left) = (digits.len() - 1, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    key.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hit::Action;
    use crate::limit::Window;

    fn text(domain: &str, client: &[&str], action: Action<'_>) -> String {
        let counter =
            Counter { domain, client: client.iter().copied().collect(), action, algorithm: Algorithm::default(), window: Window::MINUTE };
        String::from_utf8(encode("", &counter).to_vec()).unwrap()
    }

    #[test]
    fn a_key_reads_as_the_layout_says() {
        let action = Action::of_path([("path", Some("/export")), ("client", None)]);
        assert_eq!(text("api", &["alice"], action), "1{api|alice}log|60000000|path=/export|client");
        assert_eq!(text("", &["alice"], Action::named("login")), "1{|alice}log|60000000|login");
    }

    #[test]
    fn each_algorithm_has_a_key_of_its_own() {
        let keys = Algorithm::ALL.map(|algorithm| {
            let counter = Counter {
                domain: "api",
                client: ["alice"].into_iter().collect(),
                action: Action::named("x"),
                algorithm,
                window: Window::MINUTE,
            };
            String::from_utf8(encode("", &counter).to_vec()).unwrap()
        });
        assert_eq!(keys, ["1{api|alice}log|60000000|x", "1{api|alice}tb|60000000|x", "1{api|alice}fw|60000000|x"]);
    }

    #[test]
    fn different_counters_never_share_a_key() {
        let separators = ["", "|", "%", "{", "}", "=", "%7C", "a|b", "a", "b", "%#", "}log|60000000|"];
        let mut keys = Vec::new();
        for domain in separators {
            keys.push(text(domain, &[], Action::named("x")));
            for first in separators {
                keys.push(text(domain, &[first], Action::named("x")));
                keys.push(text(domain, &[], Action::of_path([(first, None)])));
                keys.push(text(domain, &["c"], Action::of_path([("k", Some(first))])));
                for second in separators {
                    keys.push(text(domain, &[first, second], Action::named("x")));
                }
            }
        }
        // The one pair that is meant to be equal: the action named x and the path of the bare key x never meet here.
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn long_clients_and_actions_stand_as_their_hashes() {
        let (long, other) = ("v".repeat(1 << 20), "v".repeat((1 << 20) + 1));
        let key = text("api", &[&long], Action::named(&long));
        assert!(key.len() < 200 && key.starts_with("1{api%#"), "{key}");
        assert_ne!(key, text("api", &[&other], Action::named(&long)));
        assert_ne!(key, text("api", &[&long], Action::named(&other)));
        assert!(text(&long, &[&long], Action::named(&long)).len() < 260);
        assert_ne!(text(&long, &[], Action::named("x")), text(&other, &[], Action::named("x")));
        assert_ne!(text(&long, &[], Action::named("x")), text("", &[&long[1..]], Action::named("x")));
        assert_ne!(text("api", &[&long, ""], Action::named("x")), text("api", &[&long], Action::named("x")));
    }
}
