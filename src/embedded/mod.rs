//! (room embedded)
