//! Services: a table of methods by name, and handlers and functions that take JSON.

#[cfg(feature = "json")]
mod json;
mod methods;

#[cfg(feature = "json")]
pub use self::json::{RemoteFunction, json};
pub use self::methods::{Handler, Methods};
