//! A call from end to end, in this crate's programs and in its types.
