//! Listens for HTTP connections, and limits their number and how long a peer may stop reading.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use socket2::SockRef;
use task_host::system::limit_silence;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exit_code::Advice;

/// The maximum number of open connections. Further connections wait until one ends.
const MOST: usize = 512;
/// How long a peer may leave bytes unread before the kernel closes its connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens at the address that `--listen` names.
///
/// # Errors
/// If the address can't be used. The error tells why, and what to do.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Advice> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = Advice::failed(format!("--listen {address}: {error}"));
        match cure(address, error.kind()) {
            Some(cure) => advice.hint(cure),
            None => advice,
        }
    })
}

/// What to do if the address can't be used.
fn cure(address: SocketAddr, kind: io::ErrorKind) -> Option<String> {
    let port = address.port();
    Some(match kind {
        io::ErrorKind::AddrInUse => {
            "another program listens there, perhaps another host; choose another port".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => format!(
            "{} is not an address of this machine; 127.0.0.1:{port} is for this machine only, \
             0.0.0.0:{port} for all that reach it",
            address.ip()
        ),
        io::ErrorKind::PermissionDenied if port < 1024 => {
            "ports below 1024 are for root; choose another one, such as 8080".to_owned()
        }
        _ => return None,
    })
}

/// Accepts a bounded number of connections, and closes those whose peers stop reading.
pub(crate) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(MOST)) }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed, so this is always a permit.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if let Err(error) = limit_silence(&SockRef::from(&stream), PATIENCE) {
            tracing::debug!("the connection from {address} has no time limit: {error}");
        }
        (Connection { stream, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection. It counts towards the maximum until it is dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_port_is_for_root() {
        let check = |port: u16, kind, want: Option<&str>| {
            let cure = cure(([127, 0, 0, 1], port).into(), kind);
            assert_eq!(cure.is_some(), want.is_some(), "{cure:?}");
            assert!(cure.unwrap_or_default().contains(want.unwrap_or_default()));
        };
        check(80, io::ErrorKind::PermissionDenied, Some("below 1024 are for root"));
        check(8080, io::ErrorKind::PermissionDenied, None);
        check(80, io::ErrorKind::OutOfMemory, None);
    }
}
