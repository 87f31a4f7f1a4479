//! The use cases of a pool: the only place where the steps of an operation are put in order.
//!
//! A request comes in as a [`Ticket`] and leaves as a [`Recorded`] outcome, which exists only once its audit event is
//! durable. In between: authorise (a `Grant` from the role table), decide (`domain`), use the key (the partition) or
//! commit (`storage`), record (`audit`). No HTTP here, and no strings that were not parsed before.

mod clock;
mod error;
mod index;
mod keys;
mod pool;
mod roles;
mod ticket;
mod views;
mod workers;

pub use audit::Receipt;
pub use clock::{Clock, Random, SystemClock, SystemRandom};
pub use crypto::{Ciphertext, PartitionError, SecretBytes};
pub use error::Error;
pub use keys::{DecryptInput, EncryptInput};
pub use pool::{OpenPoolError, Pool, PoolLimits, PoolParts};
pub use roles::NewAssignment;
pub use ticket::{Recorded, RequestFacts, Shown, Ticket};
pub use views::{KeyReference, KeyView, NewKey, UsedKey};
