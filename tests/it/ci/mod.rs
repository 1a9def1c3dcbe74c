//! Jobs as CI systems run them, and the files that are shipped for them.

mod files;
mod gitlab;
mod jobs;
mod log;
