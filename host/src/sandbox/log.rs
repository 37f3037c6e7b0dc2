//! The log of a guest: what it writes to its standard output and error. Only the end is kept.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// The most bytes that a guest may pass in one write.
const PERMIT: usize = 64 << 10;

/// Receives what a guest prints as soon as it is printed.
pub type Tee = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The end of what a guest printed.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The last bytes, as text. Invalid UTF-8 is replaced.
    pub text: String,
    /// The number of bytes before `text`.
    pub dropped: u64,
}

/// Takes everything that a guest writes, without waiting, and keeps the end.
///
/// It never refuses bytes, because a guest's `println!` would panic.
#[derive(Clone)]
pub(super) struct Sink {
    inner: Arc<Inner>,
    /// Receives the same bytes.
    copy: Option<Arc<Inner>>,
}

struct Inner {
    kept: Mutex<Kept>,
    /// The most bytes that are kept.
    most: usize,
    tee: Option<Tee>,
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Sink {
    /// A sink that keeps the last `most` bytes.
    pub(super) fn new(most: usize, tee: Option<Tee>) -> Self {
        Self { inner: Arc::new(Inner { kept: Mutex::default(), most, tee }), copy: None }
    }

    /// A handle on the same sink. What is written through this handle also goes to `copy`.
    pub(super) fn with_copy(&self, copy: &Self) -> Self {
        Self { inner: self.inner.clone(), copy: Some(copy.inner.clone()) }
    }

    pub(super) fn finish(&self) -> Log {
        let kept = std::mem::take(&mut *self.kept());
        let bytes = Vec::from(kept.bytes);
        // The first character may be cut.
        let start = if kept.dropped == 0 {
            0
        } else {
            bytes.iter().position(|b| b & 0xC0 != 0x80).unwrap_or(0)
        };
        Log {
            text: String::from_utf8_lossy(&bytes[start..]).into_owned(),
            dropped: kept.dropped + start as u64,
        }
    }

    /// The last bytes, at most `most`, as text.
    pub(super) fn end(&self, most: usize) -> String {
        let kept = self.kept();
        let start = kept.bytes.len().saturating_sub(most);
        let end: Vec<u8> = kept.bytes.range(start..).copied().collect();
        String::from_utf8_lossy(&end).into_owned()
    }

    pub(super) fn push(&self, bytes: &[u8]) {
        self.inner.push(bytes);
        if let Some(copy) = &self.copy {
            copy.push(bytes);
        }
    }

    /// The last line with text in it, or its last `most` bytes. None if there is none.
    pub(super) fn last_line(&self, most: usize) -> Option<String> {
        let kept = self.kept();
        let is_blank = |byte: &&u8| byte.is_ascii_whitespace();
        let line = kept.bytes.iter().rev().skip_while(is_blank);
        // The cut may go through a character, which has at most four bytes.
        let line = line.take_while(|byte| **byte != b'\n').take(most + 3);
        let mut line: Vec<u8> = line.copied().collect();
        drop(kept);
        line.reverse();
        let text = String::from_utf8_lossy(&line);
        let start = text.ceil_char_boundary(text.len().saturating_sub(most));
        Some(text[start..].trim().to_owned()).filter(|line| !line.is_empty())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.inner.kept()
    }
}

impl Inner {
    fn push(&self, bytes: &[u8]) {
        if let Some(tee) = &self.tee {
            tee(bytes);
        }
        let (mut kept, most) = (self.kept(), self.most);
        let tail = &bytes[bytes.len().saturating_sub(most)..];
        let excess = (kept.bytes.len() + tail.len()).saturating_sub(most);
        kept.bytes.drain(..excess);
        kept.bytes.extend(tail);
        kept.dropped += (excess + bytes.len() - tail.len()) as u64;
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: usize = 64 << 10;

    #[test]
    fn the_end_of_a_long_log_is_kept_whole_characters_only() {
        let sink = Sink::new(KEPT, None);
        sink.push("é".repeat(KEPT).as_bytes());
        sink.push(b"x");
        let log = sink.finish();
        assert!(log.text.ends_with("éx") && log.text.starts_with('é'));
        assert_eq!(log.dropped as usize + log.text.len(), 2 * KEPT + 1);
    }

    #[test]
    fn the_last_line_is_found_whatever_follows_it() {
        let check = |printed: &[u8], want: Option<&str>| {
            let sink = Sink::new(KEPT, None);
            sink.push(printed);
            assert_eq!(sink.last_line(10).as_deref(), want);
        };
        check(b"", None);
        check(b" \r\n\n", None);
        check(b"one", Some("one"));
        check(b"one\n two \r\n\n", Some("two"));
        check("one\nééééééé".as_bytes(), Some("ééééé"));
        check(b"\xff\xff\xff\xff\n", Some("\u{fffd}\u{fffd}\u{fffd}"));
    }

    #[test]
    fn a_copy_has_only_what_came_its_way() {
        let (log, errors) = (Sink::new(KEPT, None), Sink::new(KEPT, None));
        let stderr = log.with_copy(&errors);
        log.push(b"out 1\n");
        stderr.push(b"err\n");
        log.push(b"out 2\n");
        assert_eq!(log.finish().text, "out 1\nerr\nout 2\n");
        assert_eq!(errors.finish().text, "err\n");
    }

    #[test]
    fn a_short_log_is_kept_as_it_is() {
        let sink = Sink::new(KEPT, None);
        sink.push(b"one\n");
        sink.push(b"two\n");
        let log = sink.finish();
        assert_eq!((log.text.as_str(), log.dropped), ("one\ntwo\n", 0));
    }
}
