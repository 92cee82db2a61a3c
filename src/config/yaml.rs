//! YAML text to a tree in which every value knows its line and column. Anchors, aliases and `<<` are resolved here, a key
//! twice in one map is a problem, and what a plain scalar means as a boolean or a number is YAML 1.1's reading, as in the
//! files that users bring along. It knows nothing of rules: `config::language` turns the tree into them. Memory and
//! depth are bounded, so no file, however made, can exhaust either.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::Report;

/// How deep lists and maps may lie in each other, aliases resolved. The readers of the tree recurse once a level.
pub(super) const MAX_DEPTH: usize = 100;

/// How many values a file may get by being copied for anchors and aliases. What is written out is bounded by the file's size;
/// a few lines of aliases to aliases are not.
pub(super) const MAX_COPIED_VALUES: usize = 400_000;

/// YAML 1.1's words for true.
pub(super) const TRUE: [&str; 11] = ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"];

/// And for false.
pub(super) const FALSE: [&str; 11] = ["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"];

/// A line and a column, both from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A value and where it is written; for an alias, where it is used, while what lies inside keeps the anchor's places.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// The text as written; `plain` where nothing (quotes, a block, `!!str`) says that it is text and nothing else.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What the value is, for a message that says what it should have been.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    fn is_merge_key(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if text == "<<")
    }

    /// Values in this tree, itself included, and levels of lists and maps.
    fn size(&self) -> (usize, usize) {
        let add = |(count, depth): (usize, usize), node: &Self| {
            let (more, below) = node.size();
            (count + more, depth.max(below + 1))
        };
        match &self.value {
            Value::Scalar { .. } => (1, 0),
            Value::List(items) => items.iter().fold((1, 1), add),
            Value::Map(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).fold((1, 1), add),
        }
    }
}

/// The first document of `text`; `None` where it holds no value at all or its reading ended in a problem.
/// Problems that leave a tree (a key twice) are reported and the reading goes on; syntax ends it.
pub(super) fn read(text: &str, report: &mut Report<'_>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(line) = newer_version(text) {
        report.problem(Place { line, column: 1 }, "rules are read as YAML 1.1, where `yes` is true and 017 is 15: remove this line");
        return None;
    }
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder { report, open: Vec::new(), anchors: HashMap::new(), copied: 0, root: None };
    while let Some(next) = parser.next_event() {
        let (event, span) = match next {
            Ok((Event::DocumentStart(_), span)) if builder.root.is_some() => {
                builder.second_document(place(&span.start));
                break;
            }
            Ok(next) => next,
            Err(error) => return builder.broken(text, &error),
        };
        if let Err((place, message)) = builder.take(event, place(&span.start)) {
            builder.report.problem(place, message);
            return None;
        }
    }
    builder.root.filter(|root| !root.is_null()).or_else(|| {
        report.problem(Place::START, "the file is empty: write `domain: NAME` and its descriptors, or remove the file");
        None
    })
}

/// The line, from 1, in which the first document says to be of a version of YAML that reads scalars otherwise.
fn newer_version(text: &str) -> Option<usize> {
    let before = text.lines().take_while(|line| line.is_empty() || line.starts_with(['%', '#']));
    before.enumerate().find_map(|(number, line)| {
        let version = line.strip_prefix("%YAML")?.split('#').next()?.trim();
        (version != "1.1" && version != "1.0").then_some(number + 1)
    })
}

/// A plain scalar read as YAML 1.1 reads a boolean.
pub(super) fn boolean(text: &str) -> Option<bool> {
    if TRUE.contains(&text) { Some(true) } else { FALSE.contains(&text).then_some(false) }
}

/// A plain scalar read as YAML 1.1 reads an integer: `5`, `+5`, `1_000`, `017` and `0o17` (15), `0x1F`, `0b101`.
pub(super) fn integer(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix(['+', '-']) {
        Some(digits) => (plain.starts_with('-'), digits),
        None => (false, plain.as_str()),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if text.starts_with('_') || !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -number } else { number })
}

