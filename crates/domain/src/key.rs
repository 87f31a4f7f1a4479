//! Keys and their versions.
