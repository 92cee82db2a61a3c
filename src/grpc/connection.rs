//! An HTTP/2 connection, on the h2 crate: its calls are answered together, and what can't be answered at once goes on in
//! tasks. Almost every call is for one unary method, whose reply is three frames; the other services' bodies are streams.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Body as OtherBody;
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::codegen::BoxFuture;

use super::call::{Reading, time_left};
use super::service::{METHOD, Services};

/// Streams that a connection may have open at once: calls under way.
const STREAMS_MAX: u32 = 200;

/// Bytes of bodies that a client may send ahead, in a call and in all calls of a connection.
const WINDOW: u32 = 1 << 20;

/// Bytes of a call's headers.
const HEADERS_MAX: u32 = 16 << 10;

/// A stalled client's resets pile up before they are accepted; h2 gives the whole connection up at 20 of them, which turns
/// one stall of 20 ms into many failed calls.
const PENDING_RESETS_MAX: usize = 1_024;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const STATUS_OK: HeaderValue = HeaderValue::from_static("0");

/// A call for the method whose message is not read yet. Each wake of the connection reads on in all of them: STREAMS_MAX at most.
struct Call {
    within: Option<Duration>,
    body: Received,
    reading: Reading,
    reply: SendResponse<Bytes>,
}

/// Serves a connection to its end. Once `draining` has ended no more calls are taken up, and the connection ends when those
/// under way are answered.
///
/// # Errors
/// The client does not speak HTTP/2, or the connection broke.
pub async fn serve<T>(io: T, services: &Services, draining: impl Future<Output = ()>) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut draining = pin!(draining);
    let mut settings = Builder::new();
    settings.max_concurrent_streams(STREAMS_MAX).initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    settings.max_header_list_size(HEADERS_MAX).max_pending_accept_reset_streams(PENDING_RESETS_MAX);
    let mut connection = tokio::select! {
        connection = settings.handshake(io) => connection?,
        () = &mut draining => return Ok(()),
    };
    let mut stopping = false;
    let mut calls: Vec<Call> = Vec::new();
    poll_fn(|cx| {
        if !stopping && draining.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.graceful_shutdown();
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, reply)))) if request.uri().path() == METHOD => {
                    let within = time_left(request.headers());
                    calls.push(Call { within, body: Received::new(request.into_body()), reading: Reading::default(), reply });
                }
                Poll::Ready(Some(Ok((request, reply)))) => {
                    let response = services.other(request.map(|body| OtherBody::new(Received::new(body))));
                    tokio::spawn(async move { stream(reply, response.await).await });
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                // Only now that all which has come is taken up, so that one write takes all replies.
                Poll::Pending => {
                    let before = calls.len();
                    calls = std::mem::take(&mut calls).into_iter().filter_map(|call| call.answer(services)).collect();
                    if calls.len() == before {
                        return Poll::Pending;
                    }
                    // Written at once. What has come meanwhile takes its turn behind the thread's other connections.
                    cx.waker().wake_by_ref();
                    return connection.poll_closed(cx);
                }
            }
        }
    })
    .await
}

impl Call {
    /// Gives itself back while its message has not come whole; the connection, which would bring the rest, is its only waker.
    /// Else answers at once if nothing has to be awaited for that, or in a task.
    fn answer(mut self, services: &Services) -> Option<Self> {
        let mut nobody = Context::from_waker(Waker::noop());
        let message = match self.reading.poll(&mut nobody, &mut self.body, services.request_bytes_max()) {
            Poll::Pending => return Some(self),
            Poll::Ready(Err(status)) => {
                send(self.reply, Err(status));
                return None;
            }
            Poll::Ready(Ok(message)) => message,
        };
        let mut answer = services.should_rate_limit(message, self.within);
        // A panic is to end this call, as it would in a task, and no other one of the connection.
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut nobody))) {
            Ok(Poll::Ready(answer)) => send(self.reply, answer),
            // The task polls it anew, with a waker of its own.
            Ok(Poll::Pending) => drop(tokio::spawn(send_later(self.reply, answer))),
            Err(_) => send(self.reply, Err(Status::internal("a mistake in the server: its log says more"))),
        }
        None
    }
}

/// Sends an answer when it is there, unless the caller gives the call up before: then whoever answers it is dropped.
async fn send_later(mut reply: SendResponse<Bytes>, mut answer: BoxFuture<Bytes, Status>) {
    let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => reply.poll_reset(cx).map(|_| None),
    });
    if let Some(answer) = answered.await {
        send(reply, answer);
    }
}

/// Sends headers, a message and trailers; or headers alone that say why there is no message. One reply a call is the most
/// that waits for a client to make room for it.
fn send(mut reply: SendResponse<Bytes>, answer: Result<Bytes, Status>) {
    let _gone = match answer {
        Ok(message) => {
            let mut response = Response::new(());
            *response.headers_mut() = only(header::CONTENT_TYPE, GRPC);
            reply.send_response(response, false).and_then(|mut body| {
                body.send_data(message, false)?;
                body.send_trailers(only(STATUS, STATUS_OK))
            })
        }
        Err(status) => reply.send_response(status.into_http(), true).map(drop),
    };
}

/// Sends a response of any length, as fast as the client takes it, until it has given the call up.
async fn stream(mut reply: SendResponse<Bytes>, response: Response<OtherBody>) -> Result<(), h2::Error> {
    let (head, mut body) = response.into_parts();
    let is_empty = body.is_end_stream();
    let mut sending = reply.send_response(Response::from_parts(head, ()), is_empty)?;
    if is_empty {
        return Ok(());
    }
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => sending.poll_reset(cx).map(|reason| Err(reason.map_or_else(|error| error, h2::Error::from))),
        });
        match frame.await?.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => send_data(&mut sending, data).await?,
            Some(Ok(Err(frame))) => return sending.send_trailers(frame.into_trailers().unwrap_or_default()),
            Some(Err(_)) => {
                sending.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return sending.send_data(Bytes::new(), true),
        }
    }
}

async fn send_data(sending: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        sending.reserve_capacity(data.len());
        let room = poll_fn(|cx| sending.poll_capacity(cx)).await;
        let room = room.unwrap_or(Err(Reason::CANCEL.into()))?.min(data.len());
        sending.send_data(data.split_to(room), false)?;
    }
    Ok(())
}

/// The body of a request. What is read of it makes room for more. Its last frame needs none on its stream, and is given back to
/// the connection's window when the call is answered.
struct Received {
    stream: RecvStream,
    ended: bool,
}

impl Received {
    fn new(stream: RecvStream) -> Self {
        Self { stream, ended: false }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Self { stream, ended } = &mut *self;
        match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                *ended = stream.is_end_stream();
                if !*ended {
                    let _ = stream.flow_control().release_capacity(data.len());
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => stream.poll_trailers(cx).map(|trailers| trailers.transpose().map(|trailers| trailers.map(Frame::trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Headers for which one place is allocated, where a map makes six at once by itself.
fn only(name: HeaderName, value: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(name, value);
    headers
}
