//! (room ctl)
