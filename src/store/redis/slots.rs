//! The 16,384 slots of a Redis Cluster: which one a key lies in, and which primary serves it. Pure; `topology.rs` asks for
//! them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crc::{CRC_16_XMODEM, Crc, Table};
use redis::Value;

use super::primary::text;

/// Which primary serves which slot.
pub(super) struct SlotMap {
    /// `host:port` of each, once.
    pub primaries: Vec<Arc<str>>,
    /// The primary of each slot, as its place in `primaries`; [`NOBODY`] where none serves it.
    owners: Box<[u16]>,
}

pub(super) const SLOTS: u16 = 16_384;

const NOBODY: u16 = u16::MAX;

static CRC: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_XMODEM);

/// The slot of a key, by the Cluster specification: of the hash tag alone, where there is one that is not empty.
pub(super) fn slot(key: &[u8]) -> u16 {
    CRC.checksum(tag(key)) % SLOTS
}

fn tag(key: &[u8]) -> &[u8] {
    let Some(opens) = key.iter().position(|byte| *byte == b'{') else { return key };
    match key[opens + 1..].iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(length) => &key[opens + 1..opens + 1 + length],
    }
}

impl SlotMap {
    /// No slot has a primary.
    pub fn empty() -> Self {
        Self { primaries: Vec::new(), owners: vec![NOBODY; usize::from(SLOTS)].into() }
    }

    /// Reads the reply to CLUSTER SLOTS. A node that doesn't know its own host leaves it out: it is the one that was asked.
    pub fn read(reply: &Value, asked: &str) -> Option<Self> {
        let Value::Array(ranges) = reply else { return None };
        let mut map = Self::empty();
        for range in ranges {
            let (slots, primary) = read_range(range, asked)?;
            map.give(slots, primary.into());
        }
        (!map.primaries.is_empty()).then_some(map)
    }

    /// The same with one slot at another primary.
    pub fn with(&self, slot: u16, primary: &str) -> Self {
        let mut map = Self { primaries: self.primaries.clone(), owners: self.owners.clone() };
        map.give(slot..=slot, primary.into());
        map
    }

    /// The primary that serves a slot, as its place in `primaries`.
    pub fn owner(&self, slot: u16) -> Option<usize> {
        self.owners.get(usize::from(slot)).filter(|owner| **owner != NOBODY).map(|owner| usize::from(*owner))
    }

    /// Whether each slot is served by the same primary there.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let places: Vec<_> = self.primaries.iter().map(|mine| other.primaries.iter().position(|theirs| theirs == mine)).collect();
        (0..SLOTS).all(|slot| self.owner(slot).map(|owner| places[owner]) == other.owner(slot).map(Some))
    }

    /// Whether the same primaries are there, whatever they serve.
    pub fn has_primaries_of(&self, other: &Self) -> bool {
        self.primaries.len() == other.primaries.len() && self.primaries.iter().all(|primary| other.primaries.contains(primary))
    }

    fn give(&mut self, slots: RangeInclusive<u16>, primary: Arc<str>) {
        let place = self.primaries.iter().position(|known| *known == primary).unwrap_or_else(|| {
            self.primaries.push(primary);
            self.primaries.len() - 1
        });
        // There are at most as many primaries as slots.
        slots.for_each(|slot| self.owners[usize::from(slot)] = place as u16);
    }
}

fn read_range(range: &Value, asked: &str) -> Option<(RangeInclusive<u16>, String)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = parts.as_slice() else { return None };
    let [host, Value::Int(port), ..] = primary.as_slice() else { return None };
    let host = text(host).filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.to_owned());
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    (last < SLOTS).then(|| (first..=last, format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64, host: &str, port: i64) -> Value {
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString(b"id".to_vec()), Value::Array(vec![])])
        };
        Value::Array(vec![Value::Int(first), Value::Int(last), node(host, port), node("replica", 1)])
    }

    #[test]
    fn a_key_lies_in_the_slot_that_the_specification_says() {
        // Values of CLUSTER KEYSLOT.
        assert_eq!(slot(b"123456789"), 12_739);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_eq!(tag(b"foo{}{bar}"), b"foo{}{bar}", "an empty tag is none");
        assert_eq!(tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(tag(b"foo{bar"), b"foo{bar");
    }

    #[test]
    fn clients_spread_evenly_over_the_slots() {
        for (ranges, most) in [(16, 1.02), (64, 1.05)] {
            let mut counts = vec![0_u32; ranges];
            for number in 0..300_000 {
                let key = format!("1{{api|client-{number}}}log|60000000|request");
                counts[usize::from(slot(key.as_bytes())) * ranges / usize::from(SLOTS)] += 1;
            }
            let even = 300_000.0 / ranges as f64;
            let (least, busiest) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
            assert!(f64::from(busiest) / even < most && f64::from(least) / even > 2.0 - most, "{least} to {busiest} of {even}");
        }
    }

    #[test]
    fn a_reply_gives_each_slot_its_primary() {
        let reply = Value::Array(vec![range(0, 99, "a", 1), range(200, 16_383, "", 2), range(100, 150, "a", 1)]);
        let map = SlotMap::read(&reply, "asked").unwrap();
        let primary = |slot| map.owner(slot).map(|owner| &*map.primaries[owner]);
        assert_eq!((primary(0), primary(150), primary(151)), (Some("a:1"), Some("a:1"), None));
        assert_eq!((primary(200), primary(16_383)), (Some("asked:2"), Some("asked:2")));
        assert_eq!(map.primaries.len(), 2);
        let moved = map.with(0, "b:3");
        assert_eq!(moved.owner(0).map(|owner| &*moved.primaries[owner]), Some("b:3"));
        assert!(!moved.agrees_with(&map) && !map.agrees_with(&moved) && moved.with(0, "a:1").agrees_with(&map));
        assert!(!map.with(151, "a:1").agrees_with(&map), "a slot that had nobody");
        assert!(map.with(0, "asked:2").has_primaries_of(&map) && !moved.has_primaries_of(&map) && !map.has_primaries_of(&moved));
    }

    #[test]
    fn a_reply_of_another_form_or_of_no_primary_is_no_map() {
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16_384, "a", 1)]),
            Value::Array(vec![range(-1, 5, "a", 1)]),
        ] {
            assert!(SlotMap::read(&reply, "asked").is_none(), "{reply:?}");
        }
    }
}
