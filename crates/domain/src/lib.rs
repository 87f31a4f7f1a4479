//! The rules of a pool, as pure functions over plain values.
//!
//! Nothing here reads a clock, a random source, a file or a socket: time and randomness are arguments. Nothing
//! here can name private key material.

pub mod access;
pub mod algorithm;
pub mod guid;
pub mod json;
pub mod key;
pub mod name;
pub mod network;
pub mod pool;
pub mod principal;
pub mod release;
pub mod rotation;
pub mod setting;
pub mod test_mode;
pub mod time;
