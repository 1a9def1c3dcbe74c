//! Jobs as CI systems run them, and the files that are shipped for them.

mod browser;
mod gitlab;
mod jobs;
mod log;
mod recipes;
mod shipped_files;
