//! A unary gRPC call: its one message out of the body of the request, the time that its caller still has, and the bytes of
//! the reply's. It knows the five bytes before a message, and nothing of what a message says.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use tonic::Status;
use tonic::metadata::MetadataValue;

/// Whether the message is compressed, and its length.
const PREFIX: usize = 5;

/// The bytes of a call's one message, as they come.
#[derive(Default)]
pub struct Reading(Bytes);

impl Reading {
    /// Reads on. The message, when all of it is there, and the end of the body.
    ///
    /// # Errors
    /// It is longer than `bytes_max`, compressed, incomplete, or not alone; or the call broke off.
    pub fn poll<B>(&mut self, cx: &mut Context<'_>, body: &mut B, bytes_max: usize) -> Poll<Result<Bytes, Status>>
    where
        B: Body<Data = Bytes, Error: fmt::Display> + Unpin,
    {
        let Self(whole) = self;
        while let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) {
            let frame = frame.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
            match frame.into_data() {
                Ok(data) if whole.is_empty() => *whole = data,
                Ok(data) if !data.is_empty() => *whole = joined(std::mem::take(whole), &data),
                _ => {}
            }
            if let Some(length) = length(whole).filter(|length| *length > bytes_max) {
                let why = format!("a request of {length} bytes; at most {bytes_max} are accepted (MAX_REQUEST_BYTES)");
                return Poll::Ready(Err(Status::out_of_range(why)));
            }
            // What is more than one message is not read to its end: there need not be one.
            if body.is_end_stream() || length(whole).is_some_and(|length| whole.len() > PREFIX + length) {
                break;
            }
        }
        Poll::Ready(message(std::mem::take(whole)))
    }
}

fn message(mut whole: Bytes) -> Result<Bytes, Status> {
    if length(&whole).is_none_or(|length| whole.len() != PREFIX + length) {
        return Err(Status::internal("the call does not hold one whole message"));
    }
    if whole[0] != 0 {
        let mut refused = Status::unimplemented("the message is compressed, which is not understood here");
        refused.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        return Err(refused);
    }
    whole.advance(PREFIX);
    Ok(whole)
}

/// Three quarters of the call's grpc-timeout, so that an answer by policy still reaches the caller in time.
pub fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The protocol allows eight digits.
    let number = number.parse::<u32>().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3_600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(number) * 3 / 4)
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    // A reply has a status for each descriptor of a request, whose bounds are far below 4 GiB.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// The length of the message that a prefix announces, where the prefix is there.
fn length(whole: &[u8]) -> Option<usize> {
    let length = whole.get(1..PREFIX)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// Copies the first frame, once: it shares its memory with others. What was joined is not shared, and grows in place.
fn joined(start: Bytes, rest: &[u8]) -> Bytes {
    let mut whole = BytesMut::from(start);
    whole.extend_from_slice(rest);
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::Waker;

    use http_body::Frame;
    use tonic::Code;

    use super::*;

    #[test]
    fn three_quarters_of_the_grpc_timeout_are_left() {
        let left = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            time_left(&headers)
        };
        assert_eq!(left("20m"), Some(Duration::from_millis(15)));
        assert_eq!(left("2S"), Some(Duration::from_millis(1500)));
        assert_eq!(left("99999999H"), Some(Duration::from_secs(99_999_999 * 2_700)));
        for odd in ["", "m", "-1m", "20", "20x", "1.5S"] {
            assert_eq!(left(odd), None, "{odd}");
        }
        assert_eq!(time_left(&HeaderMap::new()), None);
    }

    /// A body of these frames, and then of nothing for ever, or the end.
    struct Frames {
        frames: VecDeque<Frame<Bytes>>,
        end: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None if self.end => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn read(frames: &[&[u8]], bytes_max: usize) -> Result<Bytes, Status> {
        let trailers = Frame::trailers(HeaderMap::new());
        let frames = frames.iter().map(|bytes| Frame::data(Bytes::copy_from_slice(bytes))).chain([trailers]).collect();
        match Reading::default().poll(&mut Context::from_waker(Waker::noop()), &mut Frames { frames, end: true }, bytes_max) {
            Poll::Ready(read) => read,
            Poll::Pending => panic!("nothing is awaited but frames, which are there"),
        }
    }

    const MESSAGE: &[u8] = b"a message";

    fn sent() -> Vec<u8> {
        [&[0, 0, 0, 0, 9], MESSAGE].concat()
    }

    #[test]
    fn a_message_is_framed_by_a_zero_and_its_length() {
        assert_eq!(framed(MESSAGE), sent());
    }

    #[test]
    fn a_message_is_read_whatever_frames_it_comes_in() {
        let bytes = sent();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let frames = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(read(&frames, bytes.len() - PREFIX).unwrap(), MESSAGE, "{first} {second}");
            }
        }
    }

    #[test]
    fn what_is_not_one_whole_plain_message_is_refused() {
        let bytes = sent();
        let code = |frames: &[&[u8]], bytes_max| read(frames, bytes_max).unwrap_err().code();
        for short in 0..bytes.len() {
            assert_eq!(code(&[&bytes[..short]], 100), Code::Internal, "{short}");
        }
        assert_eq!(code(&[&bytes, &bytes], 100), Code::Internal, "two");
        assert_eq!(code(&[&bytes], bytes.len() - PREFIX - 1), Code::OutOfRange);
        // Bytes after a message are refused, whether or not there is an end to them.
        let frames = [&bytes[..], &[0]].map(Bytes::copy_from_slice).map(Frame::data).into();
        let endless = Reading::default().poll(&mut Context::from_waker(Waker::noop()), &mut Frames { frames, end: false }, 100);
        assert!(matches!(endless, Poll::Ready(Err(status)) if status.code() == Code::Internal));
        // It is refused when its length is known, before the rest has come.
        assert_eq!(code(&[&[0, 255, 255, 255, 255]], 100), Code::OutOfRange);
        let compressed = [&[1], &bytes[1..]].concat();
        let refused = read(&[&compressed], 100).unwrap_err();
        assert_eq!(
            (refused.code(), refused.metadata().get("grpc-accept-encoding").unwrap().as_bytes()),
            (Code::Unimplemented, &b"identity"[..])
        );
    }
}
