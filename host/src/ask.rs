//! A plain HTTP client for single requests to a service on this machine or near it: a cloud's
//! metadata service, the agent of ECS, or a host's own health checks.
//!
//! The client uses no TLS, no proxy and no redirects, and opens a new connection for each request.
//! A proxy from the environment would query the metadata service of another machine.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, ETAG, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// The maximum size of a response in bytes. Responses of metadata services have a few hundred
/// bytes.
const LONGEST: usize = 256 << 10;

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Question<'a> {
    /// `GET` if empty.
    pub method: &'a str,
    /// The address, as `http://HOST:PORT/PATH`.
    pub url: &'a str,
    /// The names and values of the headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// A JSON body.
    pub json: Option<String>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code, such as 200 or 404.
    pub status: u16,
    /// The value of the header `ETag`.
    pub tag: Option<String>,
    /// The body. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The URL is not valid.
    #[error("is not an address such as http://127.0.0.1:8080/")]
    Url,
    /// The connection failed.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The response did not arrive in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    /// The response is not valid HTTP, or is incomplete.
    #[error("no HTTP answer: {0}")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

impl AskError {
    fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Sends a request, and waits up to `patience` for the complete response.
///
/// # Errors
/// When no complete response arrives in time. A response with an error status is not an error.
pub async fn ask(question: &Question<'_>, patience: Duration) -> Result<Answer, AskError> {
    let answered = tokio::time::timeout(patience, exchange(question)).await;
    answered.unwrap_or(Err(AskError::Slow(patience)))
}

async fn exchange(question: &Question<'_>) -> Result<Answer, AskError> {
    let url: Uri = question.url.parse().map_err(|_| AskError::Url)?;
    let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(AskError::Url);
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = (host, authority.port_u16().unwrap_or(80));
    let method = if question.method.is_empty() { "GET" } else { question.method };
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(method).uri(path).header(HOST, authority.as_str());
    for (name, value) in question.headers {
        request = request.header(*name, *value);
    }
    if question.json.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = question.json.clone().unwrap_or_default();
    let request = request.body(Full::new(Bytes::from(body))).map_err(AskError::broken)?;

    let stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
    let shaken = http1::handshake(TokioIo::new(stream)).await.map_err(AskError::broken)?;
    let (mut sender, connection) = shaken;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender.send_request(request).await.map_err(AskError::broken)?;
    let tag = answer.headers().get(ETAG).and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    let body = body.map_err(AskError::Broken)?.to_bytes();
    Ok(Answer { status, tag, text: String::from_utf8_lossy(&body).into_owned() })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// The result of a request to a server that sends these bytes.
    async fn answered(said: &'static [u8]) -> Result<Answer, AskError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/path?query", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let size = stream.read(&mut asked).await.unwrap();
            stream.write_all(said).await.unwrap();
            asked.truncate(size);
            String::from_utf8(asked).unwrap()
        });
        let headers = [("metadata-flavor", "Google")];
        let question = Question { url: &url, headers: &headers, ..Question::default() };
        let answer = ask(&question, Duration::from_secs(60)).await;
        let asked = server.await.unwrap();
        assert!(asked.starts_with("GET /path?query HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("metadata-flavor: Google\r\n"), "{asked}");
        answer
    }

    #[tokio::test]
    async fn an_answer_has_its_status_tag_and_text() {
        let answer = answered(b"HTTP/1.1 404 No\r\netag: abc\r\ncontent-length: 4\r\n\r\nno\xff!");
        let text = "no\u{fffd}!".to_owned();
        let want = Answer { status: 404, tag: Some("abc".to_owned()), text };
        assert_eq!(answer.await.unwrap(), want);
    }

    #[tokio::test]
    async fn what_is_not_http_or_too_long_is_no_answer() {
        for said in [&b"SSH-2.0-OpenSSH\r\n\r\n"[..], b"", b"HTTP/1.1 200 OK\r\n"] {
            assert!(matches!(answered(said).await, Err(AskError::Broken(_))), "{said:?}");
        }
        let mut long = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        long.resize(LONGEST + 1000, b'x');
        let error = answered(long.leak()).await.unwrap_err().to_string();
        assert_eq!(error, "no HTTP answer: length limit exceeded");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let question = Question { url: &url, ..Question::default() };
        let error = ask(&question, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 50ms");
        drop(listener);
        let error = ask(&question, Duration::from_secs(60)).await.unwrap_err();
        assert!(matches!(error, AskError::Connect(_)), "{error}");
        for url in ["https://127.0.0.1/", "127.0.0.1:1", ""] {
            let question = Question { url, ..Question::default() };
            let error = ask(&question, Duration::from_secs(60)).await.unwrap_err();
            assert!(matches!(error, AskError::Url), "{url}: {error}");
        }
    }
}
