//! How a value of a rules file, or of a test of rules, is read: as text, a truth, a number, a word of a few. What cannot be
//! read is reported with its place and what to write instead, and the reading goes on. It knows no key of either language.

use strsim::levenshtein;

use super::Report;
use super::yaml::{self, Node, Value};

/// How many changed letters still make one word a misspelling of another.
const MISSPELLED: usize = 2;

/// The values of a map's known keys.
pub(super) struct Known<'n>(Vec<(&'static str, &'n Node)>);

impl<'n> Known<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

impl Report<'_> {
    /// A scalar's text as it is written: `0443`, `yes` and `1.5` stay what they are; null is the empty text.
    pub(super) fn text(&mut self, name: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { .. } if node.is_null() => Some(String::new()),
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => {
                self.problem(node.place, format!("`{name}` is text, not {}: write one value", node.kind()));
                None
            }
        }
    }

    /// A text that means nothing when empty.
    pub(super) fn filled(&mut self, name: &str, node: &Node) -> Option<String> {
        let text = self.text(name, node)?;
        if text.is_empty() {
            self.problem(node.place, format!("`{name}` is empty: fill it in, or remove the line"));
            return None;
        }
        Some(text)
    }

    pub(super) fn flag(&mut self, name: &str, node: &Node) -> Option<bool> {
        self.plain(name, node, "true or false", yaml::boolean)
    }

    /// A whole number from 0 to `most`.
    pub(super) fn number(&mut self, name: &str, node: &Node, most: u64) -> Option<u64> {
        let what = format!("a whole number from 0 to {most}");
        let read = |text: &str| yaml::integer(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= most);
        self.plain(name, node, &what, read)
    }

    /// The values of a map's known keys, null ones left out; an unknown key is a problem.
    pub(super) fn known<'n>(&mut self, what: &str, node: &'n Node, keys: &[&'static str]) -> Option<Known<'n>> {
        let Value::Map(pairs) = &node.value else {
            self.problem(node.place, format!("{what} is a map, not {}: write `NAME: VALUE` lines", node.kind()));
            return None;
        };
        let mut known = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Some(text) = self.text("a key", key) else { continue };
            match keys.iter().find(|name| **name == text) {
                Some(name) if !value.is_null() => known.push((*name, value)),
                Some(_) => {}
                None => {
                    let advice =
                        nearest(&text, keys.iter().copied()).map_or("remove it".to_owned(), |name| format!("did you mean `{name}`?"));
                    self.problem(key.place, format!("unknown key `{text}`: {advice}"));
                }
            }
        }
        Some(Known(known))
    }

    /// The items of a list.
    pub(super) fn list<'n>(&mut self, name: &str, node: &'n Node, advice: &str) -> Option<&'n [Node]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        self.problem(node.place, format!("`{name}` is a list, not {}: {advice}", node.kind()));
        None
    }

    /// A value that was judged by its own type.
    pub(super) fn judged<T>(&mut self, node: &Node, value: Result<T, impl std::fmt::Display>) -> Option<T> {
        value.map_err(|error| self.problem(node.place, error.to_string())).ok()
    }

    /// A value that quotes would turn into text.
    fn plain<T>(&mut self, name: &str, node: &Node, what: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let said = match &node.value {
            Value::Scalar { text, plain } => match read(text) {
                Some(value) if *plain => return Some(value),
                Some(_) => format!("`{name}` is {what}, not text: remove the quotes around {text}"),
                None => format!("`{name}` is {what}, not `{text}`: correct it"),
            },
            _ => format!("`{name}` is {what}, not {}: write one value", node.kind()),
        };
        self.problem(node.place, said);
        None
    }
}

/// The word that `text` is probably meant to be. Of equally near ones, the first.
pub(super) fn nearest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let written = letters(text);
    words
        .into_iter()
        .map(|word| (levenshtein(&written, &letters(word)), word))
        .filter(|(distance, word)| *distance <= MISSPELLED && *distance * 2 < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Lower case, without what joins words: `requestsPerUnit` and `requests-per-unit` are the same word written otherwise.
fn letters(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misspellings_are_known_and_far_ones_are_not() {
        let words = || ["key", "value", "window", "requests_per_unit"];
        assert_eq!(nearest("requests-per-Unit", words()), Some("requests_per_unit"));
        assert_eq!(nearest("wndow", words()), Some("window"));
        assert_eq!(nearest("keys", words()), Some("key"));
        assert_eq!(nearest("kind", words()), None);
        assert_eq!(nearest("", words()), None);
    }
}
