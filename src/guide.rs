//! The guide: how the wire looks, what to do about errors, how to run it, and how fast it is.
//!
//! These modules hold no code. Their text is in the repository under `src/guide`.

#[doc = include_str!("guide/services.md")]
pub mod services {}

#[doc = include_str!("guide/requests.md")]
pub mod requests {}

#[doc = include_str!("guide/shell.md")]
pub mod shell {}

#[doc = include_str!("guide/wire_contract.md")]
pub mod wire_contract {}

#[doc = include_str!("guide/errors.md")]
pub mod errors {}

#[doc = include_str!("guide/operating.md")]
pub mod operating {}

#[doc = include_str!("guide/connecting.md")]
pub mod connecting {}

#[doc = include_str!("guide/tls.md")]
pub mod tls {}

#[doc = include_str!("guide/clusters.md")]
pub mod clusters {}

#[doc = include_str!("guide/performance.md")]
pub mod performance {}

#[doc = include_str!("guide/scaling.md")]
pub mod scaling {}

#[doc = include_str!("guide/contributing.md")]
pub mod contributing {}

#[doc = include_str!("guide/changelog.md")]
pub mod changelog {}
