//! Environment variables that make a test longer, or make it repeat the random choices of an
//! earlier run.

use std::env;

/// The number in an environment variable, if it is set. Panics if it holds anything else.
pub fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

/// The seed in an environment variable, or else one that no other run has.
pub fn seed(name: &str) -> u64 {
    number(name).unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0))
}
