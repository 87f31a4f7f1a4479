//! One port for many pools: reads the server name of a TLS ClientHello and passes bytes on, with the client's true address
//! in front (PROXY protocol, version 2). TLS ends behind it: it holds no key, sees no plaintext and gives no right.

mod client_hello;
pub mod proxy_protocol;
mod serve;

pub use client_hello::{Hello, MAX_HELLO_BYTES, MalformedHello, server_name};
pub use serve::{Directory, serve};