/// A plain scalar read as YAML 1.1 reads a number with a fraction or an exponent: `1.5`, `.5`, `1e3`, `-.inf`, `.nan`.
pub(super) fn float(text: &str) -> Option<f64> {
    let (sign, size) = match text.strip_prefix('-') {
        Some(size) => (-1.0, size),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match size {
        ".inf" | ".Inf" | ".INF" => return Some(sign * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let digits = size.replace('_', "");
    // What Rust reads besides, such as `inf`, is text.
    let starts = digits.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    digits.parse::<f64>().ok().filter(|_| starts).map(|number| sign * number)
}

/// Puts the parser's events together, without recursion.
struct Builder<'r, 'f> {
    report: &'r mut Report<'f>,
    open: Vec<Open>,
    /// Complete anchored values by the parser's number for them.
    anchors: HashMap<usize, Node>,
    copied: usize,
    root: Option<Node>,
}

/// A list or map whose end has not come; a map's children are key, value, key, value.
struct Open {
    place: Place,
    anchor: usize,
    is_map: bool,
    children: Vec<Node>,
}

type Fatal = (Place, String);

impl Builder<'_, '_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Fatal> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = self.is_plain(style, tag.as_deref(), place);
                self.add(Node { place, value: Value::Scalar { text: text.into_owned(), plain } }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(place, anchor, false),
            Event::MappingStart(anchor, _) => self.open(place, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, place),
            _ => Ok(()),
        }
    }

    fn is_plain(&mut self, style: ScalarStyle, tag: Option<&Tag>, place: Place) -> bool {
        match tag {
            None => style == ScalarStyle::Plain,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => false,
            Some(tag) if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "int" | "bool" | "null") => true,
            Some(tag) => {
                self.report.problem(place, format!("the tag `{tag}` means nothing in a rules file: remove it"));
                false
            }
        }
    }

    fn open(&mut self, place: Place, anchor: usize, is_map: bool) -> Result<(), Fatal> {
        self.check_depth(1, place)?;
        self.open.push(Open { place, anchor, is_map, children: Vec::new() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fatal> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = if open.is_map { Value::Map(self.pairs(open.children)) } else { Value::List(open.children) };
        self.add(Node { place: open.place, value }, open.anchor)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Fatal> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err((place, "this alias stands inside its own anchor: write the value out".to_owned()));
        };
        let (count, depth) = node.size();
        self.check_depth(depth, place)?;
        self.count_copies(count, place)?;
        let Some(node) = self.anchors.get(&anchor) else { return Ok(()) };
        let node = Node { place, value: node.value.clone() };
        self.add(node, 0)
    }

    /// Hands a complete value to the list or map that it stands in. Anchor 0 is none.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Fatal> {
        if anchor != 0 {
            self.count_copies(node.size().0, node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
        Ok(())
    }

    fn check_depth(&self, more: usize, place: Place) -> Result<(), Fatal> {
        if self.open.len() + more <= MAX_DEPTH {
            return Ok(());
        }
        Err((place, format!("lists and maps lie more than {MAX_DEPTH} deep in each other: make the tree flatter")))
    }

    fn count_copies(&mut self, count: usize, place: Place) -> Result<(), Fatal> {
        self.copied += count;
        if self.copied <= MAX_COPIED_VALUES {
            return Ok(());
        }
        let what = format!("anchors and aliases up to here copy more than {MAX_COPIED_VALUES} values: use fewer of them");
        Err((place, what))
    }

    /// A map's children as pairs: no key twice, `<<` replaced by what it brings and the map does not say itself.
    fn pairs(&mut self, children: Vec<Node>) -> Vec<(Node, Node)> {
        let mut lines: HashMap<String, usize> = HashMap::new();
        let mut pairs = Vec::with_capacity(children.len() / 2);
        let mut merged = Vec::new();
        let mut children = children.into_iter();
        while let (Some(key), Some(value)) = (children.next(), children.next()) {
            if let Value::Scalar { text, .. } = &key.value {
                if let Some(first) = lines.get(text) {
                    let what = format!("`{text}` stands twice in this map, first in line {first}: remove one of them");
                    self.report.problem(key.place, what);
                    continue;
                }
                lines.insert(text.clone(), key.place.line);
            }
            if key.is_merge_key() { self.merge(value, true, &mut merged) } else { pairs.push((key, value)) }
        }
        for (key, value) in merged {
            if let Value::Scalar { text, .. } = &key.value {
                if lines.contains_key(text) {
                    continue;
                }
                lines.insert(text.clone(), key.place.line);
            }
            pairs.push((key, value));
        }
        pairs
    }

    /// What `<<` brings: the pairs of a map, or of a list of maps, where the first to name a key wins.
    fn merge(&mut self, value: Node, may_be_list: bool, merged: &mut Vec<(Node, Node)>) {
        match value.value {
            Value::Map(pairs) => merged.extend(pairs),
            Value::List(maps) if may_be_list => maps.into_iter().for_each(|map| self.merge(map, false, merged)),
            _ => self.report.problem(value.place, "`<<` takes a map or a list of maps, usually as an alias: `<<: *NAME`"),
        }
    }

    fn second_document(&mut self, place: Place) {
        self.report.warning(place, "a second document begins here and is ignored: move it to a file of its own");
    }

    /// The end at a syntax error: a problem in the first document, a warning in what comes after it.
    fn broken(mut self, text: &str, error: &ScanError) -> Option<Node> {
        let at = place(error.marker());
        if let Some(root) = self.root.take() {
            let between = text.lines().enumerate().take(at.line).skip(root.place.line);
            let mut markers = between.filter(|(_, line)| line.starts_with("---") || line.starts_with("..."));
            if let Some((before, _)) = markers.next() {
                self.second_document(Place { line: before + 1, column: 1 });
                return Some(root);
            }
        }
        // The parser stops at a tab or, where a value could go on, on the line before it.
        let tabbed = text.lines().enumerate().skip(at.line - 1).take(2).find_map(|(before, line)| {
            let indent = &line[..line.len() - line.trim_start().len()];
            indent.find('\t').map(|column| Place { line: before + 1, column: column + 1 })
        });
        match tabbed {
            Some(at) => self.report.problem(at, "not valid YAML: a tab in the indentation; indent with spaces"),
            None => self.report.problem(at, format!("not valid YAML: {}; look here and in the lines above", error.info())),
        }
        None
    }
}

fn place(mark: &saphyr_parser::Marker) -> Place {
    Place { line: mark.line().max(1), column: mark.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The tree in one line, or the problems.
    fn tree(text: &str) -> String {
        fn show(node: &Node) -> String {
            match &node.value {
                Value::Scalar { text, plain: true } => text.clone(),
                Value::Scalar { text, plain: false } => format!("{text:?}"),
                Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
                Value::Map(pairs) => {
                    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{}: {}", show(key), show(value))).collect();
                    format!("{{{}}}", pairs.join(", "))
                }
            }
        }
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = read(text, &mut report);
        match report.problems.as_slice() {
            [] => show(&root.unwrap()),
            problems => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_whether_they_were_quoted() {
        assert_eq!(tree("{a: 0443, b: '1', c: \"yes\", d: 1.5, e: !!str 5}"), "{a: 0443, b: \"1\", c: \"yes\", d: 1.5, e: \"5\"}");
        assert_eq!(tree("a: |\n  x\n"), "{a: \"x\\n\"}");
    }

    #[test]
    fn places_are_lines_and_columns_from_one_in_characters() {
        let mut report = Report { file: Path::new("f"), problems: Vec::new(), warnings: Vec::new() };
        let root = read("\u{feff}é: [ü, x]\r\nb: y\r\n", &mut report).unwrap();
        let Value::Map(pairs) = &root.value else { panic!() };
        let Value::List(items) = &pairs[0].1.value else { panic!() };
        let places = [root.place, items[1].place, pairs[1].1.place].map(|place| (place.line, place.column));
        assert_eq!(places, [(1, 1), (1, 8), (2, 4)]);
    }

    #[test]
    fn a_merge_brings_what_the_map_does_not_say_itself_and_earlier_maps_win() {
        assert_eq!(tree("[&a {x: 1, y: 1}, {<<: *a, y: 2}]"), "[{x: 1, y: 1}, {y: 2, x: 1}]");
        assert_eq!(tree("[&a {x: 1}, &b {x: 2, y: 2}, {<<: [*a, *b]}]"), "[{x: 1}, {x: 2, y: 2}, {x: 1, y: 2}]");
        assert_eq!(tree("[{\"<<\": 1}]"), "[{\"<<\": 1}]");
        assert!(tree("{<<: 1}").contains("`<<` takes a map"));
    }

    #[test]
    fn an_anchor_may_be_written_anew_but_not_stand_in_itself() {
        assert_eq!(tree("[&a 1, *a, &a 2, *a]"), "[1, 1, 2, 2]");
        assert!(tree("&a [*a]").contains("inside its own anchor"));
    }

    #[test]
    fn depth_is_bounded_with_aliases_resolved() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(!tree(&nested(MAX_DEPTH)).contains("deep"));
        assert!(tree(&nested(MAX_DEPTH + 1)).contains("deep"));
        let half = MAX_DEPTH / 2;
        assert!(tree(&format!("[&a {}, {}*a{}]", nested(half), "[".repeat(half), "]".repeat(half))).contains("deep"));
        for open in ["[", "{", "- ", "? ", "[{a: ", "- a: "] {
            assert!(tree(&open.repeat(100_000)).starts_with("f:1:"), "{open}");
        }
    }

    #[test]
    fn copies_for_aliases_are_bounded() {
        let text = (1..30).fold("a0: &a0 [x, x, x]\n".to_owned(), |text, n| {
            let last = n - 1;
            text + &format!("a{n}: &a{n} [*a{last}, *a{last}, *a{last}]\n")
        });
        assert!(tree(&text).contains("copy more than"));
    }

    #[test]
    fn integers_read_as_yaml_1_1_has_them() {
        for (text, number) in
            [("0", 0), ("5", 5), ("+5", 5), ("-5", -5), ("1_000", 1000), ("017", 15), ("0o17", 15), ("0x1F", 31), ("0b101", 5)]
        {
            assert_eq!(integer(text), Some(number), "{text}");
        }
        for text in ["", "+", "-", "08", "0x", "0b2", "1.0", "5.", "1e3", "_1", "--1", "+-1", "0x-1", "0x+1", "5 ", "ten", "é", "1é"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn booleans_read_as_yaml_1_1_has_them() {
        assert!(["y", "Y", "yes", "Yes", "YES", "on", "On", "TRUE"].iter().all(|text| boolean(text) == Some(true)));
        assert!(["n", "N", "no", "No", "NO", "off", "Off", "FALSE"].iter().all(|text| boolean(text) == Some(false)));
        assert!(["", "yEs", "1", "0", "t", "truE"].iter().all(|text| boolean(text).is_none()));
    }
}
