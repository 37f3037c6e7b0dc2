//! `/api/host`: the state of the host as JSON.

use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::routing::get;
use axum::{Json, Router};
use task_host::activity::snapshot::HostView;

/// `view` produces the answer.
pub(super) fn router(view: impl Fn() -> HostView + Clone + Send + Sync + 'static) -> Router {
    let headers = [
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    let answer = move || {
        let answer = (headers.clone(), Json(view()));
        async move { answer }
    };
    Router::new().route("/api/host", get(answer))
}
