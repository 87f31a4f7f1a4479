//! Serving while a pool's root of trust does not open it: each request is 503, which clients wait out, and whoever runs
//! the machine is told what to put back.

use crate::CommandError;
use crate::certificates::CertificateAuthority;
use crate::detach;
use crate::layout::Layout;
use crate::listener::{self, Peer, Shared};
use crate::output;
use crate::quickstart::{self, Ended};
use crate::state::Settings;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often the root of trust is looked for. A client is told to come back after as long.
pub(crate) const LOOK: Duration = Duration::from_secs(2);
/// Nothing of paths or of what is amiss: whoever asks has not been authenticated, and cannot be.
const ANSWER: &str = r#"{"error":{"code":"ServiceUnavailable","message":"The pool is sealed: its root of trust does not open it. Nothing is lost; whoever runs it finds in its log, and with `holdfast doctor`, what to put back.","innererror":{"code":"HsmSealed"}}}"#;

/// Until the root of trust is back, or until told to end.
pub(crate) async fn serve(
    layout: &Layout,
    why: &CommandError,
    connections: usize,
    detached: bool,
) -> Result<Ended, CommandError> {
    tracing::error!("{why}");
    let settings = Settings::read(layout)?.ok_or("the quickstart's settings have gone")?;
    let authority = CertificateAuthority::open(layout)?;
    let (close, closing) = watch::channel(false);
    let shared = Shared::new(authority.server_config()?, connections, closing);
    let mut services = JoinSet::new();
    for listener in quickstart::bind_pools(&settings)? {
        services.spawn(listener::serve(listener, shared.clone(), |_: Peer| service_fn(refuse)));
    }
    // Whoever started this may not listen any more.
    let _ = output::line(format_args!("{}: {why}", detach::SEALED));
    if detached {
        detach::print_to(&layout.log())?;
    }
    let ended = tokio::select! {
        ended = quickstart::wait_for_end() => ended.map(|()| Ended::AsAsked)?,
        () = opened(layout, &settings) => Ended::ToSwitch,
    };
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    Ok(ended)
}

pub(crate) async fn refuse<B>(_: http::Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from(ANSWER));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response.headers_mut().insert(RETRY_AFTER, LOOK.as_secs().into());
    Ok(response)
}

/// Comes back when every pool's root opens it.
async fn opened(layout: &Layout, settings: &Settings) {
    let names = settings.blank_pools.iter().filter_map(|name| name.parse().ok());
    let places: Vec<_> =
        std::iter::once(layout.first_place()).chain(names.map(|name| layout.place(name))).collect();
    loop {
        tokio::time::sleep(LOOK).await;
        if places.iter().all(|place| place.root.may_come_back() && place.opens().is_ok()) {
            return;
        }
    }
}
