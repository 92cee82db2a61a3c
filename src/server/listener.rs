//! Listeners, and the connections that they accept: bound once, each accepted connection is dealt to the serving thread
//! that has the fewest. A connection counts from its dealing until it is dropped.

use std::io::{self, IoSlice};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;
use tracing::{info, warn};

use super::ServerError;
use super::thread::ServingThread;
use crate::settings::Address;

/// A bound listener.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// The file of a Unix socket; it goes when its listener does.
pub(super) struct SocketFile(PathBuf);

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Http,
}

/// A connection on its way from the runtime that accepted it to the one that serves it.
pub(super) enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A connection that is served.
pub(super) struct Connection {
    stream: Stream,
    _counted: Counted,
}

/// One connection more, for as long as this lives.
pub(super) struct Counted(Arc<AtomicUsize>);

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A listener that can't accept (too many open files, say) tries again after so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Listener {
    pub async fn bind(what: &'static str, address: &Address) -> Result<Self, ServerError> {
        let (bound, shown) = match address {
            Address::Tcp(address) => {
                let bound =
                    TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?.to_string(), Self::Tcp(listener))));
                (bound, address.to_string())
            }
            Address::Unix(path) => {
                let shown = format!("unix:{}", path.display());
                let bound = bind_unix(path).await.map(|listener| (shown.clone(), Self::Unix { listener, _file: SocketFile(path.clone()) }));
                (bound, shown)
            }
        };
        let (address, listener) = bound.map_err(|error| ServerError::Bind { what, address: shown, error })?;
        info!(address, "listening for {what}");
        Ok(listener)
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are small and waited for.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream.into_std()?))
            }
            Self::Unix { listener, .. } => Ok(Accepted::Unix(listener.accept().await?.0.into_std()?)),
        }
    }
}

/// Accepts connections for ever.
pub(super) async fn deal(listener: Listener, protocol: Protocol, threads: Arc<Vec<ServingThread>>) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                if let Some(idlest) = threads.iter().min_by_key(|thread| thread.connections()) {
                    idlest.take(protocol, accepted);
                }
            }
            Err(error) => {
                warn!(%error, ?protocol, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Accepted {
    /// Makes the connection one of the current runtime's.
    pub fn serve(self, counted: Counted) -> io::Result<Connection> {
        let stream = match self {
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        };
        Ok(Connection { stream, _counted: counted })
    }
}

impl Counted {
    pub fn among(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that is gone already is no matter.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// Binds a Unix socket, over the file of one that nobody listens on any more.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
