//! (story of the crate: to be written by its first author)
