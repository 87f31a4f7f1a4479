//! The data plane on the wire. Translates between HTTP and the use cases of `service`, and decides nothing.
//!
//! The order for each request: host (421), token (401, before any look at path or body), route, api-version, body, use
//! case. From the token on, whatever happens leaves exactly one audit event, which is durable before the answer goes.
//!
//! The router is our own: the path grammar of Key Vault (keywords in any case, an empty version segment, scopes before
//! `/providers/`) does not fit patterns, and a layer rewriting it for a pattern router would be the router in all but
//! name. It is one pure function, [`Route::parse`].

mod answers;
mod api;
mod api_version;
mod backup;
pub mod byok;
mod exchange;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod key_import;
mod paging;
mod problem;
mod release;
mod rotation;
mod route;
mod test_mode;
mod wire;

pub use api::{Api, ApiConfig, Connection, Origin};
pub use api_version::ApiVersion;
pub use problem::{Problem, problem};
pub use rotation::lifetime_actions;
pub use route::{KeyUse, Route, RouteKind, RouteRefused};
