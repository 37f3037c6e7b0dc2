//! The status page of one host or of many: an HTML file without external resources, and events that
//! keep it up to date.
//!
//! The page shows text that tasks wrote. Its policy lets the browser run only this script, and
//! forbids the script to create elements from text.

mod events;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use events::Feed;

const FRAME: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
/// The files form one script, because they use each other's functions.
const SCRIPT: &str = concat!(
    include_str!("page/text.js"),
    include_str!("page/dom.js"),
    include_str!("page/charts.js"),
    include_str!("page/parts.js"),
    include_str!("page/host.js"),
    include_str!("page/fleet.js"),
    include_str!("page/live.js"),
);

static PAGE: LazyLock<String> =
    LazyLock::new(|| FRAME.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT));

/// The content security policy. It allows this style, this script, and requests to this server.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    HeaderValue::try_from(policy).expect("a policy is ASCII")
});

/// Serves the page at `/` and its events at `/api/events`. Must be called in a runtime, which
/// produces the events.
///
/// `figures` returns the page's data: the answer of `/api/host` or `/api/hosts`, which is JSON
/// without line feeds. It is called only while a page is open, and at most once per second.
pub(crate) fn router<F, A>(figures: F) -> Router
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Future<Output = Arc<str>> + Send + 'static,
{
    Router::new()
        .route("/", get(page))
        .route("/api/events", get(events::follow))
        .with_state(Feed::start(figures))
}

async fn page() -> impl IntoResponse {
    const SAME_ORIGIN: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (SAME_ORIGIN, HeaderValue::from_static("same-origin")),
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
    ];
    (headers, Html(PAGE.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_style_and_its_script_once_and_as_they_are_hashed() {
        let between = |start: &str, end: &str| {
            let mut parts = PAGE.split(start);
            let text = parts.nth(1).unwrap().split(end).next().unwrap();
            assert_eq!(parts.next(), None, "{start} twice");
            text
        };
        assert_eq!(between("<style>", "</style>"), STYLE);
        assert_eq!(between("<script>", "</script>"), SCRIPT);
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_makes_no_elements_of_texts() {
        let elsewhere = PAGE.replace("http://www.w3.org/2000/svg", "");
        for forbidden in ["http:", "https:", "src=", "@import", "url(", "import "] {
            assert!(!elsewhere.contains(forbidden), "{forbidden}");
        }
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("]
        {
            assert!(!SCRIPT.contains(forbidden), "{forbidden}");
        }
    }
}
