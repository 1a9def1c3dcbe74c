//! (room cache)
