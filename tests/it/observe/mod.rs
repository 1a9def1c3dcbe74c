//! What is logged, and the catalog that explains it.

mod catalog;
mod stderr;
