//! Protobuf's wire format (<https://protobuf.dev/programming-guides/encoding>), as far as an ordinary call needs it: messages of
//! nothing but text and other messages are read, and messages of numbers, text and other messages are written, in one go. prost
//! reads all other requests, and writes what is asked for beside the answer; it takes more instructions, for it measures each
//! message before it writes it, and reads from any kind of buffer (docs/performance.md).

use smallvec::SmallVec;

/// The fields of a message that are text or messages, each as its number and its bytes. None ends them: what stands there
/// is a field of another kind, of a number above 15 or with a length of more than four bytes, or no field.
pub struct Fields<'a>(pub &'a [u8]);

/// A message that is being written, of fields whose numbers are 15 at most. What says no more than a field that is not there is
/// left out: 0, and empty text.
#[derive(Default)]
pub struct Writing(SmallVec<[u8; 128]>);

/// How many bytes follow is told: text, or a message.
const LENGTH_DELIMITED: u8 = 2;

const VARINT: u8 = 0;

/// Of a varint's byte: more bytes follow.
const MORE: u8 = 0x80;

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u8, &'a [u8])> {
        let key = self.byte()?;
        let (number, kind) = (key >> 3, key & 7);
        if key & MORE != 0 || number == 0 || kind != LENGTH_DELIMITED {
            return None;
        }
        let mut byte = self.byte()?;
        let mut length = usize::from(byte & !MORE);
        let mut shift = 0;
        while byte & MORE != 0 {
            byte = self.byte()?;
            shift += 7;
            if shift > 21 {
                return None;
            }
            length |= usize::from(byte & !MORE) << shift;
        }
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((number, bytes))
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }
}

impl Writing {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A number, or an enum's.
    pub fn number(&mut self, field: u8, number: u64) {
        if number > 0 {
            self.0.push(field << 3 | VARINT);
            self.varint(number);
        }
    }

    pub fn text(&mut self, field: u8, text: &str) {
        if !text.is_empty() {
            self.0.push(field << 3 | LENGTH_DELIMITED);
            self.varint(text.len() as u64);
            self.0.extend_from_slice(text.as_bytes());
        }
    }

    /// A message, which is there even if it is empty.
    pub fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.0.extend_from_slice(&[field << 3 | LENGTH_DELIMITED, 0]);
        let start = self.0.len();
        write(self);
        let length = self.0.len() - start;
        if length < usize::from(MORE) {
            self.0[start - 1] = length as u8;
            return;
        }
        let mut told = Self::default();
        told.varint(length as u64);
        self.0[start - 1] = told.0[0];
        self.0.insert_from_slice(start, &told.0[1..]);
    }

    /// Fields that somebody else wrote.
    pub fn fields(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= u64::from(MORE) {
            self.0.push(number as u8 | MORE);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Vec<Option<(u8, &[u8])>> {
        Fields(message).collect()
    }

    #[test]
    fn text_and_messages_are_read_up_to_the_first_field_of_another_kind() {
        assert_eq!(read(&[]), []);
        assert_eq!(read(&[0x0a, 2, b'a', b'b', 0x12, 0]), [Some((1, &b"ab"[..])), Some((2, &[]))]);
        let long = [&[0x7a, 0x80 | 0x48, 1][..], &[7; 200]].concat();
        assert_eq!(read(&long), [Some((15, &[7; 200][..]))]);
        // A length may be written in more bytes than it needs.
        assert_eq!(read(&[0x0a, 0x81, 0x80, 0x00, 9]), [Some((1, &[9][..]))]);
        for other in [
            &[0x08, 1][..],                        // a varint
            &[0x09, 0, 0, 0, 0, 0, 0, 0, 0],       // 64 bits
            &[0x0d, 0, 0, 0, 0],                   // 32 bits
            &[0x0b, 0x0c],                         // a group
            &[0x02, 0],                            // the number 0
            &[0x82, 0x01, 0],                      // the number 16
            &[0x0a],                               // no length
            &[0x0a, 0x80],                         // half a length
            &[0x0a, 2, 0],                         // less than it says
            &[0x0a, 0x81, 0x80, 0x80, 0x80, 0, 9], // a length of five bytes
        ] {
            assert_eq!(read(&[&[0x0a, 1, 9], other].concat()), [Some((1, &[9][..])), None], "{other:?}");
        }
    }

    #[test]
    fn a_message_is_written_with_its_length_before_it_whatever_that_is() {
        let written = |length: usize| {
            let mut writing = Writing::default();
            writing.number(3, 300);
            writing.message(1, |to| to.text(2, &"x".repeat(length)));
            writing.number(15, 1);
            writing.as_bytes().to_vec()
        };
        assert_eq!(written(0), [0x18, 0xac, 2, 0x0a, 0, 0x78, 1], "an empty text is left out, the message is not");
        assert_eq!(written(1), [0x18, 0xac, 2, 0x0a, 3, 0x12, 1, b'x', 0x78, 1]);
        for length in [124, 125, 126, 127, 128, 129, 1_000, 100_000] {
            let bytes = written(length);
            let fields = &bytes[3..bytes.len() - 2];
            let Some(Some((1, message))) = Fields(fields).next() else { panic!("{length}") };
            assert_eq!(read(message), [Some((2, &*vec![b'x'; length]))], "{length}");
            assert_eq!(bytes[bytes.len() - 2..], [0x78, 1]);
        }
    }

    #[test]
    fn a_number_takes_as_many_bytes_as_it_has_sevens_of_bits() {
        for (number, bytes) in [(0, &[][..]), (1, &[8, 1]), (127, &[8, 0x7f]), (128, &[8, 0x80, 1])] {
            let mut writing = Writing::default();
            writing.number(1, number);
            assert_eq!(writing.as_bytes(), bytes);
        }
        let mut most = Writing::default();
        most.number(1, u64::MAX);
        assert_eq!(most.as_bytes(), [8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
    }
}
