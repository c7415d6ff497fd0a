//! Services: a table of methods by name.

mod methods;

pub use self::methods::{Handler, Methods};
